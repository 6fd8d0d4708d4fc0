"""The rows in a JSON value: a list of objects, or one of the containers that tools and datasets write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff .ppm .jfif .heic .heif .avif".split())
"""Files with these suffixes count as images, whether or not the image policy reads them."""
LABEL_STUDIO_VALUES = ("choices", "text", "taxonomy", "rating", "number")
"""Keys of a Label Studio result's value that are a text answer; boxes and polygons are not."""

ASKED = ("question", "query", "prompt", "caption", "text", "instruction")
"""Texts of a row: an object that has one is a row, whatever lists it holds."""
TEXT_FIELDS = frozenset((*ASKED, "image", "image_path", "img", "file_name", "answer"))
"""The same, with texts that name an image or an answer."""
TURNS = tuple("messages conversations conversation dialog dialogue dialogs chat turns contents texts".split())
"""Fields of a row that hold its list of turns."""

Parts = Mapping[str, Sequence[Any]]
"""Name of a list of rows, "" for the only one -> the rows."""


class FormError(ValueError):
    """A JSON value without rows, or rows that are not questions; the message names what was found instead."""


class NoWordsError(FormError):
    """Annotations without text; `found` says what they are."""

    def __init__(self, found: str) -> None:
        advice = "set data=detection" if found.endswith("boxes") else "write questions and answers as JSON Lines"
        super().__init__(f"Expected annotations in words, got {found}; {advice}")
        self.found = found


def parts_of(value: Any) -> tuple[Parts, str]:
    """The lists of rows in a parsed JSON file by their names, and the form in words.

    Raises:
        FormError: there are none.
    """
    if isinstance(value, list):
        return _of_list(value)
    if not isinstance(value, dict) or not value:
        raise FormError(f"Expected rows with named fields, got {str(value)[:60]}")
    if is_row(value):
        return {"": [value]}, "one JSON object"
    for form in FORMS:
        found = form(value)
        if found is not None:
            return found
    raise FormError(f"Expected a list of rows, got an object with {_keys_of(value)}")


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether an object is itself a row: it has a text field such as a question or an image, or turns."""
    folded = {str(key).lower(): inner for key, inner in value.items()}
    if any(isinstance(folded.get(name), str) for name in TEXT_FIELDS):
        return True
    turns = [row for name in TURNS for row in folded.get(name) or () if isinstance(folded[name], list)]
    return bool(turns) and all(isinstance(turn, dict) and TURN_KEYS & turn.keys() for turn in turns)


def _of_list(value: list[Any]) -> tuple[Parts, str]:
    rows = [row for row in value if isinstance(row, dict)]
    if not rows:  # predictions may be texts alone
        return {"": value}, "a JSON list"
    tasks = rows[:5]
    if all(isinstance(row.get("data"), dict) and "annotations" in row for row in tasks):
        read = [_label_studio(row) for row in value]
        if not any(row.keys() - task["data"].keys() - {"id"} for row, task in zip(read, rows, strict=False)):
            kinds = {result.get("type") for task in rows for note in task["annotations"] for result in note["result"]}
            raise NoWordsError(f"Label Studio's {', '.join(sorted(map(str, kinds))) or 'tasks without annotations'}")
        return {"": read}, "Label Studio's JSON"
    if all("annotator" in row and {"annotation_id", "lead_time"} & row.keys() for row in tasks):
        return {"": [{k: _chosen(v) for k, v in row.items()} for row in rows]}, "Label Studio's short JSON"
    return {"": value}, "a JSON list"


def _chosen(value: Any) -> Any:
    """The list of several choices, which Label Studio's short form writes as {"choices": [...]}."""
    return value["choices"] if isinstance(value, dict) and value.keys() == {"choices"} else value


