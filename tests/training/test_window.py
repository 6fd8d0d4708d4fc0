"""The optimiser window is the unit of training: how it is cut into batches changes nothing but rounding."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlmft.sample import EncodedRow
from vlmft.training.loss import summed_cross_entropy
from vlmft.training.module import VLMModule, cut

# A gradient here is a sum over about 300 positions in fp32, whose relative spacing is 1.2e-7: adding in another order,
# or in matrix products of another height, moves the last bits of each term independently. Measured: 0 to 2.4e-7.
TOLERANCE = 1e-6

CUTS: dict[str, dict[str, Any]] = {
    "4 + 4": {"rows_per_batch": 4},
    "5 + 3": {"rows_per_batch": 5},
    "1 each": {"rows_per_batch": 1},
    "by tokens": {"rows_per_batch": 8, "tokens_per_batch": 130},
    "fewer tokens than a row": {"rows_per_batch": 8, "tokens_per_batch": 1},
}


@pytest.mark.parametrize("name", CUTS)
def test_cutting_a_window_changes_nothing(name: str, bench: Any, gradients: Any, distance: Any) -> None:
    rows = bench.rows()
    assert len({row.n_supervised for row in rows}) > 3
    whole_loss, whole = gradients(bench.module(rows_per_batch=8), rows)
    module = bench.module(**CUTS[name])
    assert len(module.batches(rows)) > 1
    loss, found = gradients(module, rows)
    assert loss == pytest.approx(whole_loss, rel=TOLERANCE)
    assert distance(whole, found) < TOLERANCE


def test_order_of_the_rows_changes_nothing(bench: Any, gradients: Any, distance: Any) -> None:
    rows, module = bench.rows(), bench.module(rows_per_batch=3)
    _, one = gradients(module, rows)
    _, other = gradients(module, rows[::-1])
    assert distance(one, other) == 0.0  # `cut` sorts them, so that it is the same computation


class MeanOfMeans(VLMModule):
    """The defect: each batch's own mean, then the mean of those. A token of a short answer weighs more."""

    def window_backward(self, rows: Sequence[EncodedRow]) -> torch.Tensor:
        batches = self.batches(rows)
        total = torch.zeros(())
        for batch in batches:
            loss = self.loss_sum(batch) / len(batch.targets) / len(batches)
            self.manual_backward(loss)
            total += loss.detach()
        return total


def test_a_mean_of_batch_means_is_seen(bench: Any, gradients: Any, distance: Any) -> None:
    rows = bench.rows()
    whole_loss, whole = gradients(bench.module(rows_per_batch=8), rows)
    module = bench.module(rows_per_batch=2)
    module.__class__ = MeanOfMeans
    loss, found = gradients(module, rows)
    assert abs(loss - whole_loss) / whole_loss > 100 * TOLERANCE
    assert distance(whole, found) > 1e5 * TOLERANCE
    # On answers of one length the two agree: which is why such a defect lives long.
    even = bench.rows(answers=["7"] * 8)
    _, whole = gradients(bench.module(rows_per_batch=8), even)
    _, found = gradients(module, even)
    assert distance(whole, found) < TOLERANCE


def test_the_loss_is_the_mean_over_supervised_tokens(bench: Any, gradients: Any) -> None:
    rows = bench.rows()
    module = bench.module(rows_per_batch=3)
    loss, _ = gradients(module, rows)
    family, base = bench.built.family, bench.built.base
    losses = []
    for row in rows:  # each row alone, without padding, all logits
        batch = family.collate([row], "right", base)
        features = family.image_features(base, batch.images, grad=False)
        with torch.no_grad():
            logits = family.forward(base, batch, features, torch.ones_like(batch.supervised))
        shifted, targets = logits.view(-1, logits.shape[-1])[:-1], batch.input_ids[0, 1:]
        losses.append(F.cross_entropy(shifted, targets, reduction="none")[batch.supervised[0, 1:]])
    assert loss == pytest.approx(float(torch.cat(losses).mean()), rel=TOLERANCE)


def test_loss_and_gradients_are_the_library_s_own(bench: Any, gradients: Any, distance: Any) -> None:
    rows = bench.rows()
    loss, ours = gradients(bench.module(rows_per_batch=8), rows)
    family, base = bench.built.family, bench.built.base
    batch = family.collate(rows, "right", base)
    pixels = torch.cat([torch.from_numpy(image.arrays["pixel_values"]) for image in batch.images])
    output = base(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        pixel_values=pixels,
        labels=batch.input_ids.masked_fill(~batch.supervised, -100),
        **batch.token_arrays,
        **batch.image_arrays,
    )
    assert loss == pytest.approx(float(output.loss.detach()), rel=TOLERANCE)
    bench.built.model.zero_grad(set_to_none=True)
    output.loss.backward()
    theirs = {n: p.grad for n, p in bench.built.model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert distance(ours, theirs) < TOLERANCE


def test_summed_cross_entropy_is_in_fp32() -> None:
    logits = torch.randn(50, 700, generator=torch.Generator().manual_seed(0)) * 20
    targets = torch.arange(50)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = summed_cross_entropy(logits.to(dtype), targets)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(F.cross_entropy(logits.to(dtype).float(), targets)) * 50, rel=1e-6)
    assert float(summed_cross_entropy(logits[:0], targets[:0])) == 0.0


def row(number: int, length: int) -> EncodedRow:
    ids = np.zeros(length, np.int64)
    return EncodedRow(f"r{number:03d}", ids, ids == 0, 0, {}, ())


def test_cut_keeps_every_row_and_both_limits() -> None:
    draw = random.Random(5)
    for _ in range(300):
        rows = [row(number, draw.randint(1, 60)) for number in range(draw.randint(0, 40))]
        rows_limit, tokens_limit = draw.randint(1, 12), draw.choice([None, draw.randint(1, 200)])
        parts = cut(rows, rows_limit, tokens_limit)
        assert sorted(r.id for part in parts for r in part) == [r.id for r in rows]
        for part in parts:
            assert 1 <= len(part) <= rows_limit
            padded = len(part) * max(r.length for r in part)
            assert tokens_limit is None or padded <= tokens_limit or len(part) == 1
        flat = [r.length for part in parts for r in part]
        assert flat == sorted(flat)  # rows of like length stand together
        assert parts == cut(rows[::-1], rows_limit, tokens_limit)


def test_cut_of_nothing_is_nothing() -> None:
    assert cut([], 4, None) == []


def test_frozen_vision_needs_no_gradient(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    family = bench.built.family
    original: Callable[..., Any] = family.image_features

    def spied(model: Any, images: Any, *, grad: bool) -> Any:
        calls.append(len(images))
        features = original(model, images, grad=grad)
        assert not grad and not any(feature.requires_grad for feature in features)
        return features

    monkeypatch.setattr(family, "image_features", spied)
    bench.module(rows_per_batch=4).window_backward(bench.rows())
    assert calls == [4, 4]
