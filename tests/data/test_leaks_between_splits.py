"""Changed copies of train images in test: each is refused, counted, or named as not looked for."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig
from vlmft.data.datasets.shapes import Shapes
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.data.survey.survey import Survey, survey_splits
from vlmft.report.card import _near_duplicates

Picture = PIL.Image.Image
N_SCENES = 12
CHARTS = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data/chartqa/train/png"


@pytest.fixture(scope="module")
def scenes() -> list[Picture]:
    shapes = Shapes(image_size=128, train_rows=2 * N_SCENES)
    ids = shapes.index()["train"]
    return [shapes.to_sample(shapes.read(row_id)).prompt.images[0].load() for row_id in ids]


@pytest.fixture
def rows_of(compose: Callable[..., TrainConfig]) -> Callable[..., Survey]:
    def made(folder: Path, *overrides: str) -> Survey:
        config = compose("model=tiny", f"data.path={folder}", "data.val_rows=0", *overrides).data
        return survey_splits(Rows(make_dataset(config), config, Ledger(None, config.on_bad_row, 1.0), seed=0))

    return made


COLUMNS = ("data=columns", "data.options={image: image, question: question, answer: answer}")
Saved = Mapping[str, tuple[Picture | bytes, str]]
"""File name -> picture, and what is asked of it."""


def write(folder: Path, splits: Mapping[str, Saved]) -> Path:
    for split, saved in splits.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for name, (picture, question) in saved.items():
            if isinstance(picture, bytes):
                (folder / split / name).write_bytes(picture)
            else:
                picture.save(folder / split / name)
            lines.append(json.dumps({"image": f"{split}/{name}", "question": question, "answer": "3"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def plain(pictures: list[Picture], question: str = "How many?") -> dict[str, tuple[Picture | bytes, str]]:
    return {f"{number}.png": (picture, question) for number, picture in enumerate(pictures)}


def jpeg(picture: Picture) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60)
    return file.getvalue()


def mirrored(picture: Picture) -> Picture:
    return picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def cropped(picture: Picture, share: float) -> Picture:
    width, height = picture.size
    return picture.crop(
        (round(share * width), round(share * height), round((1 - share) * width), round((1 - share) * height))
    )


# --- refused


@pytest.mark.parametrize("held_out", ["test", "val"])
@pytest.mark.parametrize("question", ["How many?", "Which colour is the largest?"])
def test_the_same_picture(
    held_out: str, question: str, scenes: list[Picture], rows_of: Callable[..., Survey], tmp_path: Path
) -> None:
    """Under another file name, in another file format, asked something else: the pixels are the same."""
    again = io.BytesIO()
    scenes[3].save(again, "BMP")
    other = {**plain(scenes[N_SCENES:]), "renamed.bmp": (again.getvalue(), question)}
    folder = write(tmp_path, {"train": plain(scenes[:N_SCENES]), held_out: other})
    with pytest.raises(ConfigError, match=f"train.*{held_out}") as refused:
        rows_of(folder, *COLUMNS)
    assert "000003" in str(refused.value)


@pytest.mark.parametrize("pictured", [True, False])
def test_a_conversation_in_two_splits(
    pictured: bool, scenes: list[Picture], rows_of: Callable[..., Survey], tmp_path: Path
) -> None:
    scenes[0].save(tmp_path / "a.png")
    for split, name in (("train", "a"), ("test", "a"), ("val", "b")):
        turns = [("user", f"Count {name}."), ("assistant", "3"), ("user", "Sure?"), ("assistant", "yes")]
        if pictured:
            turns[0] = ("user", f"<image>Count {name}.")
        row = {"messages": [{"role": role, "content": text} for role, text in turns]}
        images = {"images": ["a.png"]} if pictured and name == "a" else {}
        if name == "b":
            row["messages"][0]["content"] = "Count b."
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({**row, **images}) + "\n")
    with pytest.raises(ConfigError, match=r"train.*test"):
        rows_of(tmp_path, "data=messages")


# --- counted


CHANGES: Mapping[str, Callable[[Picture], Picture | bytes]] = {
    "as a JPEG": jpeg,
    "at half size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "with 1 % cropped from each side": lambda picture: cropped(picture, 0.01),
    "brighter": lambda picture: picture.point(lambda level: min(255, int(1.1 * level))),
}
MIRRORED: Mapping[str, Callable[[Picture], Picture | bytes]] = {
    "mirrored": mirrored,
    "mirrored, as a JPEG": lambda picture: jpeg(mirrored(picture)),
    "mirrored, at half size": lambda picture: mirrored(picture).resize((picture.width // 2, picture.height // 2)),
}
MISSED: Mapping[str, Callable[[Picture], Picture | bytes]] = {
    "with 5 % cropped from each side": lambda picture: cropped(picture, 0.05),
    "turned": lambda picture: picture.rotate(90),
}


def counted(
    change: Callable[[Picture], Picture | bytes], scenes: list[Picture], rows_of: Callable[..., Survey], folder: Path
) -> Survey:
    test = {f"{number}.png": (change(picture), "Which?") for number, picture in enumerate(scenes[:N_SCENES])}
    train = plain(scenes)
    return rows_of(write(folder, {"train": train, "test": test}), *COLUMNS)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy(change: str, scenes: list[Picture], rows_of: Callable[..., Survey], tmp_path: Path) -> None:
    rows = counted(CHANGES[change], scenes, rows_of, tmp_path)
    assert len(rows.near_duplicates["train", "test"]) == N_SCENES and rows.mirrored["train", "test"] == []


@pytest.mark.parametrize("change", MIRRORED)
def test_a_mirrored_copy(change: str, scenes: list[Picture], rows_of: Callable[..., Survey], tmp_path: Path) -> None:
    rows = counted(MIRRORED[change], scenes, rows_of, tmp_path)
    assert rows.near_duplicates["train", "test"] == []
    pairs = rows.mirrored["train", "test"]
    assert len(pairs) == N_SCENES
    assert all(Path(pair.held_out.name).name == Path(pair.other.name).name for pair in pairs)


def test_mirrored_copies_stay_together_where_near_duplicates_do(
    scenes: list[Picture], rows_of: Callable[..., Survey], tmp_path: Path
) -> None:
    saved = {**plain(scenes), **{f"m{i}.png": (mirrored(scene), "How many?") for i, scene in enumerate(scenes)}}
    shares = ("data.test_rows=0.5",)
    folder = write(tmp_path, {"train": saved})
    apart = rows_of(folder, *COLUMNS, *shares)
    assert len(apart.mirrored["train", "test"]) > 0
    together = rows_of(folder, *COLUMNS, *shares, "data.group_near_duplicates=true")
    assert together.mirrored["train", "test"] == [] and together.rows.splits.largest_group == 2


# --- named as not looked for


@pytest.mark.parametrize("change", MISSED)
def test_what_is_missed_is_named(
    change: str, scenes: list[Picture], rows_of: Callable[..., Survey], tmp_path: Path
) -> None:
    rows = counted(MISSED[change], scenes, rows_of, tmp_path)
    assert rows.near_duplicates["train", "test"] == rows.mirrored["train", "test"] == []
    between: list[Any] = [{"splits": ["train", "test"], "images": 0, "mirrored": 0}]
    said = _near_duplicates({"between": between, "largest_group": None})
    assert "Not looked for: pictures cropped by more than 1\u00a0% a side, turned" in said


@pytest.mark.slow
@pytest.mark.skipif(not CHARTS.is_dir(), reason=f"no {CHARTS}; set VLMFT_REFERENCE_DATA")
@pytest.mark.parametrize(("change", "found"), [("as a JPEG", 20), ("mirrored, as a JPEG", 20), ("turned", 0)])
def test_real_charts(change: str, found: int, rows_of: Callable[..., Survey], tmp_path: Path) -> None:
    """Changed copies of twenty of sixty charts are in test; no two different charts are matched."""
    opened = [PIL.Image.open(file).convert("RGB") for file in sorted(CHARTS.glob("*.png"))]
    pictures = list({picture.tobytes(): picture for picture in opened}.values())[:60]
    assert len(pictures) == 60
    changed = {**CHANGES, **MIRRORED, **MISSED}[change]
    test = {f"{number}.png": (changed(picture), "Which?") for number, picture in enumerate(pictures[:20])}
    rows = rows_of(write(tmp_path, {"train": plain(pictures), "test": test}), *COLUMNS)
    pairs = rows.near_duplicates["train", "test"] + rows.mirrored["train", "test"]
    assert len(pairs) == found and len(rows.near_duplicates["train", "test"]) == (found if change in CHANGES else 0)
    assert all(Path(pair.held_out.name).name == Path(pair.other.name).name for pair in pairs)
