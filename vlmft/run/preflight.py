"""Before training, in seconds: would this run learn what it is meant to learn, from what it is meant to see?

Every check is one that a published experiment failed: answers cut or shifted, whole prompts in the loss, adapters
without gradients, images that never reached the model, gold answers in the evaluation prompt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, TrainConfig, Tuning
from vlmft.evaluation.canaries import canary_on
from vlmft.evaluation.prompts import blanked
from vlmft.models.load import storage_dtype
from vlmft.models.loaded import LoadedModel
from vlmft.models.lora import trainable, tuned_parts, unused_gradient_names
from vlmft.models.memory_check import rows_at_once
from vlmft.run.build import Built
from vlmft.sample import BadRowError, EncodedRow, Sample, read_marks
from vlmft.training.loss import summed_cross_entropy

LOOKED_AT = 64
"""Training rows that are encoded to find the longest."""
FAR_ABOVE_CHANCE = 1.5
"""A small model off its field is wrong with confidence, just above ln V (measured: 7.0 against 6.6 on charts); beyond
this factor the set-up is wrong."""
LEAST_VOCABULARY = 50_000
"""A smaller one does not make a model less confident: the tiny model on photographs starts at 12.4, its ln V is 6.6."""
HARDLY = 0.01
"""Share of a loss by which two differ too little to be shown by a few rows."""
LR_RANGE = {Tuning.lora: (1e-6, 1e-2), Tuning.full: (1e-7, 3e-3)}


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    sentence: str
    is_news: bool = False
    """Whether it says something to know although it passed."""


def preflight(built: Built, config: TrainConfig) -> list[Check]:
    """All checks. Leaves weights, gradients, modes and random numbers as they were."""
    rows, samples = _rows(built)
    checks = [_supervised(built, rows[:8], samples[:8])]
    with _undisturbed(built):
        checks.append(_first_loss(built, config, rows[:8]))
        checks.append(_gradients(built, config, rows[:2]))
        checks += _images(built, rows, samples)
        checks.append(_longest(built, config, rows))
    checks.append(_learning_rate(config))
    n_rows = config.evaluation.canary_rows
    rows_asked = built.rows("train", config.evaluation, n_rows)
    canary = canary_on(built, built.answerer(config.evaluation), rows_asked, n_rows)
    if canary is not None:
        checks.append(Check("leak canary", canary.ok, canary.sentence))
    return checks


def require(checks: Sequence[Check]) -> None:
    """
    Raises:
        ConfigError: a check failed; names them all.
    """
    failed = [f"{check.name}: {check.sentence}" for check in checks if not check.ok]
    if failed:
        raise ConfigError("preflight: " + "; ".join(failed) + " (preflight=false trains anyway)")


def _rows(built: Built) -> tuple[list[EncodedRow], list[Sample]]:
    ids = built.data.ids["train"]
    if not ids:
        raise ConfigError("data: the training split has no rows; choose other splits or correct the data")
    rows, samples = [], []
    for row_id in ids[:: max(1, len(ids) // LOOKED_AT)][:LOOKED_AT]:
        for sample in built.data.samples([row_id]):
            with contextlib.suppress(BadRowError):  # it enters the ledger when its window comes
                rows.append(built.family.encode(sample))
                samples.append(sample)
    if not rows:
        raise ConfigError(f"data: none of {min(len(ids), LOOKED_AT)} training rows fits this model; see the ledger")
    return rows, samples


@contextlib.contextmanager
def _undisturbed(model: LoadedModel) -> Iterator[None]:
    modes = {module: module.training for module in model.model.modules()}
    with torch.random.fork_rng():
        yield
    model.model.zero_grad(set_to_none=True)
    for module, mode in modes.items():
        module.training = mode


@contextlib.contextmanager
def _adapters_off(model: LoadedModel) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.model.parameters()]
    with model.model.disable_adapter() if isinstance(model.model, PeftModel) else contextlib.nullcontext():
        yield
    for parameter, flag in flags:  # trap: PEFT makes every adapter trainable when it switches them on again
        parameter.requires_grad_(flag)


def _loss(model: LoadedModel, rows: Sequence[EncodedRow], *, grad: bool = False) -> torch.Tensor:
    batch = model.family.collate(rows, "right", model.base).to(model.device)
    dtype = storage_dtype(model.device)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        features = model.family.image_features(model.base, batch.images, grad=grad)
        logits = model.family.forward(model.base, batch, features, batch.keep)
    return summed_cross_entropy(logits, batch.targets) / len(batch.targets)


def _backward(model: LoadedModel, rows: Sequence[EncodedRow], *, grad: bool) -> None:
    loss = _loss(model, rows, grad=grad)
    if loss.requires_grad:  # otherwise no parameter gets a gradient, which `_gradients` reports
        loss.backward()  # type: ignore[no-untyped-call]


def _supervised(model: LoadedModel, rows: Sequence[EncodedRow], samples: Sequence[Sample]) -> Check:
    texts = [repr(model.family.show(row.input_ids[row.supervised].tolist())) for row in rows[:2]]
    for row, sample in zip(rows, samples, strict=True):
        if problem := _mislabelled(model, row, sample):
            return Check("learns", False, f"row {row.id} {problem}")
    return Check(
        "learns", True, f"the loss is on answers and their end alone, such as {' and '.join(texts)}", is_news=True
    )


def _mislabelled(model: LoadedModel, row: EncodedRow, sample: Sample) -> str | None:
    """What is wrong with a row's ids: they must be the prompt as generation uses it, then the answer, then the end."""
    prompt = model.family.encode_prompt(sample.id, sample.prompt)
    length = prompt.prompt_length
    if row.prompt_length != length or (row.input_ids[:length] != prompt.input_ids).any():
        return "is trained under another prompt than generation uses"
    if (row.supervised != (np.arange(row.length) >= length)).any():
        return f"has its loss on {model.family.show(row.input_ids[row.supervised].tolist())!r}, not on its answer alone"
    if row.n_supervised < 2 or row.input_ids[-1] != model.family.end_id:
        return f"ends in {model.family.show(row.input_ids[-1:].tolist())!r}, not in the end token"
    answer = row.input_ids[length:-1].tolist()
    if row.marked_size is not None:
        learned = model.family.decode_marks(answer, row.marked_size)[0]
        same = _same_marks(learned, sample.answer, row.marked_size)
        return None if same else f"teaches {learned!r}, while its answer is {sample.answer!r}"
    learned = model.family.decode(answer)
    if _bare(learned) != _bare(sample.answer):
        return f"teaches {learned!r}, while its answer is {sample.answer!r}"
    return None


