"""From a path or a Hub id to tables by split: files, folders of them, `save_to_disk` folders, WebDataset shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.files import REMEDIES, SUFFIXES, File, NoAnswersError, read_file
from vlmft.data.sources.hub import load_saved, load_undecoded
from vlmft.data.sources.hub_card import declared_files
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES, FormError, joined_vqa
from vlmft.data.sources.locate import ImageFolders, settled
from vlmft.data.sources.split_names import LEFT_OUT, Names, known_names, split_of, splits_in
from vlmft.data.sources.table import Table, table_of
from vlmft.data.sources.webdataset import fields, require_plain_names, webdataset_shards
from vlmft.data.survey.cache import stamps
from vlmft.sample import SPLITS, Split

NO_TABLES = frozenset(
    "dataset_infos.json dataset_info.json dataset_dict.json state.json config.json generation_config.json package.json "
    "preprocessor_config.json processor_config.json tokenizer_config.json tokenizer.json classes.json labels.json "
    "class_names.json croissant.json bad_rows.jsonl".split()
)
"""Files beside tables that hold no rows."""


@dataclass
class Loaded:
    """Tables, with a description of where they come from."""

    tables: dict[Split, Table] = field(default_factory=dict)
    origins: dict[Split, str] = field(default_factory=dict)
    """Of each split: its files, their form, and why they are this split."""
    declared: bool = False
    """Whether any name gives a split."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One list of rows in one file."""

    split: str | None
    rows: Sequence[Any]
    file: Path
    name: str
    """For people: the file below the data folder, and its list where it has several."""
    form: str


def load_tables(
    path: str | None,
    hub_id: str | None,
    revision: str | None,
    split_names: Mapping[str, str],
    images: str | None = None,
    encoding: str | None = None,
    subset: str | None = None,
) -> Loaded:
    """The tables of a file, of a folder or of a Hub dataset, by split; "train" where nothing names a split.

    `split_names` are the source's names for splits beside `SPLIT_NAMES`, each with ours or "none". If the name of any
    file gives its split, files whose names give none are train if no other is, else they are left out with a note.

    Raises:
        ConfigError: there is no table at that place, it cannot be read, or what it declares cannot be used.
    """
    names = known_names(split_names)
    if path is None:
        if hub_id is None:
            raise ConfigError("data.path: Expected a file or folder, got none; set it, or data.options.hub_id")
        return library_tables(load_undecoded(hub_id, None, revision, subset), names, hub_id, None)
    place = Path(path).expanduser()
    top = place if place.is_dir() else place.parent
    named = image_folder(images, top) if images is not None else None
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return library_tables(load_saved(place), names, "save_to_disk", ImageFolders(place, place, named))
    if shards := webdataset_shards(place):
        if place.is_dir() and (beside := [file for file in sorted(place.glob("*")) if _is_table(file)]):
            raise ConfigError(
                f"data.path: Expected tables or tar files, got {beside[0].name} and {shards[0].name} in {place}; name "
                "one of them, and unpack a tar that holds the images of a table"
            )
        return _web_tables(shards, names, top)
    declared = declared_files(place, subset, _is_table)
    files = declared or dict.fromkeys(table_files(place))
    _require_other_names(files)
    parts, notes = _read(files, top, names, encoding)
    found = _by_split(_joined(parts), names)
    found.notes += notes
    found.tables = {
        split: replace(table, folders=tuple(replace(f, top=top, named=named) for f in table.folders if f is not None))
        for split, table in found.tables.items()
    }
    return found


def image_folder(images: str, top: Path) -> Path:
    """`data.options.images`, below the data folder or as it is."""
    place = Path(images).expanduser()
    for folder in (place, top / place) if not place.is_absolute() else (place,):
        if folder.is_dir():
            return folder
    raise ConfigError(f"data.options.images: Expected a folder, got {images!r}; check the path")


def table_files(place: Path) -> list[Path]:
    """`place` itself, or the tables in the folder, else in its subfolders; sorted.

    Raises:
        ConfigError: there are none; or there are some in the folder and others in a folder named like a split.
    """
    if place.is_file():
        return [place]
    levels = (sorted(filter(_is_table, place.glob(pattern))) for pattern in ("*", "*/*", "*/*/*"))
    files: list[Path] = next((found for found in levels if found), [])
    if not files:
        raise ConfigError(_no_tables(place))
    if files[0].parent == place:
        deeper = [
            f
            for f in sorted(place.glob("*/*"))
            if _is_table(f) and split_of(f.parent.relative_to(place), known_names({}))
        ]
        if deeper:
            raise ConfigError(
                f"data.path: Expected tables in one place, got {files[0].name} in {place} and "
                f"{deeper[0].relative_to(place)}; name a file, or move those that are not meant"
            )
    return files


