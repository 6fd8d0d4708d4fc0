"""The evaluation of three arms beside plain `generate`: work and time, after equal answers.

    python benchmarks/vs_generate.py                                  # tiny, 16, 100 and 500 rows, one CPU core
    python benchmarks/vs_generate.py --models Qwen2-VL --rows 16      # of scaled_models.py, images of 800x557
    python benchmarks/vs_generate.py --quick                          # tiny, 16 rows, one round

The same rows are asked of the untuned model, of the untuned model behind four examples, in three draws as by default,
and of the tuned one: by vlmft's
evaluation, its canary, scores and comparisons included; the same without the checks that ask rows again (the leak
canary, and rows asked alone); row by row with the processor and `generate`, as model pages show it; and this in
left-padded batches. The adapter is made of noise, for what it says costs nothing. Each
measurement runs in a process of its own and they take turns. All compute in fp32. Seconds are of processor time in one
thread; loading is not in them. FLOPs are counted with the smallest number of rows alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import PIL.Image
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import vlmft
from benchmarks.measuring import clock, flop_counter, in_fresh_process
from benchmarks.scaled_models import SCALED, save_model, write_rows
from vlmft.evaluation.evaluate import evaluate_arms
from vlmft.evaluation.few_shot import few_shot_draws
from vlmft.models.processor import load_processor
from vlmft.run.build import Built, build, resolved
from vlmft.run.quiet import quiet_libraries
from vlmft.sample import Image, Prompt, Question

WAYS = ("one row at a time", "left-padded batches", "vlmft", "vlmft, canary_rows=0")
TINY = ("tiny", "tiny_qwen2vl")
N_TRAIN = 8
"""Rows of a scaled model that examples are taken from."""
ARMS = ("untuned", "fewshot", "tuned")
NOISE = 0.1
"""Of the adapter's matrices B: enough to change answers."""

Answers = dict[str, dict[str, str]]
"""Arm and number of its draw -> row id -> text."""


@dataclass(frozen=True)
class Job:
    """One way of asking."""

    way: str
    model: str
    rows: int
    count: bool = False
    """FLOPs instead of time."""


@dataclass(frozen=True)
class Asked:
    answers: Answers
    seconds: float
    flops: int


def ask(job: Job) -> Asked:
    """All arms, in this process."""
    torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.environ["VLMFT_CACHE"] = f"{folder}/cache"
        config = resolved(vlmft.compose(*settings_of(job, Path(folder)))).config
        built = build(config.model, config.data, config.trainer, seed=config.seed, cache=config.cache)
        make_noise(built.model)
        rows = built.rows("test", config.evaluation)
        answerer = built.answerer(config.evaluation)
        counter = flop_counter() if job.count else contextlib.nullcontext()
        if job.way in WAYS[2:]:
            before = clock("cpu")
            with counter, built.family.cache or contextlib.nullcontext():
                found = evaluate_arms(built, answerer, rows, config.evaluation, ARMS, Path(folder))
            seconds = clock("cpu") - before
            if any("shots_dropped" in line for file in Path(folder, "predictions").iterdir() for line in file.open()):
                sys.exit(f"{job.model}: rows were asked with fewer examples than the other ways ask with")
            scored = {arm: [found.rows[arm]] for arm in ARMS} | found.draws
            answers = {
                f"{arm} {number}": {row_id: row.text for row_id, row in by_id.items()}
                for arm, draws in scored.items()
                for number, by_id in enumerate(draws, start=1)
            }
        else:
            assert isinstance(built.model, PeftModel)
            with built.model.disable_adapter():
                draws = few_shot_draws(built, config.evaluation.few_shot, rows.samples, rows).draws
            own = [Question(sample.id, sample.prompt) for sample in rows.samples]
            asked = {"untuned 1": own, "tuned 1": own}
            asked |= {f"fewshot {number}": draw.questions for number, draw in enumerate(draws, start=1)}
            size = 1 if job.way == WAYS[0] else config.evaluation.rows_per_batch
            plain = PlainModel(built, Path(folder), built.data.max_new_tokens)
            before = clock("cpu")
            with counter:
                answers = {arm: plain.answers(questions, size, arm == "tuned 1") for arm, questions in asked.items()}
            seconds = clock("cpu") - before
        return Asked(answers, seconds, counter.get_total_flops() if job.count else 0)  # type: ignore[union-attr]


def settings_of(job: Job, folder: Path) -> list[str]:
    """What evaluate.py would be given; a scaled model and its rows are written into the folder first."""
    settings = ["model.quantization.mode=none", "trainer=cpu"]
    settings += ["evaluation.canary_rows=0"] if job.way == WAYS[3] else []
    if job.model in TINY:
        return [*settings, f"model={job.model}", "data=shapes", f"data.limit_test={job.rows}"]
    save_model(SCALED[job.model], folder / "model", "cpu")
    write_all_ids(folder / "model" / "tokenizer.json", SCALED[job.model].vocabulary)
    write_rows(folder / "rows", job.rows + N_TRAIN, 1, n_test=job.rows)
    data = ["data=columns", f"data.path={folder / 'rows'}", "data.val_rows=0", "data.max_new_tokens=8"]
    return [*settings, "model=auto", f"model.path={folder / 'model'}", *data]


