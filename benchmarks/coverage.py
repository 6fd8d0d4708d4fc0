"""python -m benchmarks.coverage: what works on which architecture, each mark from a run, into docs/models.md.

Every architecture of transformers' image-text-to-text mapping stands there: with marks, or with the reason that it is
refused for. Tiny models with random weights, fp32 on a CPU, some minutes. `--check` compares with what the page says;
what 16 bit change in a merged model is printed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from benchmarks.architecture_checks import COLUMNS, Case
from benchmarks.tiny_models import MODELS, REFUSED, save, save_moondream2
from benchmarks.tiny_more import MORE
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig
from vlmft.models.load import load_source
from vlmft.models.support import refusal
from vlmft.run.quiet import quiet_libraries
from vlmft.sample import BadRowError

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
FAILURES = (AssertionError, BadRowError, ConfigError, RuntimeError, ValueError, TypeError, AttributeError, KeyError)
TRIED = {tiny.model_type: tiny.name for tiny in (*MODELS, *MORE)}
"""model_type -> name, of those with a tiny model."""
NOT_TRIED = "not tried"


def cases(root: Path) -> Iterator[tuple[str, Case]]:
    """Each with its model_type."""
    for number, tiny in enumerate((*MODELS, *MORE)):
        folder = root / str(number)
        save(tiny, folder)
        yield tiny.model_type, Case(tiny.name, folder, list(tiny.targets))
    save_moondream2(root / "moondream2")
    yield "moondream1", Case("moondream2", root / "moondream2", ["qkv", "proj", "fc1", "fc2"])


def marks(case: Case) -> list[str]:
    found = []
    for name, check in COLUMNS.items():
        try:
            check(case)
            found.append("yes")
        except FAILURES as error:
            print(f"{case.name}, {name}: {type(error).__name__}: {error}", file=sys.stderr)
            found.append("no")
    coordinates = case.load()[1].coordinates
    return [*found, "none" if coordinates is None else f"`{coordinates.name}`"]


def refusals(root: Path) -> Iterator[tuple[str, str]]:
    """What is said of models that are refused, by their config.json alone."""
    for name, config in REFUSED.items():
        (root / "config.json").write_text(json.dumps(config))
        try:
            load_source(ModelConfig(name="x", path=str(root), init=Init.random))
        except ConfigError as error:
            yield name, str(error).partition("; this model ")[2]


def mapping() -> dict[str, str]:
    """Each model_type of transformers' mapping -> why it is refused; "" for those that were tried."""
    found = {}
    for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        found[kind] = refusal(AutoConfig.for_model(kind)) or ("" if kind in TRIED else NOT_TRIED)
    return found


def count() -> str:
    """How many of the mapping work, are refused and were not tried, in words; and a table of the reasons."""
    reasons = mapping()
    by_reason: dict[str, list[str]] = {}
    for kind, reason in reasons.items():
        by_reason.setdefault(reason, []).append(f"`{kind}`")
    work, not_tried = by_reason.pop(""), by_reason.pop(NOT_TRIED, [])
    n_refused = sum(map(len, by_reason.values()))
    lines = [
        f"Of the {len(reasons)} architectures of the image-text-to-text mapping of transformers "
        f"{transformers.__version__}, {len(work)} work, {n_refused} are refused and {len(not_tried)} were not tried:",
        "",
        "| refused: this model ... | how many | which |",
        "|---|---|---|",
    ]
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    lines += [f"| {reason} | {len(kinds)} | {', '.join(kinds)} |" for reason, kinds in ordered]
    if not_tried:
        lines.append(
            f"| not refused, and not tried: no tiny model was made | {len(not_tried)} | {', '.join(not_tried)} |"
        )
    return "\n".join(lines)


def tables() -> str:
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"| model | `model_type` | {' | '.join(COLUMNS)} | boxes |", "|---" * (len(COLUMNS) + 3) + "|"]
        for kind, case in cases(Path(folder)):
            lines.append(f"| {case.name} | `{kind}` | {' | '.join(marks(case))} |")
            print(lines[-1], file=sys.stderr)
        lines += ["", "| refused | this model ... |", "|---|---|"]
        lines += [f"| {name} | {sentence} |" for name, sentence in refusals(Path(folder))]
    return "\n".join([*lines, "", count()])


def main() -> None:
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    quiet_libraries()
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    new = f"{head}{BEGIN}\n{tables()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == text else f"{PAGE} says something else; run python -m benchmarks.coverage")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
