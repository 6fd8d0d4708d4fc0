"""vlmft play: a model to be tried on a page, untuned and tuned side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.config.schema import EvaluateConfig, ModelConfig, QuantizationConfig, QuantizationMode, Tuning
from vlmft.config.tool_schema import PlayConfig
from vlmft.data.make import make_dataset
from vlmft.evaluation.arms import Arm
from vlmft.evaluation.evaluate import arm_state
from vlmft.evaluation.predict import Answerer
from vlmft.labels.play_page import Ask, Cases, Wording, play_page, serve_play, wording_of
from vlmft.models.loaded import LoadedModel
from vlmft.models.lora import tuned_parts
from vlmft.run.folder import read_run
from vlmft.run.quiet import quiet_libraries
from vlmft.run.weights import load_base, load_tuned, put_others
from vlmft.sample import SPLITS, Answer, BadRow, BadRowError, Prompt, Question

MAX_NEW_TOKENS = 256
"""Of a model without a run, and of a run whose answers are as long as its references ask for."""


def play(config: PlayConfig) -> None:
    """Serves the page until the person has done.

    Raises:
        ConfigError: no such run, export or model, the port is taken, or what is in `to` are no test cases.
    """
    quiet_libraries()
    cases = Cases(Path(config.to).expanduser())
    cases.ids()  # a file of something else is refused before a model is loaded
    wording, max_new_tokens = asked_as(config)
    for note in wording.notes:
        print(f"note: {note}", file=sys.stderr)
    arms = loaded_arms(config, max_new_tokens)
    name = config.run or config.export or (config.model.name if config.model is not None else "")
    serve_play(play_page(name, arms, wording, cases), cases, config.port, config.open_browser)


def asked_as(config: PlayConfig) -> tuple[Wording, int]:
    """How the run's rows ask, and the most tokens of an answer; as the page says where there is no run or no data."""
    if config.run is None:
        return Wording(), config.max_new_tokens or MAX_NEW_TOKENS
    data = read_run(config.run).data
    max_new_tokens = config.max_new_tokens or data.max_new_tokens
    try:
        dataset = make_dataset(data)
        rows = dataset.index()
        row_id = next(row_id for split in reversed(SPLITS) for row_id in rows.get(split, ())[:1])
        wording = wording_of(dataset.to_sample(dataset.read(row_id)))
        own = dataset.max_new_tokens if data.max_new_tokens is None else 0
        return wording, max_new_tokens or own or MAX_NEW_TOKENS
    except (ConfigError, BadRowError, OSError, StopIteration) as error:
        why = str(error) or "they have no rows"
        note = f"The run's data cannot be read ({why}): questions are asked without its system text and instruction."
        return Wording(notes=(note,)), max_new_tokens or MAX_NEW_TOKENS


def loaded_arms(config: PlayConfig, max_new_tokens: int) -> dict[str, Ask]:
    """Name -> what answers: untuned first, then what was tuned.

    Raises:
        ConfigError: as `load_tuned` and `put_others`.
    """
    trainer, allowed = config.trainer, config.allow_fingerprint_mismatch

    def asks(loaded: LoadedModel, adapter: str | None) -> Ask:
        return _asks(loaded, Arm("", adapter), max_new_tokens)

    if config.run is not None:
        run = read_run(config.run)
        tuned = load_tuned(Path(config.run), run, trainer, mismatch=allowed)
        # Of adapters alone, the untuned model is the tuned one without them; else it is loaded beside it.
        is_whole = tuned_parts(run.model.train, Tuning.full)
        untuned = load_base(run.model, trainer, run.seed) if is_whole else tuned
        return {"untuned": asks(untuned, None), "tuned": asks(tuned, "tuned")}
    if config.model is None:
        plain = QuantizationConfig(mode=QuantizationMode.none)
        whole = ModelConfig(name="export", path=str(Path(str(config.export)).expanduser()), quantization=plain)
        return {"export": asks(load_base(whole, trainer, seed=0), None)}
    base = load_base(config.model, trainer, seed=0)
    arms = {"untuned": asks(base, None)}
    if config.export is not None:
        settings = EvaluateConfig(adapters={"export": config.export}, allow_fingerprint_mismatch=allowed)
        others = put_others(base, settings)
        for note in others.notes:
            print(f"note: {note}", file=sys.stderr)
        whole_model = others.models.get("export")
        arms["export"] = asks(base, "export") if whole_model is None else asks(whole_model(), None)
    return arms


def _asks(loaded: LoadedModel, arm: Arm, max_new_tokens: int) -> Ask:
    bad: list[BadRow] = []
    answerer = Answerer(loaded.family, loaded.base, 1, max_new_tokens, bad.append)

    def ask(prompt: Prompt) -> Answer:
        with arm_state(loaded.model, arm):
            answers = list(answerer.batches([Question("question", prompt)], skip=lambda ids: False))
        if not answers:
            raise BadRowError(bad.pop().reason)
        return answers[0]["question"]

    return ask
