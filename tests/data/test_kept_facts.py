"""What is kept between two starts equals what would be computed, and is deleted where it may not be used."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.schema import DataConfig, OnBadRow
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.dataset import Ids
from vlmft.data.datasets.chartqa import ChartQA
from vlmft.data.datasets.columns import Columns
from vlmft.data.datasets.imagefolder import ImageFolder
from vlmft.data.datasets.messages import Messages
from vlmft.data.images import image_from_bytes
from vlmft.data.ledger import Ledger
from vlmft.data.splits import all_ids
from vlmft.data.survey import cache, facts, image_hashes, near_duplicates
from vlmft.data.survey.card import SplitCard
from vlmft.data.survey.facts import Facts, Reading, sources_of, survey
from vlmft.data.survey.survey import Survey, survey_splits
from vlmft.sample import BadRowError, Message, Prompt, Sample, Split

OLD_NS = 1_700_000_000 * 10**9


def age(path: Path, seconds: int = 0) -> None:
    """As if it had been written long ago: what changed just now is not trusted."""
    os.utime(path, ns=(OLD_NS + seconds * 10**9,) * 2)


def draw(path: Path, shade: int, seconds: int = 0) -> None:
    PIL.Image.new("RGB", (6, 4), (shade, 255 - shade, 7)).save(path, "BMP")  # all shades take equally many bytes
    age(path, seconds)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VLMFT_CACHE", str(folder))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """40 rows about 10 images, in the chat form; also a table with the columns image, question and answer."""
    (tmp_path / "data").mkdir()
    for shade in range(10):
        draw(tmp_path / "data" / f"{shade}.bmp", shade)
    lines = []
    for number in range(40):
        asked, said = (
            {"role": "user", "content": f"q{number // 20}"},
            {"role": "assistant", "content": f"a{number % 3}"},
        )
        image = f"{number % 10}.bmp"
        turns = {"messages": [asked, said], "images": [image], "image": image, "question": "?", "answer": "a"}
        lines.append(json.dumps(turns))
    file = tmp_path / "data" / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    age(file)
    return file


@dataclass(frozen=True)
class Started:
    """A data module's ids, and what was found in its rows."""

    data: VLMDataModule
    survey: Survey

    @property
    def ids(self) -> Mapping[Split, Ids]:
        return self.data.ids

    @property
    def cards(self) -> Mapping[Split, SplitCard]:
        return self.survey.cards