def write_all_ids(file: Path, vocabulary: int) -> None:
    """A text for each id that the model can choose: otherwise its answers would be empty, and all the same."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words, added = tokenizer["model"]["vocab"], [token["id"] for token in tokenizer["added_tokens"]]
    words |= {f"w{number}": number for number in range(max(*words.values(), *added) + 1, vocabulary)}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def make_noise(model: torch.nn.Module) -> None:
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=NOISE, generator=noise)


class PlainModel:
    """The same weights and adapter by the classes of transformers and PEFT alone."""

    def __init__(self, built: Built, folder: Path, max_new_tokens: int) -> None:
        built.model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        base = AutoModelForImageTextToText.from_pretrained(built.source.path, dtype=built.base.dtype)
        self.model = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
        self.processor: Any = load_processor(built.source, built.base.config.model_type)
        self.family, self.max_new_tokens = built.family, max_new_tokens

    def answers(self, questions: Sequence[Question], rows_per_batch: int, tuned: bool) -> dict[str, str]:
        """Row id -> text; images are drawn, resized and seen for each question."""
        found: dict[str, str] = {}
        with torch.inference_mode(), contextlib.nullcontext() if tuned else self.model.disable_adapter():
            for start in range(0, len(questions), rows_per_batch):
                batch = questions[start : start + rows_per_batch]
                texts = self.generated([question.prompt for question in batch])
                found |= dict(zip((question.id for question in batch), texts, strict=True))
        return found

    def generated(self, prompts: Sequence[Prompt]) -> list[str]:
        inputs = self.processor(
            text=[self.processor.apply_chat_template(chat_of(p), add_generation_prompt=True) for p in prompts],
            images=[[PIL.Image.fromarray(image.pixels) for image in p.images] for p in prompts],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        family = self.family
        ids = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=family.end_id,
            pad_token_id=family.pad_id,
        )
        new = ids[:, inputs["input_ids"].shape[1] :].tolist()
        return [family.decode(row[: row.index(family.end_id)] if family.end_id in row else row) for row in new]


def chat_of(prompt: Prompt) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(piece, Image) else {"type": "text", "text": piece}
                for piece in message.content
            ],
        }
        for message in prompt.messages
    ]


def different(answers: Answers, expected: Answers) -> list[str]:
    """Such as "tuned shapes/test/000003: 'There are 4 items.' instead of 'There are 5 items.'"."""
    return [
        f"{arm} {row_id}: {text!r} instead of {expected[arm][row_id]!r}"
        for arm, by_id in answers.items()
        for row_id, text in by_id.items()
        if text != expected[arm][row_id]
    ]


def fresh(job: Job) -> Asked:
    return in_fresh_process(ask, job, ("benchmarks.vs_generate", "vlmft.run.train"))


def lines_of(job: Job, ways: Sequence[str], rounds: int, count: bool) -> list[str]:
    """Rows of the table for one model and number of rows; ends the program where answers differ."""
    flops, seconds = dict[str, int](), {way: list[float]() for way in ways}
    first: Answers = {}
    runs = [(way, True) for way in ways] if count else []
    for way, counts in [*runs, *((way, False) for _ in range(rounds) for way in ways)]:
        print(f"  {job.model}, {job.rows} rows, {'FLOPs' if counts else 'time'}: {way}", file=sys.stderr, flush=True)
        found = fresh(replace(job, way=way, count=counts))
        first = first or found.answers
        if odd := different(found.answers, first):
            sys.exit(f"{job.model}, {way}: {len(odd)} answers differ from those of {WAYS[0]}; {odd[0]}")
        flops |= {way: found.flops} if counts else {}
        seconds[way] += [] if counts else [found.seconds]
    n_answers = sum(map(len, first.values()))
    n_changed = sum(first["tuned 1"][row_id] != text for row_id, text in first["untuned 1"].items())
    n_texts = len({text for by_id in first.values() for text in by_id.values()})
    told = f"{n_answers} answers, {n_texts} different texts, equal in all ways"
    print(f"{job.model}: {told}; the adapter changes {n_changed} of {job.rows}")
    work = {way: f"{flops[way] / 1e9:,.1f} | {flops[WAYS[0]] / flops[way]:.1f}" if flops else " | " for way in ways}
    middle = {way: statistics.median(of_rounds) for way, of_rounds in seconds.items()}
    return [
        f"| {job.model} | {job.rows} | {way} | {work[way]} | {middle[way]:.1f} | {middle[WAYS[0]] / middle[way]:.1f} |"
        for way in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=(*TINY, *SCALED), default=["tiny"])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 100, 500])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-batches", action="store_true", help=f"without {WAYS[1]!r}")
    parser.add_argument("--quick", action="store_true", help="tiny, 16 rows, one round")
    asked = parser.parse_args()
    models, sizes, rounds = (["tiny"], [16], 1) if asked.quick else (asked.models, asked.rows, asked.rounds)
    ways = [way for way in WAYS if not (asked.no_batches and way == WAYS[1])]
    lines = ["| model | rows in each arm | | GFLOP | times less | seconds | times less |", "|---" * 7 + "|"]
    for model in models:
        for n_rows in sizes:
            new = lines_of(Job(WAYS[0], model, n_rows), ways, rounds, count=n_rows == min(sizes))
            print("\n".join(new), file=sys.stderr, flush=True)
            lines += new
    print(f"\nthree arms, rounds: {rounds}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
