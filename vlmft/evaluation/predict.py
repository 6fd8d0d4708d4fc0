"""Stage 8: prompts in, answers out, appended to predictions/<arm>.jsonl. Nothing here receives a gold answer.

Batches are a function of the full row list, so that an interrupted evaluation repeats the same bytes. A batch that
does not fit the memory is answered in halves, each batch for itself, so that this does not depend on the ones before.
Several ranks are dealt the batches like cards and hand each other the answers, so that all of them go on with all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.failures import outlive_signals
from vlmft.config.files import append_synced, whole_lines
from vlmft.config.progress import Progress
from vlmft.evaluation.numbers import console, share
from vlmft.models.batches import Padding, by_length
from vlmft.models.family import Family
from vlmft.models.memory import or_none
from vlmft.models.prefix import Prefix
from vlmft.models.ranks import gathered, n_ranks, of_rank_0, rank
from vlmft.models.sharding import is_sharded, without_gradients
from vlmft.sample import Answer, BadRow, BadRowError, EncodedRow, Prompt, Question

MUCH_PADDING = 0.2
"""Of a batch's tokens: from there on it is worth a note."""

Refuse = Callable[[BadRow], None]


class EncodedQuestions(TorchDataset[tuple[EncodedRow | BadRow, int]]):
    """Questions as prompt ids, each with the number of examples that were dropped, in a worker."""

    def __init__(self, family: Family, questions: Sequence[Question]) -> None:
        self.family, self.questions = family, questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, position: int) -> tuple[EncodedRow | BadRow, int]:
        question = self.questions[position]
        reason = ""
        for dropped, prompt in enumerate((question.prompt, *question.shorter)):
            try:
                return self.family.encode_prompt(question.id, prompt), dropped
            except BadRowError as error:
                reason = str(error)
        return BadRow(question.id, reason), 0


def _as_list(rows: list[Any]) -> list[Any]:
    return rows


