"""model.max_visual_tokens_per_image means the same for every model: image tokens in the row, counted there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import MODELS, Tiny, save
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig
from vlmft.models.family import Family, GenericFamily, make_family
from vlmft.models.load import load_source
from vlmft.models.resolution import KEY, most_visual_tokens
from vlmft.sample import BadRowError, Message, Prompt

SIZES = ((64, 64), (96, 96), (96, 60), (40, 80), (300, 290), (500, 90), (60, 400))
WITH_SETTING = ("idefics3", "smolvlm", "idefics2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl")
WITH_SETTING += ("qwen3_vl_moe", "qwen3_5_moe", "glm4v", "glm46v", "glm_ocr", "paddleocr_vl", "lfm3_vl", "gemma4")


def made(folder: Path | str, most: int | None = None) -> GenericFamily:
    config = ModelConfig(name="x", path=str(folder), init=Init.random, max_visual_tokens_per_image=most)
    family: Family = make_family(config, *load_source(config))
    assert isinstance(family, GenericFamily)
    return family


@pytest.fixture(scope="module")
def free(small: tuple[Tiny, Path], counts: Callable[..., list[int | None]]) -> tuple[GenericFamily, list[int | None]]:
    """The model without a limit, and what images take of it."""
    family = made(small[1])
    return family, counts(family)


@pytest.fixture(scope="module", params=MODELS, ids=lambda tiny: tiny.name)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path]:
    tiny: Tiny = request.param
    folder = tmp_path_factory.mktemp(tiny.model_type)
    save(tiny, folder)
    return tiny, folder


@pytest.fixture(scope="module")
def counts(make_image: Callable[..., Any]) -> Callable[[GenericFamily], list[int | None]]:
    """Image tokens of a row with an image of each size; None for one that is refused."""

    def counted(family: GenericFamily) -> list[int | None]:
        found: list[int | None] = []
        for size in SIZES:
            try:
                row = family.encode_prompt("row", Prompt((Message("user", (make_image(*size), "How many?")),)))
                found.append(int((row.input_ids == family.image_token_id).sum()))
            except BadRowError as error:
                assert KEY in str(error)
                found.append(None)
        return found

    return counted


def test_what_is_told_is_what_images_take(small: tuple[Tiny, Path], free: tuple[GenericFamily, list[int]]) -> None:
    tiny, _ = small
    family, found = free
    told = most_visual_tokens(family.processor)
    assert (told is not None) == (tiny.model_type in WITH_SETTING)
    if tiny.model_type == "gemma4":  # whole rows and columns of an image's own shape: 8 x 8 of 70
        assert told == 70 and 60 <= max(found) <= told and "max_soft_tokens=70" in family.resolution
    elif told is not None:
        assert max(found) == told and f"at most {told:,} tokens an image (" in family.resolution
    elif tiny.model_type == "llava_onevision":
        assert len(set(found)) > 1 and family.resolution.startswith("as many tokens")
    else:
        count = "one token" if found[0] == 1 else f"{found[0]} tokens"
        assert set(found) == {found[0]} and family.resolution == f"{count} for every image"


@pytest.mark.parametrize(
    "most", [5, *(pytest.param(most, marks=pytest.mark.slow) for most in (4, 8, 9, 12, 19, 20, 1000))]
)
def test_no_image_takes_more(
    small: tuple[Tiny, Path],
    free: tuple[GenericFamily, list[int | None]],
    counts: Callable[..., list[int | None]],
    most: int,
) -> None:
    """Of the square ones none is refused, and a limit that binds is used: another tile would not fit."""
    tiny, folder = small
    without_limit, taken = free
    assert None not in taken
    if tiny.model_type not in WITH_SETTING:
        if max(n for n in taken if n is not None) > most:
            with pytest.raises(ConfigError, match=rf"{KEY}: this model takes \d+ tokens for an image and has no"):
                made(folder, most)
        else:
            assert counts(made(folder, most)) == taken
        return
    if tiny.model_type == "gemma4" and most < 70:
        with pytest.raises(ConfigError, match=rf"{KEY}: Expected at least 70 for this model, got {most}"):
            made(folder, most)
        return
    family = made(folder, most)
    found = counts(family)
    assert all(n is None or n <= most for n in found)
    assert found[0] is not None and found[1] is not None and found[4] is not None
    if most >= max(n for n in taken if n is not None):
        assert found == taken
        assert family.fingerprint_parts == without_limit.fingerprint_parts
    else:
        assert family.fingerprint_parts != without_limit.fingerprint_parts


def test_less_than_a_tile_is_refused(tmp_path: Path) -> None:
    save(next(tiny for tiny in MODELS if tiny.model_type == "idefics3"), tmp_path)
    with pytest.raises(ConfigError, match=rf"{KEY}: Expected at least 4, the tokens of one tile of this model, got 3"):
        made(tmp_path, 3)


def test_a_strip_that_cannot_be_scaled_is_a_bad_row(tmp_path: Path, make_image: Callable[..., Any]) -> None:
    """Qwen keeps at least one token of height, so a strip of many widths takes more than it is given."""
    save(next(tiny for tiny in MODELS if tiny.model_type == "qwen2_vl"), tmp_path)
    strip = Prompt((Message("user", (make_image(1200, 10), "How many?")),))
    with pytest.raises(BadRowError, match=r"Expected at most 4 tokens an image, got .*crop what is so flat"):
        made(tmp_path, 4).encode_prompt("row", strip)
    made(tmp_path).encode_prompt("row", strip)