def start(file: Path, kind: type[Columns] = Messages, **settings: object) -> Started:
    config = DataConfig(name="own", dataset="tests:Own", path=str(file), **settings)  # type: ignore[arg-type]
    ledger = Ledger(None, config.on_bad_row, 1.0)
    data = VLMDataModule(kind(path=str(file)), config, lambda sample: sample, ledger, 4, 0)  # type: ignore[arg-type, return-value]
    return Started(data, survey_splits(data))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many rows were read as samples and how many images were decoded."""
    counts = {"rows": 0, "images": 0}
    to_sample, pixel_hash = Columns.to_sample, image_hashes.pixel_hash

    def one_row(self: Columns, record: object) -> object:
        counts["rows"] += 1
        return to_sample(self, record)  # type: ignore[arg-type]

    def one_image(path: str) -> bytes | str:
        counts["images"] += 1
        return pixel_hash(path)

    monkeypatch.setattr(Columns, "to_sample", one_row)
    monkeypatch.setattr(image_hashes, "pixel_hash", one_image)
    return counts


def test_the_second_start_reads_no_row_and_decodes_no_image(
    kept: Path, rows: Path, counted: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(rows, Columns)
    assert counted == {"rows": 40, "images": 10}
    counted.update(rows=0, images=0)
    second = start(rows, Columns)
    assert counted == {"rows": 3, "images": 0}, "3 rows for the answers that the card shows"
    assert second.ids == first.ids and second.cards == first.cards and first.cards["train"].images == 7
    monkey = start(rows, Columns, split_seed=9)
    assert counted["images"] == 0 and monkey.ids["test"] != first.ids["test"], "another seed, the same facts"
    assert capsys.readouterr().err == ""


def sample_of(dataset: Columns) -> Callable[[str], Sample]:
    return lambda row_id: dataset.to_sample(dataset.read(row_id))


def chartqa(folder: Path) -> ChartQA:
    for number, split in enumerate(("train", "val", "test")):
        (folder / split / "png").mkdir(parents=True)
        draw(folder / split / "png" / f"{number}.png", number)
        for source in ("human", "augmented"):
            rows = [{"imgname": f"{number}.png", "query": f"{source}?", "label": "7"}]
            (folder / split / f"{split}_{source}.json").write_text(json.dumps(rows), encoding="utf-8")
    return ChartQA(path=str(folder))


def class_folders(folder: Path) -> ImageFolder:
    for number, split in enumerate(("train", "val", "test")):
        for place in range(2):
            (folder / split / f"class{place}").mkdir(parents=True)
            draw(folder / split / f"class{place}" / "0.bmp", 10 * number + place)
    return ImageFolder(path=str(folder))


@pytest.mark.parametrize("make", [chartqa, class_folders])
def test_rows_of_json_files_and_folders_are_read_once(
    make: Callable[[Path], Columns], kept: Path, tmp_path: Path, counted: dict[str, int]
) -> None:
    dataset = make(tmp_path / "data")
    ids = [row_id for rows in dataset.index().values() for row_id in rows]
    rows = Ids(ids.__getitem__, range(6))
    facts = survey(dataset, rows, sample_of(dataset))
    assert counted["rows"] == 6 and not facts.bad
    again = type(dataset)(path=dataset.path)
    assert again.index() == dataset.index()
    assert np.array_equal(survey(again, rows, sample_of(again)).shows, facts.shows) and counted["rows"] == 6


def test_a_long_pass_says_how_far_it_is_and_a_short_one_nothing(
    kept: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmft.config.progress.QUIET_SECONDS", 0.0)
    start(rows)
    lines = capsys.readouterr().err.splitlines()
    for what, n in (("conversations counted", 40), ("rows read", 40), ("images checked", 10)):
        said = [line.strip() for line in lines if what in line]
        assert said[0].startswith(f"1 of {n} {what}, ") and " s left" in said[0] and "\r" not in said[0]
        assert re.fullmatch(rf"{n} of {n} {what}, [\d,]+ per second, 0 s", said[-1]) and len(said) == 2
    start(rows)
    assert capsys.readouterr().err == ""


def test_conversations_are_counted_once(kept: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Messages(path=str(rows)).index()
    monkeypatch.setattr(Messages, "_n_answers", lambda self, table, number: 1 / 0)
    assert Messages(path=str(rows)).index() == first and len(first["train"]) == 40


def hash_of(started: Started, name: str) -> str:
    (image,) = (
        i for rows in started.ids.values() for r in rows for i in started.data.sample(r).prompt.images if i.name == name
    )
    return image.sha256


def stored(paths: list[Path]) -> list[bytes | str]:
    return image_hashes.image_hashes([str(path) for path in paths])


def test_a_kept_hash_equals_the_computed_one(kept: Path, rows: Path) -> None:
    images = sorted(rows.parent.glob("*.bmp"))
    computed = [image_hashes.pixel_hash(str(path)) for path in images]
    assert len(set(computed)) == 10 and stored(images) == computed and stored(images) == computed


def changed_pixels(path: Path) -> None:
    draw(path, 77, seconds=1)  # another time, the same size


def changed_size(path: Path) -> None:
    PIL.Image.new("RGB", (6, 5), (77, 0, 0)).save(path, "BMP")
    age(path)  # the same time


CHANGES: dict[str, Callable[[Path], None]] = {"time": changed_pixels, "size": changed_size}


def changes_seen(path: Path, change: Callable[[Path], None]) -> bool:
    stored([path])
    change(path)
    return stored([path]) == [image_hashes.pixel_hash(str(path))]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_seen(kept: Path, rows: Path, change: str) -> None:
    assert changes_seen(rows.parent / "3.bmp", CHANGES[change])


@pytest.mark.parametrize("change", CHANGES)
def test_the_defect_is_caught(kept: Path, rows: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that goes by the path alone."""
    monkeypatch.setattr(image_hashes, "stamp", lambda path: (0, 0))
    assert not changes_seen(rows.parent / "3.bmp", CHANGES[change])


def test_a_changed_image_moves_its_rows_to_another_group(kept: Path, rows: Path) -> None:
    before = start(rows)
    draw(rows.parent / "3.bmp", 4, seconds=5)  # now the picture of 4.bmp
    after = start(rows)
    shown = [sum(card.images for card in data.cards.values()) for data in (before, after)]
    assert shown == [10, 9]
    groups = {
        r
        for split in after.ids.values()
        for r in split
        if after.data.sample(r).prompt.images[0].name in ("3.bmp", "4.bmp")
    }
    assert len(groups) == 8 and sum(bool(groups & {*split}) for split in after.ids.values()) == 1


def test_an_image_that_changed_just_now_is_not_kept(kept: Path, rows: Path, counted: dict[str, int]) -> None:
    """Its next change could come within the same tick of the file system's clock."""
    os.utime(rows.parent / "3.bmp")
    start(rows)
    start(rows)
    assert counted["images"] == 11