@contextlib.contextmanager
def in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; every module's own mode comes back, after an error, too."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass
class Answerer:
    """One loaded model that answers prompts, greedily and in left-padded batches."""

    family: Family
    model: PreTrainedModel
    rows_per_batch: int
    max_new_tokens: int
    refuse: Refuse
    """Gets the questions that cannot be asked."""
    workers: int = 0
    poll: Callable[[], None] = lambda: None
    """Called before each batch; raises where the run was asked to stop, on all ranks at once."""
    what: str = "answers"
    """What the progress of a long pass is called."""
    prefix: Prefix | None = None
    """What prompts begin with, computed once; a batch with a row that begins differently is computed whole."""
    tokens_per_batch: int | None = None
    """Padding and new tokens included: then prompts of like length go together."""
    padding: Padding = field(default_factory=Padding)
    """Of the batches so far."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides an answer beside prompt and weights. The batch size is among it: it can move rounding."""
        limits = {"rows_per_batch": self.rows_per_batch}
        limits |= {"tokens_per_batch": self.tokens_per_batch} if self.tokens_per_batch is not None else {}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": False, **limits}

    def cut(self, questions: Sequence[Question]) -> list[list[Question]]:
        """Batches, a function of all questions: in their order, or of like length where tokens limit a batch."""
        if self.tokens_per_batch is None:
            return [list(questions[i : i + self.rows_per_batch]) for i in range(0, len(questions), self.rows_per_batch)]
        image_tokens = functools.lru_cache(maxsize=None)(self.family.image_tokens)
        lengths = {question.id: self._n_tokens(question.prompt, image_tokens) for question in questions}
        limits = (self.rows_per_batch, self.tokens_per_batch)
        return by_length(questions, lambda asked: lengths[asked.id], lambda asked: asked.id, *limits)

    def _n_tokens(self, prompt: Prompt, image_tokens: Callable[[int, int], int]) -> int:
        """Of the prompt and its answer; no image is decoded where its file's header says its size."""
        try:
            images = sum(image_tokens(*image.size) - 1 for image in prompt.images)
            return self.family.prompt_tokens(prompt) + images + self.max_new_tokens
        except BadRowError:  # encoding it will say so
            return self.max_new_tokens

    def batches(self, questions: Sequence[Question], skip: Callable[[list[str]], bool]) -> Iterator[dict[str, Answer]]:
        """Answers by id, batch by batch; a batch for whose ids `skip` says True, as on every rank, is not asked."""
        open_cuts = [cut for cut in self.cut(questions) if not skip([question.id for question in cut])]
        # The layers of a sharded model are called by all ranks together: there each answers all batches.
        own, of_all = (0, 1) if is_sharded(self.model) else (rank(), n_ranks())
        own_cuts = open_cuts[own::of_all]
        flat = [question for cut in own_cuts for question in cut]
        numbers = iter(range(len(flat)))
        loader = DataLoader(
            EncodedQuestions(self.family, flat),
            batch_sampler=[[next(numbers) for _ in cut] for cut in own_cuts],
            num_workers=self.workers,
            worker_init_fn=outlive_signals,
            collate_fn=_as_list,
            generator=torch.Generator(),  # its own, so that asking does not move the global one
        )
        quiet_seconds = math.inf if rank() else None
        with Progress(self.what, sum(map(len, open_cuts)), quiet_seconds) as progress:
            own_batches = iter(loader)
            for _ in range(math.ceil(len(open_cuts) / of_all)):
                self.poll()
                answered = self._answered(next(own_batches, []))
                for answers, bad in gathered(answered) if of_all > 1 else [answered]:
                    for row in bad:
                        self.refuse(row)
                    progress.advance(len(answers) + len(bad))
                    if answers:
                        yield answers

    def _answered(self, rows: Sequence[tuple[EncodedRow | BadRow, int]]) -> tuple[dict[str, Answer], list[BadRow]]:
        """The answers of a batch, by id, and the rows of it that cannot be asked."""
        good = [row for row, _ in rows if isinstance(row, EncodedRow)]
        dropped = {row.id: n for row, n in rows if n}
        answers = self.answer_rows(good) if good else {}
        with_drops = {i: replace(answer, shots_dropped=dropped.get(i, 0)) for i, answer in answers.items()}
        return with_drops, [row for row, _ in rows if isinstance(row, BadRow)]

    def answer_rows(self, rows: Sequence[EncodedRow]) -> dict[str, Answer]:
        """Answers of one batch, by id; in halves where it does not fit the memory.

        Raises:
            ConfigError: there is no memory for one row.
        """
        with in_eval_mode(self.model):
            ids = or_none(lambda: self._generated(rows))
        if ids is not None:
            return {row.id: self._answer(new, row) for row, new in zip(rows, ids, strict=True)}
        if len(rows) == 1:
            raise ConfigError(
                f"row {rows[0].id}: Expected memory to answer one row of {rows[0].length} tokens, ran out; lower "
                "data.max_new_tokens or model.max_length_tokens, or take a larger device"
            )
        print(f"out of memory with {len(rows)} prompts at once; they are answered in halves", file=sys.stderr)
        middle = (len(rows) + 1) // 2
        return {**self.answer_rows(rows[:middle]), **self.answer_rows(rows[middle:])}

    def _generated(self, rows: Sequence[EncodedRow]) -> list[list[int]]:
        self.padding.add([row.length for row in rows])
        # Without autocast: a Trainer's precision, which Lightning applies to its test loop, moves no answer.
        with without_gradients(self.model), torch.autocast(self.model.device.type, enabled=False):
            if self.prefix is not None and all(map(self.prefix.begins, rows)):
                after = self.prefix.generate(self.family, self.model, rows, self.max_new_tokens)
                return cast(list[list[int]], after.tolist())
            batch = self.family.collate(rows, "left", self.model).to(self.model.device)
            features = self.family.image_features(self.model, batch.images, grad=False)
            ids: list[list[int]] = self.family.generate(self.model, batch, features, self.max_new_tokens).tolist()
        return ids

    def _answer(self, ids: list[int], row: EncodedRow) -> Answer:
        stopped = self.family.end_id in ids
        ids = ids[: ids.index(self.family.end_id)] if stopped else ids
        size = row.marked_size
        text, raw = (self.family.decode(ids), "") if size is None else self.family.decode_marks(ids, size)
        return Answer(text, "stop" if stopped else "length", len(ids), raw=raw)


