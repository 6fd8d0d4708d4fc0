"""python -m benchmarks.coverage: what works on which architecture, each mark from a run, into docs/models.md.

Tiny models with random weights, fp32 on a CPU, about two minutes. `--check` compares with what the page says.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, PreTrainedModel

from benchmarks.tiny_models import MODELS, REFUSED, make_louder, save, save_moondream2
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, LoraConfig, ModelConfig, PartsConfig, QuantizationConfig, QuantizationMode, Tuning
from vlmft.models.family import Family, make_family
from vlmft.models.load import load_model, load_source
from vlmft.models.lora import attach, base_of, trainable, unused_gradient_names
from vlmft.models.merge import merged
from vlmft.run.quiet import quiet_libraries
from vlmft.sample import EncodedRow, Image, Message, Prompt, Sample
from vlmft.training.loss import summed_cross_entropy

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
CPU = torch.device("cpu")
ROUNDING = 1e-5
FAILURES = (AssertionError, ConfigError, RuntimeError, ValueError, TypeError, AttributeError, KeyError)


def picture(width: int, height: int, seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(number: int, width: int, height: int, question: str, answer: str) -> Sample:
    image = Image(partial(picture, width, height, number), f"noise {number}")
    return Sample(f"row {number}", Prompt((Message("user", (image, question)),)), answer, (answer,))


SAMPLES = (
    sample(1, 96, 60, "How many items are there?", "7"),
    sample(2, 40, 80, "Which has more: red or blue?", "the second"),
    sample(3, 64, 64, "Сколько красных?", "Это 4."),
)


@dataclass
class Case:
    """One architecture on disk."""

    name: str
    folder: Path
    targets: list[str]
    family_class: str = "generic"

    def load(self, mode: str = "none", **parts: Tuning) -> tuple[ModelConfig, Family, PreTrainedModel]:
        config = ModelConfig(
            name="x",
            path=str(self.folder),
            family=self.family_class,
            init=Init.random,
            quantization=QuantizationConfig(mode=QuantizationMode[mode]),
            train=PartsConfig(**parts),
            lora=LoraConfig(target_modules=self.targets),
        )
        source, model_config = load_source(config)
        family = make_family(config, source, model_config)
        return config, family, load_model(config, source, model_config, CPU, seed=0)


def window(family: Family, model: torch.nn.Module, rows: list[EncodedRow]) -> torch.Tensor:
    base = base_of(model)  # type: ignore[arg-type]
    batch = family.collate(rows, "right", base)
    features = family.image_features(base, batch.images, grad=False)
    return summed_cross_entropy(family.forward(base, batch, features, batch.keep), batch.targets)


def trains(case: Case, mode: str, tuning: Tuning) -> None:
    """Five windows lower the loss; what is trained has gradients, nothing else does."""
    config, family, base = case.load(mode, language=tuning)
    model = attach(base, config, seed=0)
    optimizer = torch.optim.Adam(trainable(model).values(), lr=5e-3 if tuning == Tuning.lora else 1e-3)
    rows = [family.encode(sample) for sample in SAMPLES]
    losses = []
    for _ in range(5):
        model.train()
        loss = window(family, model, rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        unused = unused_gradient_names(model)
        assert not unused["frozen_with"] and (tuning == Tuning.full or not unused["trainable_without"])
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def generates(case: Case) -> None:
    """Greedy answers in a left-padded batch equal those of each prompt alone."""
    _, family, model = case.load()
    make_louder(model)
    prompts = [family.encode_prompt(sample.id, sample.prompt) for sample in SAMPLES]

    def answers(rows: list[EncodedRow]) -> list[list[int]]:
        batch = family.collate(rows, "left", model)
        with torch.inference_mode():
            features = family.image_features(model, batch.images, grad=False)
            return [list(ids) for ids in family.generate(model, batch, features, 8).tolist()]

    assert answers(prompts) == [answers([prompt])[0] for prompt in prompts]


def exports(case: Case) -> None:
    """The adapter merged in, stored and read by plain transformers: the loss is the tuned model's within 1e-5."""
    config, family, base = case.load()
    model = attach(base, config, seed=0)
    assert isinstance(model, PeftModel)
    rows = [family.encode(sample) for sample in SAMPLES]
    window(family, model, rows).backward()  # type: ignore[no-untyped-call]
    untuned = float(window(family, model, rows).detach())
    torch.optim.SGD(trainable(model).values(), lr=0.5).step()
    model.eval()
    tuned = float(window(family, model, rows).detach())
    assert abs(tuned - untuned) > ROUNDING
    with tempfile.TemporaryDirectory() as folder:
        merged(model).save_pretrained(folder)
        plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    assert abs(float(window(family, plain, rows).detach()) - tuned) < ROUNDING * max(1.0, tuned)


COLUMNS: dict[str, Callable[[Case], None]] = {
    "lora": lambda case: trains(case, "none", Tuning.lora),
    "qlora": lambda case: trains(case, "nf4", Tuning.lora),
    "full": lambda case: trains(case, "none", Tuning.full),
    "generate": generates,
    "export": exports,
}


def cases(root: Path) -> Iterator[Case]:
    for number, tiny in enumerate(MODELS):
        folder = root / str(number)
        save(tiny, folder)
        yield Case(tiny.name, folder, ["q_proj", "v_proj", "down_proj"])
    save_moondream2(root / "moondream2")
    yield Case("moondream2", root / "moondream2", ["qkv", "proj", "fc1", "fc2"])


def marks(case: Case) -> list[str]:
    found = []
    for name, check in COLUMNS.items():
        try:
            check(case)
            found.append("yes")
        except FAILURES as error:
            print(f"{case.name}, {name}: {type(error).__name__}: {error}", file=sys.stderr)
            found.append("no")
    return found


def refusals(root: Path) -> Iterator[tuple[str, str]]:
    """What is said of models that are refused, by their config.json alone."""
    for name, config in REFUSED.items():
        (root / "config.json").write_text(json.dumps(config))
        try:
            load_source(ModelConfig(name="x", path=str(root), init=Init.random))
        except ConfigError as error:
            yield name, str(error).partition("; this model ")[2]


def tables() -> str:
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"| model | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for case in cases(Path(folder)):
            lines.append(f"| {case.name} | {' | '.join(marks(case))} |")
            print(lines[-1], file=sys.stderr)
        lines += ["", "| refused | this model ... |", "|---|---|"]
        lines += [f"| {name} | {sentence} |" for name, sentence in refusals(Path(folder))]
    return "\n".join(lines)


def main() -> None:
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