def _is_table(file: Path) -> bool:
    hidden = file.name.startswith((".", "cache-", "~$")) or file.name in NO_TABLES
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()


def _no_tables(place: Path) -> str:
    there = f"got {str(place)!r}"
    if not place.exists():
        return f"data.path: Expected a table ({', '.join(SUFFIXES)}) or a folder of them, {there}, which is not there"
    there_too = list(itertools.islice(place.rglob("*"), 5_000))
    near = [f for f in there_too if f.suffix.lower() in {*REMEDIES, ".txt"}]
    remedy = "name the file itself if it is a table"
    hint = f"; there is {near[0].name}: {REMEDIES.get(near[0].suffix.lower(), remedy)}" if near else ""
    if any(f.suffix.lower() in IMAGE_SUFFIXES for f in there_too):
        hint += "; images in class folders, or with .txt captions beside them, are data=imagefolder"
    return f"data.path: Expected a table ({', '.join(SUFFIXES)}) or a folder of them, {there}{hint}"


def _require_other_names(files: Iterable[Path]) -> None:
    """Raises ConfigError for two files whose names differ only in their suffix: the same rows in two forms."""
    first: dict[Path, Path] = {}
    for file in files:
        other = first.setdefault(file.with_suffix(""), file)
        if other != file:
            raise ConfigError(
                f"data.path: Expected the rows once, got {other.name} and {file.name} in {file.parent}; name one of "
                "them, or move the other one"
            )


def _read(
    files: Mapping[Path, str | None], top: Path, names: Names, encoding: str | None
) -> tuple[list[Part], list[str]]:
    """The parts of the files, and which files are left out because they hold no text answers."""
    parts: list[Part] = []
    refused: dict[Path, NoAnswersError] = {}
    for file, split in files.items():
        try:
            parts += _parts(file, split, top, names, encoding, several=len(files) > 1)
        except NoAnswersError as error:
            refused[file] = error
    if not parts:
        raise next(iter(refused.values()))
    return parts, [f"not read: {file.relative_to(top)} ({error.found})" for file, error in refused.items()]


def _parts(
    file: Path, of_card: str | None, top: Path, names: Names, encoding: str | None, several: bool
) -> Iterator[Part]:
    """`of_card`: the file's split in the card of its repository; `several`: whether there are other files."""
    found: File = read_file(file, encoding)
    below = file.relative_to(top)
    lists = {name: splits_in(name, names) for name in found.parts if name}
    declared = {name: next(iter(splits)) for name, splits in lists.items() if len(splits) == 1}
    halves = found.form.startswith("VQA's")
    if len(found.parts) > 1 and declared.keys() != lists.keys():
        unknown = next(name for name in lists if name not in declared)
        as_what = "none" if "train" in declared.values() else "train"
        raise ConfigError(
            f"{file}: Expected one list of rows, or lists named train, val and test, got {', '.join(lists)}; save one "
            f"alone, or set data.options.split_names={{{unknown}: {as_what}}}, with none for what is left out"
        )
    by_name, notes = split_of(below, names), list(found.notes)
    if of_card is not None:
        by_name = next(iter(splits_in(str(of_card), names)), None)
        if by_name is None:
            raise ConfigError(f"README.md: Expected train, val or test for {below}, got {of_card!r}; set split_names")
    elif not several and by_name not in ("train", None):
        notes.append(f"its name says {by_name}, but it is the only file and is read as the whole dataset")
        by_name = None
    for name, rows in found.parts.items():
        split = declared.get(name) or by_name
        label = f"{below.as_posix()} ({name})" if name and not halves else below.as_posix()
        form = "; ".join((name if halves and name else found.form, *notes))
        yield Part(split, rows, file, label, form)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """VQA's files of questions and of annotations as one table each; all others as they are."""
    halves: dict[str, list[Part]] = {"questions": [], "annotations": []}
    joined: list[Part] = []
    for part in parts:
        (joined if part.split == LEFT_OUT else halves.get(part.form, joined)).append(part)
    for questions in halves["questions"]:
        ids = {question.get("question_id") for question in questions.rows}
        shared = {
            part.name: len(ids & {note.get("question_id") for note in part.rows}) for part in halves["annotations"]
        }
        answers = max(halves["annotations"], key=lambda part: shared[part.name], default=None)
        if answers is None or not shared[answers.name]:
            split = questions.split or "test"
            raise ConfigError(
                f"{questions.file}: Expected a file of annotations for its questions in the same folder, got none; put "
                f"it there, or leave the questions out (data.options.split_names={{{split}: none}})"
            )
        try:
            rows = joined_vqa(questions.rows, answers.rows)
        except FormError as error:
            raise ConfigError(f"{questions.file}: {error} (annotations: {answers.name})") from error
        joined.append(replace(questions, rows=rows, form=f"VQA's questions, answers in {answers.name}"))
    if halves["annotations"] and not halves["questions"]:
        raise ConfigError(
            f"{halves['annotations'][0].file}: Expected VQA's questions beside it, got none; put both there"
        )
    return joined


