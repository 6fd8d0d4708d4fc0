"""Small inputs as people bring them, made by the tests, and what is read of them, one line for each row."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.datasets.columns import Columns
from vlmft.data.datasets.imagefolder import ImageFolder
from vlmft.data.datasets.messages import Messages
from vlmft.sample import BadRowError, Image, Sample

KINDS: Mapping[str, type[Columns]] = {"columns": Columns, "messages": Messages, "imagefolder": ImageFolder}
Files = Mapping[str, Any]
"""Path -> a picture of that red, text, bytes, or what is written as JSON (Lines)."""
ENDS = {".jpg": "JPEG", ".webp": "WEBP"}


def picture(red: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (red, 80, 160)).save(stream, form, **({"quality": 100} if form == "JPEG" else {}))
    return stream.getvalue()


def put(root: Path, files: Files) -> None:
    for name, value in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, int):
            value = picture(value, ENDS.get(file.suffix.lower(), "PNG"))
        elif isinstance(value, list) and file.suffix == ".jsonl":
            value = "\n".join(json.dumps(row) for row in value)
        elif not isinstance(value, (str, bytes)):
            value = json.dumps(value)
        file.write_bytes(value.encode() if isinstance(value, str) else value)


def line_of(sample: Sample) -> str:
    """ "system: S / user: [1] q? => cat | kitty": images by their red, references beside the answer after a bar."""
    turns = [f"{m.role}: {' '.join(map(piece, m.content))}" for m in sample.prompt.messages]
    if len(turns) == 1:
        turns = [turns[0].removeprefix("user: ")]
    also = [text for text in dict.fromkeys(sample.references) if text != sample.answer]
    return " / ".join(turns) + f" => {sample.answer}" + "".join(f" | {text}" for text in also)


def piece(part: str | Image) -> str:
    return part if isinstance(part, str) else f"[{part.pixels[0, 0, 0]}]"


@pytest.fixture(autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes the files and returns a line a row ("train: ..."), "REFUSED ..." for all, "BAD ..." for one; then what is
    not read ("unread: a, b") and the notes ("note: ...")."""
    root = tmp_path / "mine"

    def lines(kind: str, files: Files | Callable[[Path], None], path: str = "", **options: Any) -> list[str]:
        root.mkdir()
        files(root) if callable(files) else put(root, files)
        options = {k: v.replace("@", str(root)) if isinstance(v, str) else v for k, v in options.items()}
        dataset = KINDS[kind](path=str(root / path), **options)
        found = []
        try:
            for split, ids in dataset.index().items():
                for row_id in ids:
                    try:
                        found.append(f"{split}: {line_of(dataset.to_sample(dataset.read(row_id)))}")
                    except BadRowError as error:
                        found.append(f"{split}: BAD {error}")
        except ConfigError as error:
            found = [f"REFUSED {error}"]
        else:
            source = dataset.describe()
            found += [f"unread: {', '.join(source.unread)}"] if source.unread else []
            found += [f"note: {note}" for note in source.notes]
        assert not any("\n" in line for line in found if "BAD" in line or "REFUSED" in line)
        return [line.replace(str(root), "@") for line in found]

    return lines


@pytest.fixture
def check(read: Callable[..., list[str]]) -> Callable[..., None]:
    """Compares what `read` returns with lines, of which "..." stands for any text; unread and notes only if given."""

    def compare(expected: str | list[str], kind: str, *args: Any, **options: Any) -> None:
        found = read(kind, *args, **options)
        wanted = [expected] if isinstance(expected, str) else expected
        for extra in ("unread: ", "note: "):
            if not any(line.startswith(extra) for line in wanted):
                found = [line for line in found if not line.startswith(extra)]
        assert len(found) == len(wanted), found
        assert all(map(fits, found, wanted)), found

    return compare


def fits(line: str, wanted: str) -> bool:
    place = 0
    parts = wanted.split("...")
    for number, part in enumerate(parts):
        start = line.find(part, place)
        if start < 0 or (number == 0 and start > 0):
            return False
        place = start + len(part)
    return parts[-1] == "" or line.endswith(parts[-1])


@pytest.fixture
def encoded() -> Callable[..., str]:
    return lambda red, form="PNG": base64.b64encode(picture(red, form)).decode()