class PredictionFile:
    """predictions/<arm>.jsonl: a row an answer. Rows of another key are refused, a torn last line is cut off.

    Rank 0 reads and writes it; the others have the same rows.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path, self.key = path, dict(key)
        self.rows: dict[str, dict[str, Any]] = {}
        if rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fresh:
                path.unlink(missing_ok=True)
            if path.exists():
                self._read()
        self.rows = of_rank_0(self.rows)

    def _read(self) -> None:
        for line in whole_lines(self.path):
            row = self._parsed(line)
            stored = {name: row.get(name) for name in self.key}
            if stored != self.key:
                odd = next(name for name in self.key if stored[name] != self.key[name])
                raise ConfigError(
                    f"{self.path}: Expected answers with {odd}={self.key[odd]!r}, got {stored[odd]!r}; "
                    "answers of two kinds are never mixed: set fresh=true to generate all anew, or use another name"
                )
            self.rows[row["id"]] = row

    def _parsed(self, line: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
        raise ConfigError(
            f"{self.path}: Expected a line with an answer, got {line[:40]!r}; the file is damaged: set fresh=true to "
            "generate all answers anew"
        )

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows and syncs, so that what is answered stays answered.

        Raises:
            OSError: such as on a full disk; the file ends after the last whole row.
        """
        full = [{**row, **self.key} for row in rows]
        lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in full)
        if rank() == 0:
            append_synced(self.path, lines.encode())
        self.rows.update({row["id"]: row for row in full})


@dataclass(frozen=True)
class Predictions:
    """One arm's answers."""

    answers: dict[str, Answer]
    seconds: float
    """Spent generating in this process; 0 where all answers were read from the file."""
    generated: int
    """Answers made in this process; the others were there already."""


def predict(questions: Sequence[Question], answerer: Answerer, file: PredictionFile) -> Predictions:
    """Every question answered and on disk. A batch of which some answers are missing is asked again as a whole."""
    prompts = {question.id: question for question in questions}
    for row_id, row in file.rows.items():
        if row_id in prompts and row["prompt_sha256"] != _asked(prompts[row_id], row.get("shots_dropped", 0)).sha256:
            raise ConfigError(f"{file.path}: row {row_id} was asked another question; set fresh=true to start anew")
    started, generated = time.perf_counter(), 0
    for batch in answerer.batches(questions, skip=lambda ids: all(row_id in file.rows for row_id in ids)):
        new = {row_id: answer for row_id, answer in batch.items() if row_id not in file.rows}
        file.append([_row(prompts[row_id], answer) for row_id, answer in new.items()])
        generated += len(new)
    seconds = time.perf_counter() - started if generated else 0.0
    stored = {row_id: file.rows[row_id] for row_id in prompts if row_id in file.rows}
    answers = {
        row_id: Answer(row["text"], row["finish"], row["n_new_tokens"], row.get("shots_dropped", 0), row.get("raw", ""))
        for row_id, row in stored.items()
    }
    return Predictions(answers, seconds, generated)


def _asked(question: Question, shots_dropped: int) -> Prompt:
    return (question.prompt, *question.shorter)[shots_dropped]


def _row(question: Question, answer: Answer) -> dict[str, Any]:
    asked = _asked(question, answer.shots_dropped)
    return {
        "id": question.id,
        "image_sha256": [image.sha256 for image in asked.images],
        "prompt_sha256": asked.sha256,
        "text": answer.text,
        "finish": answer.finish,
        "n_new_tokens": answer.n_new_tokens,
        **({"shots_dropped": answer.shots_dropped} if answer.shots_dropped else {}),
        **({"raw": answer.raw} if answer.raw else {}),
    }


def padding_note(name: str, answerer: Answerer) -> str:
    """A sentence where batches in the order of the rows were largely padding."""
    if answerer.tokens_per_batch is not None or answerer.padding.share < MUCH_PADDING:
        return ""
    return (
        f"{name}: {console(share(answerer.padding.share))} of the tokens in its batches of prompts were padding; "
        "evaluation.tokens_per_batch=auto puts prompts of like length together"
    )
