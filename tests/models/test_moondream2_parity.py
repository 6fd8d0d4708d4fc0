"""moondream2 beside the reference implementation: crops, features, logits and answers of tiny random weights.

The figures were made outside this project with the vendor's own code (fp32, seed 11) and lie in the reference data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmft.config.schema import ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.families.moondream2.processing import Moondream2ImageProcessor
from vlmft.models.load import load_model, load_source

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared")
FOLDER = REFERENCE / "fixtures" / "moondream2_parity"
START, N_IMAGE = 0, 729
VISION_TOLERANCE, LOGIT_TOLERANCE = 1e-5, 1e-4
"""fp32; measured 7e-7 on features up to 1.4, and 2e-6 on logits up to 3.7."""

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no {FOLDER}; set VLMFT_REFERENCE_DATA")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "expected.json").read_text()))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return dict(load_file(FOLDER / "expected.safetensors"))


@pytest.fixture(scope="module", params=["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    config = ModelConfig(name="x", path=str(FOLDER), quantization=QuantizationConfig(mode=QuantizationMode.none))
    loaded = load_model(config, *load_source(config), torch.device("cpu"), seed=0)
    loaded.set_attn_implementation(request.param)
    return loaded


@pytest.fixture(scope="module")
def features(model: PreTrainedModel, expected: dict[str, Any]) -> Iterator[dict[int, torch.Tensor]]:
    """Number of an image -> its features, each image alone."""
    pixels = Moondream2ImageProcessor()
    found = {}
    for i in (0, 2, 3, 4):
        picture = PIL.Image.open(FOLDER / expected["images"][i]["file"])
        arrays = {key: torch.from_numpy(value) for key, value in pixels([picture]).items()}
        with torch.no_grad():
            found[i] = model.get_image_features(**arrays).pooler_output[0]
    yield found


def with_image(model: PreTrainedModel, text_ids: Sequence[int]) -> list[int]:
    return [START] + [model.config.image_token_id] * N_IMAGE + list(text_ids)


def handed_in(images: Sequence[torch.Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    return {"image": BaseModelOutputWithPooling(pooler_output=list(images))}


def test_crops_are_the_references(expected: dict[str, Any]) -> None:
    assert len(expected["images"]) == 6
    for image in expected["images"]:
        picture = PIL.Image.open(FOLDER / image["file"])
        assert picture.size == (image["width"], image["height"])
        crops, tiling = Moondream2ImageProcessor().crops(picture.convert("RGB"))
        assert list(tiling) == image["tiling"]
        assert hashlib.sha256(crops.tobytes()).hexdigest() == image["crops_uint8_sha256"]
        (pixels,) = Moondream2ImageProcessor()([picture])["pixel_values"]
        assert list(pixels.shape) == image["crops_shape"]
        assert float(pixels.mean(dtype="float64")) == pytest.approx(image["crops_mean"], abs=1e-7)


@pytest.mark.parametrize("model", ["sdpa"], indirect=True)
def test_names_are_the_hubs(model: PreTrainedModel, tmp_path: Path) -> None:
    """All of them but the region head's, and what is saved bears them again."""
    with safe_open(FOLDER / "model.safetensors", "pt") as stored:
        theirs = {key for key in stored.keys() if ".region." not in key}  # noqa: SIM118 (no mapping)
    assert len(theirs) > 300 and set(model.state_dict()) == theirs
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == theirs


def test_features(features: dict[int, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    compared = [i for i in features if f"vision_embedding.{i}" in tensors]
    assert compared == [0, 2, 3]
    for i in compared:
        torch.testing.assert_close(features[i], tensors[f"vision_embedding.{i}"], rtol=0, atol=VISION_TOLERANCE)


def test_logits(
    model: PreTrainedModel,
    features: dict[int, torch.Tensor],
    expected: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    assert len(expected["teacher_forced"]) == 3
    for case in expected["teacher_forced"]:
        ids = torch.tensor([with_image(model, case["question_ids"] + case["answer_ids"])])
        images = handed_in([features[case["image"]]])
        with torch.no_grad():
            logits = model(ids, mm_encoder_outputs=images, logits_to_keep=9, use_cache=False).logits[0]
        torch.testing.assert_close(logits, tensors[case["logits"]], rtol=0, atol=LOGIT_TOLERANCE)


def test_causal_image_would_show(
    model: PreTrainedModel,
    features: dict[int, torch.Tensor],
    expected: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    """The defect: a plain causal mask over start token and image."""
    case = expected["teacher_forced"][0]
    ids = torch.tensor([with_image(model, case["question_ids"] + case["answer_ids"])])
    causal = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    images = handed_in([features[case["image"]]])
    with torch.no_grad():
        logits = model(ids, causal, mm_encoder_outputs=images, logits_to_keep=9, use_cache=False).logits[0]
    assert (logits - tensors[case["logits"]]).abs().max() > 100 * LOGIT_TOLERANCE


def test_greedy_answers_alone_and_left_padded(
    model: PreTrainedModel, features: dict[int, torch.Tensor], expected: dict[str, Any]
) -> None:
    cases = expected["greedy"]
    rows = [with_image(model, case["prompt_ids"]) for case in cases]
    answers = [case["greedy_ids"] for case in cases]
    assert len({len(row) for row in rows}) == len(rows) == 3, "rows of one length would need no padding"

    def answered(numbers: Sequence[int]) -> list[list[int]]:
        width = max(len(rows[i]) for i in numbers)
        ids = torch.tensor([[START] * (width - len(rows[i])) + rows[i] for i in numbers])
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in numbers])
        out = model.generate(
            ids,
            attention_mask=mask,
            mm_encoder_outputs=handed_in([features[cases[i]["image"]] for i in numbers]),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=cases[0]["suppress_tokens"],
            pad_token_id=START,
        )
        return [list(row) for row in out[:, width:].tolist()]

    assert [answered([i])[0] for i in range(3)] == answers
    assert answered([0, 1, 2]) == answers