def test_changed_rows_are_read_again(kept: Path, rows: Path) -> None:
    before = start(rows).cards["train"]
    rows.write_text(rows.read_text(encoding="utf-8").replace("a2", "b2"), encoding="utf-8")  # as many bytes
    age(rows, seconds=1)
    after = start(rows).cards["train"]
    assert set(before.top_answers) == {"a0", "a1", "a2"}
    assert set(after.top_answers) == {"a0", "a1", "b2"}


def test_other_settings_or_other_code_have_facts_of_their_own(
    kept: Path, rows: Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(rows, Columns)
    counted.update(rows=0)
    config = DataConfig(name="own", dataset="tests:Own", path=str(rows))
    ledger = Ledger(None, OnBadRow["raise"], 1.0)
    VLMDataModule(Columns(path=str(rows), class_column="question"), config, lambda s: s, ledger, 4, 0)  # type: ignore[arg-type, return-value]
    assert counted["rows"] == 40
    monkeypatch.setattr("vlmft.data.survey.facts.code_of", lambda kind: "a later version")
    start(rows, Columns)
    assert counted["rows"] == 80


def test_all_code_that_reads_rows_is_in_the_key() -> None:
    """That of subfolders, too: a later reader of files must not get an earlier one's facts."""
    folder = Path(cache.__file__).parents[1]
    files = [path for path in cache.code_files(Columns) if path.is_relative_to(folder)]
    named = {path.relative_to(folder).as_posix() for path in files}
    assert {
        "datasets/columns.py",
        "survey/facts.py",
        "images.py",
        "sources/files.py",
        "sources/tables.py",
        "sources/locate.py",
    } <= named
    assert len([name for name in named if name.startswith("sources/")]) >= 10


def test_a_row_that_could_not_be_read_is_tried_again(kept: Path, rows: Path) -> None:
    lost = rows.parent / "3.bmp"
    lost.rename(rows.parent / "aside")
    with pytest.raises(BadRowError, match=r"4 rows cannot be used; the first: row messages/train/000003/0: .*'3\.bmp'"):
        start(rows)
    skipping = start(rows, on_bad_row=OnBadRow["skip"])
    assert len(skipping.data.ledger.bad) == 4 and sum(map(len, skipping.ids.values())) == 36
    (rows.parent / "aside").rename(lost)
    assert sum(map(len, start(rows).ids.values())) == 40
    lost.write_bytes(b"no image")
    age(lost, seconds=3)
    with pytest.raises(
        BadRowError, match=r"4 rows cannot be used; .*a damaged or unknown file that begins b'no image'"
    ):
        start(rows)


def test_facts_are_the_same_with_rows_fixed_in_between(kept: Path, rows: Path) -> None:
    whole = start(rows)
    for file in kept.iterdir():
        file.unlink()
    (rows.parent / "3.bmp").rename(rows.parent / "aside")
    start(rows, on_bad_row=OnBadRow["skip"])
    (rows.parent / "aside").rename(rows.parent / "3.bmp")
    fixed = start(rows)
    assert fixed.ids == whole.ids and fixed.cards == whole.cards


def garbage(file: Path) -> None:
    file.write_bytes(b"no such thing" * 100)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    """One bit of the facts: of an image's hash."""
    data = bytearray(file.read_bytes())
    known = image_hashes.pixel_hash(str(file.parent.parent / "data" / "3.bmp"))
    assert isinstance(known, bytes) and known in data
    data[data.find(known)] ^= 1
    file.write_bytes(data)


def flipped_array(file: Path) -> None:
    """One bit of an array among the rows."""
    data = bytearray(file.read_bytes())
    data[data.find(b"\x93NUMPY") + 200] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, cut, flipped, flipped_array])