def _by_split(parts: Sequence[Part], names: Names) -> Loaded:
    loaded = Loaded()
    named = [part for part in parts if part.split is not None]
    unnamed = [part for part in parts if part.split is None]
    if named and unnamed and any(part.split == "train" for part in named):
        left_out = ", ".join(part.name for part in unnamed)
        loaded.notes.append(f"not read, because the name says no split: {left_out}")
        unnamed = []
    by_split: dict[str, list[Part]] = {}
    for part in [*unnamed, *named]:
        by_split.setdefault(part.split or "train", []).append(part)
    if dropped := by_split.pop(LEFT_OUT, []):
        loaded.notes.append(f"left out by split_names: {', '.join(part.name for part in dropped)}")
    for split in SPLITS:
        some = by_split.get(split)
        if some:
            loaded.tables[split] = _table(some)
            forms = ", ".join(dict.fromkeys(part.form for part in some))
            listed = ", ".join(part.name for part in some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")
            why = ", by name" if any(part.split is not None for part in some) else ""
            loaded.origins[split] = f"{listed} ({forms}){why}"
    loaded.declared = bool(named)
    if not loaded.tables:
        raise ConfigError(
            f"data.path: Expected rows of train, val or test, got none in {parts[0].name}; fix split_names"
        )
    return loaded


def _table(parts: Sequence[Part]) -> Table:
    folders = [ImageFolders(part.file.parent, part.file.parent) for part in parts]
    return table_of([part.rows for part in parts], folders, stamps([part.file for part in parts]))


def library_tables(loaded: Mapping[str, Any], names: Names, origin: str, folders: ImageFolders | None) -> Loaded:
    """Tables of what `datasets` has loaded, by its own names of splits."""
    found = Loaded(declared=True)
    known: dict[str, list[str]] = {}
    for name in loaded:
        splits = splits_in(name, names)
        known.setdefault(next(iter(splits)) if len(splits) == 1 else "", []).append(name)
    if not known.keys() & set(SPLITS) and len(loaded) == 1:
        known = {"train": list(loaded)}
    if not known.keys() & set(SPLITS):
        raise ConfigError(
            f"data: Expected splits train, val or test in {origin!r}, got {sorted(loaded)}; "
            "set data.options.split_names"
        )
    left_out = known.get("", []) + known.get(LEFT_OUT, [])
    if left_out:
        rows = ", ".join(f"{name} ({len(loaded[name]):,} rows)" for name in left_out)
        found.notes.append(f"splits that are not used: {rows} (data.options.split_names)")
    for split in SPLITS:
        if split in known:
            parts = [loaded[name] for name in known[split]]
            marks = tuple(part._fingerprint for part in parts)
            found.tables[split] = table_of(parts, [folders] * len(parts), marks)
            found.origins[split] = f"{', '.join(known[split])} of {origin}"
    return found


def _web_tables(shards: Sequence[Path], names: Names, top: Path) -> Loaded:
    require_plain_names(shards[0])
    by_split: dict[str, list[str]] = {}
    for shard in shards:
        by_split.setdefault(split_of(shard.relative_to(top), names) or "train", []).append(str(shard))
    loaded = {split: fields(rows) for split, rows in load_undecoded("webdataset", by_split, None).items()}
    found = library_tables(loaded, names, "WebDataset tar files", None)
    marks = stamps(shards)
    found.tables = {split: replace(table, sources=marks) for split, table in found.tables.items()}
    return found


# --- images


def with_images(loaded: Loaded, values_of: Callable[[Mapping[str, Any]], Sequence[Any]], beside: bool) -> Loaded:
    """The tables with folders found for the images that sampled rows name (`values_of` a row: paths or numbers).

    Raises:
        ConfigError: as `settled`.
    """
    tables, notes = {}, []
    for split, table in loaded.tables.items():
        folders = []
        for number, place in enumerate(table.folders):
            if place is not None:
                values = [value for row in table.sample_of(number) for value in values_of(row)]
                place, sentence = settled(place, values, split if loaded.declared else "", beside)
                notes += [sentence] if sentence else []
            folders.append(place)
        tables[split] = replace(table, folders=tuple(folders))
    return replace(loaded, tables=tables, notes=[*loaded.notes, *dict.fromkeys(notes)])
