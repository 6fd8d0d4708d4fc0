"""vlmft trace: one sample through every stage, each executed and printed, supervised tokens coloured."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.config.tool_schema import TraceConfig
from vlmft.metrics import metric_named
from vlmft.run.build import Built, build
from vlmft.run.quiet import quiet_libraries
from vlmft.sample import SPLITS, Batch, EncodedRow, Image, Sample
from vlmft.training.loss import summed_cross_entropy

GREEN, GREY, BOLD, RESET = "\033[32m", "\033[90m", "\033[1m", "\033[0m"


def trace(config: TraceConfig, *, colour: bool | None = None) -> None:
    """Runs stages 0 to 9 for one row and prints each, in colour where a terminal reads it unless `colour` says.

    Raises:
        ConfigError: no such split or row.
    """
    quiet_libraries()
    built = build(config.model, config.data, config.trainer, seed=config.seed)
    stages = stages_of(built, config)
    if config.json:
        print(json.dumps(stages, indent=2, ensure_ascii=False, default=str))
        return
    paint = _Paint(sys.stdout.isatty() if colour is None else colour)
    for name, content in stages.items():
        print(paint.bold(name))
        for key, value in content.items():
            lines = paint.tokens(value) if key == "tokens" else str(value)
            print(f"  {key}: {lines}")


def stages_of(built: Built, config: TraceConfig) -> dict[str, dict[str, Any]]:
    """Stage -> what came out of it, JSON-ready."""
    if config.split not in SPLITS:
        raise ConfigError(f"split: Expected train, val or test, got {config.split!r}")
    ids = built.data.ids[config.split]  # type: ignore[index]
    if not 0 <= config.index < len(ids):
        raise ConfigError(f"index: Expected 0 to {len(ids) - 1}, the rows of {config.split}, got {config.index}")
    row_id = ids[config.index]
    record = built.data.dataset.read(row_id)
    sample = built.data.dataset.to_sample(record)
    row = built.family.encode(sample)
    batch = built.family.collate([row], "right", built.base).to(built.device)
    with torch.no_grad():
        features = built.family.image_features(built.base, batch.images, grad=False)
        logits = built.family.forward(built.base, batch, features, batch.keep)
    losses = [float(summed_cross_entropy(logits[i : i + 1], batch.targets[i : i + 1])) for i in range(len(logits))]
    prompt = built.family.encode_prompt(sample.id, sample.prompt)
    answer = built.answerer(EvaluationConfig()).answer_rows([prompt])[sample.id]
    score = metric_named(built.data.metric_name)(answer.text, sample.references)
    supervised = [built.family.show([int(i)]) for i in batch.targets]
    return {
        "0 index": {"split": config.split, "rows": len(ids), "id": row_id},
        "1 read": {key: _short(value) for key, value in record.items()},
        "2 render": _rendered(sample),
        "3 encode": _encoded(built, row),
        "4 collate": _collated(batch),
        "5 see": {f"image {i}": _tensor(feature) for i, feature in enumerate(features)},
        "6 forward": {"logits": _tensor(logits)},
        "7 learn": {
            "loss of each supervised token": [f"{t!r} {loss:.3f}" for t, loss in zip(supervised, losses, strict=True)],
            "mean": f"{sum(losses) / len(losses):.4f}",
        },
        "8 answer": {
            "text": repr(answer.text),
            **({"as the model wrote it": repr(answer.raw)} if answer.raw else {}),
            "finish": answer.finish,
            "new tokens": answer.n_new_tokens,
        },
        "9 score": {
            built.data.metric_name: score.value,
            "understood as": score.parsed,
            "references": sample.references,
        },
    }


def _rendered(sample: Sample) -> dict[str, Any]:
    messages = {
        f"message {i} ({m.role})": " ".join(f"<{p.name}>" if isinstance(p, Image) else repr(p) for p in m.content)
        for i, m in enumerate(sample.prompt.messages)
    }
    return {**messages, "answer": repr(sample.answer), "references": sample.references, "tags": dict(sample.tags)}


def _encoded(built: Built, row: EncodedRow) -> dict[str, Any]:
    tokens = [(built.family.show([int(i)]), bool(s)) for i, s in zip(row.input_ids, row.supervised, strict=True)]
    arrays = {f"image {i} {n}": list(a.shape) for i, image in enumerate(row.images) for n, a in image.arrays.items()}
    lengths = {"prompt tokens": row.prompt_length, "supervised tokens": row.n_supervised}
    return {**lengths, **arrays, "tokens": _runs(tokens)}


def _runs(tokens: list[tuple[str, bool]]) -> list[tuple[str, bool, int]]:
    """(token, supervised, how many in a row): a hundred image tokens are one entry."""
    runs: list[tuple[str, bool, int]] = []
    for text, supervised in tokens:
        if runs and runs[-1][:2] == (text, supervised):
            runs[-1] = (text, supervised, runs[-1][2] + 1)
        else:
            runs.append((text, supervised, 1))
    return runs


def _collated(batch: Batch) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "position_ids", "supervised")
    tensors: dict[str, torch.Tensor] = {name: getattr(batch, name) for name in names}
    tensors |= batch.token_arrays | batch.image_arrays
    return {"layout": batch.layout, **{name: _tensor(tensor) for name, tensor in tensors.items()}}


def _tensor(tensor: torch.Tensor) -> str:
    values = tensor.float()
    span = f"{values.min():.3g} to {values.max():.3g}" if tensor.numel() else "empty"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, {span}"


def _short(value: Any, length: int = 160) -> str:
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= length else text[:length] + "…"


@dataclass
class _Paint:
    colour: bool

    def bold(self, text: str) -> str:
        return f"{BOLD}{text}{RESET}" if self.colour else text

    def tokens(self, runs: list[tuple[str, bool, int]]) -> str:
        """Supervised tokens green, or in [brackets] where there is no colour; the others grey."""
        painted = []
        for text, supervised, count in runs:
            shown = text.replace("\n", "\\n") + (f"x{count}" if count > 1 else "")
            if self.colour:
                painted.append(f"{GREEN if supervised else GREY}{shown}{RESET}")
            else:
                painted.append(f"[{shown}]" if supervised else shown)
        return "|".join(painted)
