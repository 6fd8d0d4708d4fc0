"""vlmft export: a tuned model to share, merged or as an adapter, with a card that says what it is worth."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig, Tuning
from vlmft.config.secrets import redacted_text
from vlmft.config.tool_schema import ExportConfig, ExportForm
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.evaluation.predict import Answerer
from vlmft.models.greedy import greedy_by_default
from vlmft.models.loaded import LoadedModel
from vlmft.models.lora import merged, rounded, tuned_parts
from vlmft.models.processor import save_for_servers
from vlmft.run.folder import ADAPTER, SUMMARY_FILE, read_run
from vlmft.run.quiet import quiet_libraries
from vlmft.run.weights import load_tuned
from vlmft.sample import BadRowError, Question
from vlmft.tools.model_card import card
from vlmft.tools.serving import Serving, serving
from vlmft.training.checkpoint import whole_folder

UPLOAD_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, HfHubHTTPError.__bases__[0])
"""The last is the HTTP library's own, of an unreachable host: which library that is depends on huggingface_hub."""


@dataclass
class Check:
    """The exported model beside the tuned one, on the same questions."""

    rows: int
    answers_changed: int
    logit_difference: float
    """Largest at the positions of the first new token."""
    logit_scale: float

    @property
    def sentence(self) -> str:
        return (
            f"{self.answers_changed} of {self.rows} answers differ from the tuned model's; logits by at most "
            f"{self.logit_difference:.2g} at a scale of {self.logit_scale:.2g}"
        )


def export(config: ExportConfig) -> Path:
    """Writes the folder `to`, whole or not at all; returns it.

    Raises:
        ConfigError: no run, no adapter in it, an adapter of another base, or an upload that fails (the folder stays).
    """
    quiet_libraries()
    if config.push is not None and get_token() is None:
        raise ConfigError("push: there is no token for the Hub; set HF_TOKEN to one that may write")
    folder, run = Path(config.run), read_run(config.run)
    to = Path(config.to)
    check, left_out, source = None, dict[str, Any](), folder / ADAPTER
    with whole_folder(to) as beside:
        if config.form == ExportForm.adapter:
            if not tuned_parts(run.model.train, Tuning.lora):
                raise ConfigError("form: Expected merged for a model that was trained in full, got adapter")
            if not (source / "adapter_model.safetensors").is_file():
                raise ConfigError(f"run: there is no adapter in {str(source)!r}; did the training end?")
            shutil.copytree(source, beside, dirs_exist_ok=True)
        else:
            check, left_out = _merge(config, folder, run, beside)
        served = serving(config, run, beside, left_out)
        text = card(run, folder / SUMMARY_FILE, config, check.sentence if check is not None else None, served)
        (beside / "README.md").write_text(text, encoding="utf-8")
    _print_result(config, to, check, served)
    if config.push is not None:
        url = push(to, config.push, public=config.public)
        print(f"  {url}", file=sys.stderr if config.json else sys.stdout)
    return to


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Uploads the folder to the Hub, into a repository that is made where there is none; returns its address.

    Raises:
        ConfigError: no right, no network, a name that the Hub refuses, or whatever else it says.
    """
    api = HfApi(library_name="vlmft")
    try:
        if not public and api.repo_exists(repository) and not api.repo_info(repository).private:
            raise ConfigError(
                f"push: {repository} is public already; say public=true, or name another; what was exported is "
                f"whole in {folder}"
            )
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=f"vlmft export of {folder.name}")
    except UPLOAD_ERRORS as error:
        later = f"hf upload {repository} {folder}{'' if public else ' --private'}"
        reason = redacted_text(" ".join(str(error).split())) or type(error).__name__
        raise ConfigError(
            f"push: {repository} could not be uploaded ({reason}); what was exported is whole in {folder}: "
            f"`{later}` sends it later"
        ) from error
    return str(made)


def _merge(config: ExportConfig, folder: Path, run: TrainConfig, beside: Path) -> tuple[Check | None, dict[str, Any]]:
    """Writes the model; returns how it answers, and what its generation_config.json no longer says."""
    questions, n_new_tokens = _questions(config, run)
    before = None
    if questions:
        before = _answers_and_logits(load_tuned(folder, run, config.trainer), questions, n_new_tokens)
    exact = load_tuned(folder, run, config.trainer, exact=True)
    whole = merged(exact.model) if isinstance(exact.model, PeftModel) else exact.base
    exact.model = rounded(whole, getattr(torch, config.dtype.name))
    family: Any = exact.family
    whole.generation_config, left_out = greedy_by_default(whole.generation_config, family.end_id, family.pad_id)
    whole.save_pretrained(beside, max_shard_size="5GB")
    save_for_servers(family.processor, exact.source, beside)
    if before is None:
        return None, left_out
    texts, logits = _answers_and_logits(exact, questions, n_new_tokens)
    changed = sum(text != other for text, other in zip(texts, before[0], strict=True))
    difference, scale = (logits - before[1]).abs().max(), before[1].abs().max()
    return Check(len(texts), changed, float(difference), float(scale)), left_out


def _questions(config: ExportConfig, run: TrainConfig) -> tuple[list[Question], int]:
    """The first rows of the test split, of validation where there is none, and how long an answer may be."""
    if not config.check_rows:
        return [], 0
    ledger = Ledger(None, run.data.on_bad_row, run.data.bad_row_ceiling)
    data = VLMDataModule(make_dataset(run.data), run.data, lambda sample: None, ledger, 1, run.seed)  # type: ignore[arg-type, return-value]
    ids = data.ids["test"] or data.ids["val"]
    return list(data.questions(ids[: config.check_rows])), data.max_new_tokens


def _answers_and_logits(
    loaded: LoadedModel, questions: list[Question], n_new_tokens: int
) -> tuple[list[str], torch.Tensor]:
    """Answers, and fp32 logits of their first new token, (n, vocabulary)."""
    family, model = loaded.family, loaded.base
    answerer = Answerer(family, model, 1, n_new_tokens, lambda row: None)
    texts, logits = [], []
    for question in questions:
        try:
            row = family.encode_prompt(question.id, question.prompt)
        except BadRowError:
            continue
        texts.append(answerer.answer_rows([row])[question.id].text)
        batch = family.collate([row], "right", model).to(model.device)
        keep = torch.zeros_like(batch.supervised)
        keep[:, -1] = True
        with torch.inference_mode():
            features = family.image_features(model, batch.images, grad=False)
            logits.append(family.forward(model, batch, features, keep).float().cpu())
    return texts, torch.cat(logits)


def _print_result(config: ExportConfig, to: Path, check: Check | None, served: Serving) -> None:
    if config.json:
        content: dict[str, Any] = {"folder": str(to), "form": config.form.name, "dtype": config.dtype.name}
        content["serving"] = vars(served)
        print(json.dumps({**content, "check": vars(check) if check is not None else None}, indent=2))
        return
    what = f"merged, {config.dtype.name}" if config.form == ExportForm.merged else "adapter"
    print(f"{to} ({what})")
    if check is not None:
        print(f"  {check.sentence}")
    for command in served.commands:
        print(f"  serve     {command}")
    if served.commands:
        print(f"  compare   {served.comparison(config.run)}")
    for note in (*served.notes, *filter(None, [served.warning])):
        print(f"  note: {note}")