def _same_marks(learned: str, answer: str, size: tuple[int, int]) -> bool:
    """Whether boxes or points are the same within a two-hundredth of the picture, which a grid may round them by."""
    taught, meant = read_marks(learned) or (), read_marks(answer) or ()
    if len(taught) != len(meant):
        return False
    near = max(1, max(size) / 200)
    return all(
        _bare(one.label) == _bare(other.label)
        and len(one.numbers) == len(other.numbers)
        and all(abs(a - b) <= near for a, b in zip(one.numbers, other.numbers, strict=True))
        for one, other in zip(taught, meant, strict=True)
    )


def _bare(text: str) -> str:
    """Without white space, letter case and forms of width, which a tokenizer may change."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _first_loss(model: LoadedModel, config: TrainConfig, rows: Sequence[EncodedRow]) -> Check:
    model.model.eval()
    with torch.no_grad():
        first = float(_loss(model, rows))
        with _adapters_off(model):
            base = float(_loss(model, rows))
    chance = math.log(model.base.get_output_embeddings().weight.shape[0])  # type: ignore[union-attr]
    same = math.isclose(first, base, rel_tol=1e-6)  # B is zero, and adding zeros rounds nothing
    ceiling = FAR_ABOVE_CHANCE * max(chance, math.log(LEAST_VOCABULARY))
    sane = math.isfinite(first) and (first < ceiling or config.model.init == Init.random)
    text = f"{first:.3f} a token of the answers, untuned; guessing any token alike gives {chance:.3f}"
    if not same:
        text += f"; new adapters must not change the base, which has {base:.3f}"
    if not sane:
        text += "; far worse than chance: template, labels or weights are wrong"
    elif first > chance:
        text += "; the model expects other answers than these: it was never trained on anything like them"
    return Check("first loss", same and sane, text, first > chance)


def _gradients(model: LoadedModel, config: TrainConfig, rows: Sequence[EncodedRow]) -> Check:
    parts = config.model.train
    grad = not {"vision", "connector"} <= set(tuned_parts(parts, Tuning.frozen))
    names = trainable(model.model)
    still = [name for name, _ in model.model.named_parameters() if ".lora_" in name and name not in names]
    problems = [f"{len(still)} adapter matrices are frozen ({still[0]})"] if still else []
    problems += [] if names else ["nothing is trained"]
    unused: list[list[str]] = []
    for moment in ("at first", "after an evaluation pass"):
        model.model.train()
        model.model.zero_grad(set_to_none=True)
        _backward(model, rows, grad=grad)
        odd = unused_gradient_names(model.model)
        unused.append(odd.pop("unused"))
        problems += [
            f"{moment} {len(found)} {kind.replace('_', ' ')} gradient ({found[0]})"
            for kind, found in odd.items()
            if found
        ]
        still = [n for n, p in names.items() if "lora_B" in n and p.grad is not None and not p.grad.any()]
        problems += [f"{moment} {len(still)} adapters with a zero gradient ({still[0]})"] if still else []
        model.model.eval()
        with torch.no_grad():
            _loss(model, rows)
    first, after = unused
    if lost := [name for name in after if name not in first]:
        problems.append(f"after an evaluation pass {len(lost)} more trainable without gradient ({lost[0]})")
    n_used = f"all {len(names)}" if not first else f"{len(names) - len(first):,} of {len(names):,}"
    found = "; ".join(problems) or f"on {n_used} trained tensors, on nothing else, also after an evaluation pass"
    if first and not problems:
        found += f"; the model makes no use of the others ({first[0]})"
    return Check("gradients", not problems, found, is_news=bool(first))


def _images(model: LoadedModel, rows: Sequence[EncodedRow], samples: Sequence[Sample]) -> list[Check]:
    shown = [(row, sample) for row, sample in zip(rows[:8], samples[:8], strict=True) if sample.prompt.images]
    if not shown:
        return []
    black = [model.family.encode(dataclasses.replace(s, prompt=blanked(s.prompt))) for _, s in shown]
    model.model.eval()
    with torch.no_grad():
        real, blank = float(_loss(model, [row for row, _ in shown])), float(_loss(model, black))
    text = f"loss {real:.3f} with the images, {blank:.3f} with black ones (untuned, on {len(shown)} rows)"
    if math.isclose(real, blank, rel_tol=1e-6):
        return [Check("images arrive", False, f"{text}: the model does not see them")]
    if math.isclose(real, blank, rel_tol=HARDLY):
        meaning = "they hardly change it, so the model has yet to learn to use them"
    elif real > blank:
        meaning = "the loss is lower without them, so the model has yet to learn to use them"
    else:
        return [Check("images arrive", True, f"{text}: they lower it")]
    return [Check("images arrive", True, f"{text}: {meaning}", is_news=True)]


def _longest(model: LoadedModel, config: TrainConfig, rows: Sequence[EncodedRow]) -> Check:
    longest = max(rows, key=lambda row: row.length)
    n_rows = rows_at_once(config.train, longest.length)
    text = f"{n_rows} rows of {longest.length} tokens (the longest of {len(rows)} looked at) go through at once"
    grad = not {"vision", "connector"} <= set(tuned_parts(config.model.train, Tuning.frozen))
    model.model.train()
    try:
        _backward(model, [longest] * n_rows, grad=grad)
    except torch.OutOfMemoryError:
        return Check("longest row", False, f"{text.replace('go', 'do not go')}; lower train.rows_per_batch")
    return Check("longest row", True, text)


def _learning_rate(config: TrainConfig) -> Check:
    lr: Any = config.train.lr
    tunings = [getattr(config.model.train, part) for part in ("language", "connector", "vision")]
    tuning = Tuning.full if Tuning.full in tunings else Tuning.lora
    low, high = LR_RANGE[tuning]
    text = f"{lr:g} for {tuning.name}; usual are {low:g} to {high:g}"
    return Check("learning rate", low <= lr <= high, text)
