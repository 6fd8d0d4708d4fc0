"""What a GPU computes is what a CPU computes, and how often the loop waits for it. `pytest -m gpu` on such a machine.

VLMFT_TEST_DEVICE=cpu runs them without one, which shows that they run and nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.config.schema import TrainConfig
from vlmft.models.features import groups_to_see
from vlmft.models.lora import trainable
from vlmft.run.build import Built, build, resolved
from vlmft.run.module import make_module
from vlmft.run.train import train
from vlmft.training.module import VLMModule

DEVICE = os.environ.get("VLMFT_TEST_DEVICE", "gpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "gpu" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]
MODELS = ("tiny", "tiny_qwen2vl")
SMALL = ("model.quantization.mode=none", "data.options.train_rows=64", "data.limit_val=8", "data.limit_test=16")
Compose = Callable[..., TrainConfig]


def built_on(device: str, compose: Compose, name: str, *overrides: str) -> tuple[Built, VLMModule]:
    settings = (f"model={name}", *SMALL, f"trainer.accelerator={device}", "trainer.precision=32-true", *overrides)
    config = resolved(compose(*settings)).config
    built = build(config.model, config.data, config.trainer, seed=0, train=config.train)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(built.model).values():  # B of LoRA is zero at first, and A has no gradient then
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    module = make_module(built, config)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment, misc]
    return built, module.to(built.device)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_a_cpu(name: str, compose: Compose) -> None:
    """Within 1e-4, relative, in fp32 (matmuls at full precision): sums are rounded in another order, layer by layer."""
    found = []
    for device in ("cpu", DEVICE):
        built, module = built_on(device, compose, name)
        rows = [built.data.encode(sample) for sample in built.data.samples(built.data.ids["train"][:8])]
        loss = float(module.window_backward(rows))  # type: ignore[arg-type]
        grads = {n: p.grad.cpu() for n, p in trainable(built.model).items() if p.grad is not None}
        found.append((loss, torch.cat([grads[n].flatten() for n in sorted(grads)])))
    (loss, grad), (other_loss, other_grad) = found
    assert other_loss == pytest.approx(loss, rel=1e-4)
    assert float((grad - other_grad).norm() / grad.norm()) < 1e-4 and float(grad.norm()) > 0


@pytest.mark.parametrize("name", MODELS)
def test_images_together_and_alone(name: str, compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """The difference that a batch makes to a feature is printed; 1e-3 of the largest value in fp32 is allowed."""
    built, _ = built_on(DEVICE, compose, name)
    rows = [built.data.encode(sample) for sample in built.data.samples(built.data.ids["train"][:8])]
    images = [image for row in rows for image in row.images]  # type: ignore[union-attr]
    alone = [built.family.image_features(built.base, [image], grad=False)[0] for image in images]
    together = built.family.image_features(built.base, images, grad=False)
    largest = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(alone, together, strict=True))
    with capsys.disabled():
        n_groups = len(groups_to_see(images, built.device))
        print(f"\n{name}: {len(images)} images in {n_groups} groups differ from each alone by at most {largest:.1e}")
    assert largest <= 1e-3


def test_how_often_a_window_waits(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed; what this program adds to the library's own waits is counted on a CPU in tests/training."""
    built, module = built_on(DEVICE, compose, "tiny")
    rows = [built.data.encode(sample) for sample in built.data.samples(built.data.ids["train"][:8])]
    module.window_backward(rows)  # type: ignore[arg-type]  # warm
    if DEVICE == "gpu":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            module.window_backward(rows)  # type: ignore[arg-type]
    finally:
        if DEVICE == "gpu":
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]
    with capsys.disabled():
        print(f"\n{len(waits)} waits in a window: {', '.join(waits) or 'none'}")
    assert not [place for place in waits if place.startswith("module.py")]


@pytest.mark.parametrize("full", ["", "language", "connector", "vision"])
def test_a_run_to_its_report(full: str, compose: Compose, tmp_path: Path) -> None:
    """With adapters alone, and with a part that is trained in full: then weights are of two dtypes."""
    settings: tuple[Any, ...] = ("model=tiny", *SMALL[1:], f"trainer.accelerator={DEVICE}", "logger=none")
    if full:
        settings += (f"model.train.{full}=full", "model.quantization.mode=none")
    folder = train(compose(*settings, "data.limit_train=48", f"output_root={tmp_path}"))
    assert (folder / "report.html").is_file() and (folder / "summary.json").is_file()