def test_a_damaged_cache_is_thrown_away_with_a_line(
    kept: Path, rows: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(rows)
    (file,) = kept.glob("*.sqlite")
    damage(file)
    again = start(rows)
    assert again.ids == first.ids and again.cards == first.cards
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line and "was deleted" in line
    assert start(rows).ids == first.ids and capsys.readouterr().err == ""


def test_a_locked_store_is_done_without(
    kept: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(rows)
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.05)
    (file,) = kept.glob("*.sqlite")
    with sqlite3.connect(file) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert start(rows).ids == first.ids
        other.rollback()
    assert "database is locked" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_done_without(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "file" / "cache"))
    assert len(start(rows).ids["test"]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing is kept for the next start" in line and "set VLMFT_CACHE" in line


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VLMFT_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache/vlmft"
    for name, expected in (("XDG_CACHE_HOME", "a/vlmft"), ("HF_HOME", "b/vlmft"), ("VLMFT_CACHE", "c")):
        monkeypatch.setenv(name, str(tmp_path / expected.partition("/")[0]))
        assert cache.cache_folder() == tmp_path / expected


def test_what_nobody_used_for_long_is_removed_and_nothing_of_the_users(kept: Path) -> None:
    """VLMFT_CACHE may name a folder with other files in it."""
    old, used, new = "abc"
    cache.kept(old, "x", lambda: {"a": np.arange(3)})
    cache.kept(used, "x", lambda: {"a": np.arange(4)})
    np.savez(kept / "my_embeddings.npz", a=np.arange(3))
    (file,) = kept.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE kept SET used = 0 WHERE used IS NOT NULL")
    assert len(cache.kept(used, "x", dict)["a"]) == 4, "to use it makes it young"
    cache.kept(new, "x", dict)
    assert "a" not in cache.kept(old, "x", dict) and len(cache.kept(used, "x", dict)["a"]) == 4
    assert {found.name for found in kept.iterdir()} == {file.name, "my_embeddings.npz"}
    assert "a" not in cache.kept(used, "y", dict), "another fingerprint"


def test_patterns_are_told_whole() -> None:
    """repr() of a pattern stops after 200 characters, and two long ones would share what is kept."""
    filler = "|".join(f"word{n:02d}" for n in range(40))
    alpha, beta = (Columns(path="x", where={"topic": f"^({filler}|{end})$"}) for end in ("alpha", "beta"))
    assert alpha.settings() != beta.settings() and alpha.settings() is not None
    again = Columns(path="x", where={"topic": f"^({filler}|alpha)$"})
    assert alpha.settings() == again.settings()


class Mine(Columns):
    """A user's own, which may read a second file."""


def test_a_class_of_the_users_own_is_not_taken_to_read_one_file() -> None:
    dataset = Mine(path="x")
    assert Mine.__module__.startswith("vlmft.") is False and sources_of(dataset) is None


def test_a_copy_with_an_old_time_is_another_file(tmp_path: Path) -> None:
    """cp -p and archives set mtime, and uncompressed images have one size."""
    for number in range(2):
        PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
        os.utime(tmp_path / f"{number}.bmp", (0, 0))
    before = cache.stamp(tmp_path / "1.bmp")
    shutil.copy2(tmp_path / "0.bmp", tmp_path / "1.bmp")
    after = cache.stamp(tmp_path / "1.bmp")
    assert before is not None and after is not None and before[:2] == after[:2] and before != after


WRITER = """
import sys
from vlmft.data.survey.cache import Store
store = Store()
for number in range(int(sys.argv[1]), 1_000_000_000, 2):
    store.keep([(f"/no/{number}.png", str(number), number.to_bytes(32, "big"))])
    print(number, flush=True)
"""


def test_two_writers_killed_at_any_moment_leave_a_whole_store(kept: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, first], env=environment, stdout=subprocess.PIPE, text=True)
        for first in ("0", "1")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline()
    time.sleep(0.5)
    stored = []
    for writer in writers:
        writer.kill()
        assert writer.stdout is not None
        stored += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
    store = cache.Store()
    found = store.values([f"/no/{number}.png" for number in stored], list(map(str, stored)))
    assert len(stored) > 4 and found == [number.to_bytes(32, "big") for number in stored]


def test_images_in_rows_are_decoded_by_threads_to_the_same_facts(
    kept: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture once, whichever thread is first; one that cannot be decoded is named in each of its rows."""
    pictures = [(rows.parent / f"{shade}.bmp").read_bytes() for shade in range(10)]
    pictures[3] = pictures[3][:40]
    threads = set[int]()

    class Stored(Columns):
        def to_sample(self, record: Any) -> Sample:
            sample = super().to_sample(record)
            number = int(sample.id.rpartition("/")[2])
            image = image_from_bytes(pictures[number % 10], f"picture {number}")
            return replace(sample, prompt=Prompt((Message("user", (image, "?")),)))

    def found() -> Facts:
        dataset = Stored(path=str(rows))
        return survey(dataset, all_ids(dataset.index()), sample_of(dataset))

    def looked(picture: PIL.Image.Image) -> bytes:
        threads.add(threading.get_ident())
        return near_duplicates.look(picture)

    monkeypatch.setattr(facts, "look", looked)
    by_threads = found()
    assert threads and threading.get_ident() not in threads
    threads.clear()
    monkeypatch.setattr(Reading, "decode", lambda *_: None)
    alone = found()
    assert threads == {threading.get_ident()}
    assert by_threads.bad == alone.bad and sorted(alone.bad) == [3, 13, 23, 33] and "picture 13" in alone.bad[13]
    for name in ("rows", "shows", "contents", "ties"):
        assert np.array_equal(getattr(by_threads, name), getattr(alone, name)), name
    assert len(alone) == 40 and len(alone.contents) == 9