def _coco(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """COCO's `images` and `annotations`: a row for each image, all its captions in `captions`."""
    images, notes = _rows(value.get("images")), _rows(value.get("annotations"))
    if not images or not notes:
        return None
    if not any("caption" in note for note in notes):
        what = "segments" if any("segments_info" in note for note in notes) else _keys_of(notes[0])
        raise NoWordsError(f"COCO's {'boxes' if any('bbox' in note for note in notes) else what}")
    captions: dict[Any, list[Any]] = {}
    for note in notes:
        captions.setdefault(note.get("image_id"), []).append(note.get("caption"))
    named = [image for image in images if "file_name" in image]
    if lost := captions.keys() - {image.get("id") for image in named}:
        raise FormError(f"Expected an image for every caption, got none with the id {sorted(map(str, lost))[0]}")
    return {
        "": [{"image": image["file_name"], "captions": captions.get(image.get("id"), [])} for image in named]
    }, "COCO captions"


def _vqa(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """One half of VQAv2: its questions or its annotations, which `joined_vqa` joins."""
    for half, others in (("questions", {"answers", "answer", "multiple_choice_answer"}), ("annotations", {"question"})):
        rows = _rows(value.get(half))
        if rows and "question_id" in rows[0] and not others & rows[0].keys():
            return {half: rows}, f"VQA's {half}"
    return None


def joined_vqa(questions: Sequence[Mapping[str, Any]], notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each question, with the annotation of the same `question_id`.

    Raises:
        FormError: a question without an annotation, or the other way.
    """
    by_id = {note.get("question_id"): note for note in notes}
    ids = {question.get("question_id") for question in questions}
    if by_id.keys() != ids:
        lost = sorted(map(str, by_id.keys() ^ ids))
        raise FormError(
            f"Expected an annotation for each question, got {len(lost)} ids in only one file, such as {lost[0]}; "
            "take files of one release"
        )
    return [{**by_id[question["question_id"]], **question} for question in questions]


def _data(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """{"data": [...]} of DocVQA, TextVQA and pandas' orient=table; with the split that it names, if any."""
    columns = value.get("columns")
    if isinstance(columns, list) and isinstance(value.get("data"), list):
        return {"": [dict(zip(columns, cells, strict=False)) for cells in value["data"]]}, "pandas' orient=split"
    rows = _rows(value.get("data"))
    split = value.get("dataset_split") or value.get("split") or ""
    return ({str(split): rows}, 'a JSON object with "data"') if rows else None


def _viewer(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """A response of the Hub's dataset viewer: {"rows": [{"row_idx", "row"}]}."""
    rows = _rows(value.get("rows"))
    if not rows or not all(isinstance(row.get("row"), dict) for row in rows):
        return None
    return {"": [row["row"] for row in rows]}, "the dataset viewer's JSON"


def _by_column(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """Columns of one length: lists of plain values, or pandas' {"0": ..., "1": ...}."""
    if all(map(is_image_name, value)):
        return None
    cells = list(value.values())
    if all(isinstance(cell, list) for cell in cells) and len(cells) > 1:
        if any(isinstance(one, dict) for cell in cells for one in cell[:5]):
            return None
        if len({len(cell) for cell in cells}) > 1:
            lengths = ", ".join(f"{len(cell)} of {name}" for name, cell in [*value.items()][:6])
            raise FormError(f"Expected columns of one length, got {lengths}; fix the file")
        return {"": [dict(zip(value, row, strict=True)) for row in zip(*cells, strict=True)]}, "columns in JSON"
    if all(isinstance(cell, dict) and cell for cell in cells) and len(cells) > 1:
        keys = list(cells[0])
        named = any(str(name).lower() in TEXT_FIELDS for name in value)
        if (named or all(key.isdigit() for key in keys)) and all(list(cell) == keys for cell in cells):
            return {"": [{name: value[name][key] for name in value} for key in keys]}, "pandas' columns in JSON"
    return None


def _by_key(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """{key: row}, as GQA and ScienceQA write it: the key is the row's id, or its image where it is a file's name."""
    if rows := _keyed(value):
        kind = "image" if all(map(is_image_name, rows)) else "id"
        return {"": [{kind: key, **row} for key, row in rows.items()]}, f"a JSON object by {kind}"
    if not all(map(is_image_name, value)):
        return None
    if all(_rows(rows) for rows in value.values()):
        return {"": [{"image": key, **row} for key, rows in value.items() for row in rows]}, "a JSON object by image"
    return {"": [{"image": key, "caption": row} for key, row in value.items()]}, "a JSON object by image"


def _keyed(value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of {key: row}; empty where the objects are not rows. Numbered rows may come with a plain field, as in
    OpenCompass' {"type": "GEN", "0": {...}}."""
    rows = {key: row for key, row in value.items() if isinstance(row, dict) and row}
    beside = [cell for key, cell in value.items() if key not in rows]
    if beside and not (all(key.isdigit() for key in rows) and not any(isinstance(c, (dict, list)) for c in beside)):
        return {}
    return rows if all(map(_is_one_row, rows.values())) else {}


def _is_one_row(row: Mapping[str, Any]) -> bool:
    """Whether an object has cells of its own, and is not a container of rows."""
    if not any(not isinstance(cell, dict) and not _lists_rows(cell) for cell in row.values()):
        return False
    return not any(map(_lists_rows, row.values())) or any(isinstance(row.get(name), str) for name in ASKED)


def _lists_rows(cell: Any) -> bool:
    return bool(_rows(cell)) and not all("role" in one or "from" in one for one in cell)


def _by_name(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """Lists of rows under names, at any depth: {"train": [...]}, {"splits": {"human": {"items": [...]}}}."""
    found = dict(_nested(value, ()))
    if not found:
        return None
    if len(found) == 1:
        ((name, rows),) = found.items()
        return {name: rows}, f'a JSON object with "{name}"'
    return found, "a JSON object of several lists"


def _nested(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Sequence[Any]]]:
    for key, inner in value.items():
        if rows := _rows(inner):
            yield ".".join((*path, key)), rows
        elif isinstance(inner, dict) and (keyed := _keyed(inner)) and all(key.isdigit() for key in keyed):
            yield ".".join((*path, key)), [{"id": number, **row} for number, row in keyed.items()]
        elif isinstance(inner, dict) and len(path) < 3:
            yield from _nested(inner, (*path, key))


def _single(value: Mapping[str, Any]) -> tuple[Parts, str] | None:
    """One object that is a row itself."""
    return None if dict(_nested(value, ())) else ({"": [value]}, "one JSON object")


FORMS: Sequence[Callable[[Mapping[str, Any]], tuple[Parts, str] | None]] = (
    _coco,
    _vqa,
    _data,
    _viewer,
    _by_column,
    _by_key,
    _by_name,
    _single,
)
"""Tried in this order."""


def _rows(value: Any) -> list[dict[str, Any]]:
    """The value where it is a list of objects that are not turns of a conversation, else []."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        return []
    return [] if all({"role", "from"} & row.keys() and {"content", "value"} & row.keys() for row in value) else value


TURN_KEYS = frozenset(("role", "from", "speaker", "content", "value", "user", "assistant"))
"""Keys of a turn."""


def _keys_of(value: Mapping[str, Any]) -> str:
    return ", ".join(list(map(str, value))[:8])


def is_image_name(text: object) -> bool:
    return isinstance(text, str) and PurePosixPath(text.strip().lower()).suffix in IMAGE_SUFFIXES


def _label_studio(task: Any) -> Any:
    """One task of Label Studio's full export: its data, and each control's answers under the control's name.

    Answers of several people are a list of {"answer": ...}, as those of VQA's annotators; the only control is called
    `answer`.
    """
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        return task
    answers: dict[str, list[Any]] = {}
    for annotation in task.get("annotations") or ():
        own: dict[str, list[Any]] = {}
        for result in () if annotation.get("was_cancelled") else annotation.get("result") or ():
            value = result.get("value") or {}
            kind = next((kind for kind in LABEL_STUDIO_VALUES if kind in value), None)
            if kind is not None:
                own.setdefault(str(result.get("from_name")), []).append(_only(value[kind]))
        for name, texts in own.items():
            answers.setdefault(name, []).append(_only(texts))
    names = {next(iter(answers)): "answer"} if len(answers) == 1 else {}
    fields = {names.get(name, name): texts[0] if len(texts) == 1 else _people(texts) for name, texts in answers.items()}
    return {"id": task.get("id"), **task["data"], **fields}


def _people(answers: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"answer": json.dumps(a, ensure_ascii=False) if isinstance(a, list) else a} for a in answers]


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


LABEL_STUDIO_PATH = re.compile(r"^/?data/(?:upload/(?:\d+/)?|local-files/?\?d=)")
"""What Label Studio writes before the name of an image that it stores."""
