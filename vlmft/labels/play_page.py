"""The page of vlmft play: an image, a question, what each arm answers. What tells something is kept as a test case."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import PIL.Image
from PIL.ExifTags import Base

from vlmft.config.check import ConfigError
from vlmft.config.files import append_synced, whole_lines, write_whole
from vlmft.data.images import DAMAGE, FORMATS, TURNS, image_from_bytes
from vlmft.metrics.json_fields import compared
from vlmft.metrics.json_match import is_json_container, unfenced
from vlmft.pages import packaged
from vlmft.pages.local_page import Page, html_page, picture_bytes, serve
from vlmft.sample import Answer, Image, Marks, Message, Prompt, Sample, read_marks

MOST_FILE_BYTES = 32 << 20
"""Of an image's file; what it may hold is said by the image policy."""
MOST_HELD = 8
"""Images and questions that stay in memory: the newest."""
CASES_FILE, IMAGES_FOLDER = "cases.jsonl", "images"
QUESTION = "{question}"

Ask = Callable[[Prompt], Answer]
"""Raises BadRowError for a question that a model does not take, ConfigError where there is no memory for it."""


@dataclass(frozen=True)
class Wording:
    """How the rows of a dataset ask."""

    question: str = ""
    around: str = QUESTION
    """The text of the message, with "{question}" in the question's place."""
    system: str = ""
    marks: Marks = ""
    image_last: bool = False
    needs_image: bool = True
    notes: tuple[str, ...] = ()

    def prompt(self, image: Image | None, said: Mapping[str, Any]) -> Prompt:
        """`said`: the page's question, and its own system text, text around the question, and marks.

        Raises:
            ValueError: no question, nothing in its place, or no image where one is needed.
        """
        question, around, system, marks = (str(said[name]) for name in ("question", "around", "system", "marks"))
        question = question.strip()  # nothing else: white space is a part of what a model was trained on
        if image is None and (self.needs_image or marks):
            raise ValueError("Expected an image, got none; choose one first")
        if not question or QUESTION not in around:
            raise ValueError(f"Expected a question and {QUESTION} in the text around it, got {question!r}, {around!r}")
        if marks not in get_args(Marks):
            raise ValueError(f"Expected boxes, points or nothing, got {marks!r}")
        text = around.replace(QUESTION, question, 1)
        content = (text,) if image is None else (text, image) if self.image_last else (image, text)
        before = (Message("system", (system,)),) if system.strip() else ()
        return Prompt((*before, Message("user", content)), marks)  # type: ignore[arg-type]  # checked above


def wording_of(sample: Sample) -> Wording:
    """How this row asks, without its image."""
    *earlier, message = sample.prompt.messages
    text, bare = message.text, sample.bare_question.strip()
    asked = bare if bare and bare in text else text.strip()
    systems = [turn.text for turn in earlier if turn.role == "system"]
    notes = []
    if len(earlier) > len(systems):
        notes.append("The rows of this run have earlier turns; here there are none.")
    if len(sample.prompt.images) > 1:
        notes.append("The rows of this run have several images; here there is one.")
    elif message.content[1:-1] and any(isinstance(piece, Image) for piece in message.content[1:-1]):
        notes.append("The rows of this run have their image inside the text; here it comes before it.")
    return Wording(
        asked,
        text.replace(asked, QUESTION, 1),
        "\n".join(systems),
        sample.prompt.marks,
        isinstance(message.content[-1], Image) and not isinstance(message.content[0], Image),
        bool(sample.prompt.images),
        tuple(notes),
    )


@dataclass
class Case:
    """One question that was asked, and what was answered so far."""

    prompt: Prompt
    data: bytes = b""
    """The image's file; empty where there is none."""
    answers: dict[str, str] = field(default_factory=dict)


class Cases:
    """cases.jsonl of a folder, a line a test case, and the images beside it: as `vlmft score` and data=columns read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / CASES_FILE

    def ids(self) -> list[str]:
        """Of what is kept already; raises ConfigError where the file is another one."""
        try:
            return [json.loads(line)["id"] for line in whole_lines(self.file)]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"to: Expected test cases with an id in {self.file}, got another line ({error}); name another folder"
            ) from error

    def keep(self, case: Case, reference: str) -> str:
        """Writes the image and the line; returns the line's id.

        Raises:
            ValueError: a reference that is none, or a question about an image that is kept already.
            OSError: such as on a full disk.
        """
        row_id, reference = case.prompt.sha256[:16], reference.strip()
        if not reference:
            raise ValueError("Expected the right answer, got none; write it")
        if case.prompt.marks and read_marks(reference) is None:
            form = '[{"pixels": [10, 20, 30, 40], "label": "cat"}]'
            raise ValueError(f"Expected {case.prompt.marks} such as {form}, got {reference[:60]!r}; correct it")
        if row_id in self.ids():
            raise ValueError(
                f"this question about this image is kept already, as {row_id} in {self.file}; edit it there"
            )
        system = [message.text for message in case.prompt.messages if message.role == "system"]
        row: dict[str, Any] = {"id": row_id, "question": case.prompt.messages[-1].text, "answer": reference}
        row |= {"system": system[0]} if system else {}
        *others, last = case.answers
        row |= {"prediction": case.answers[last], **{arm: case.answers[arm] for arm in others}}
        (self.folder / IMAGES_FOLDER).mkdir(parents=True, exist_ok=True)
        for image in case.prompt.images:
            with PIL.Image.open(io.BytesIO(case.data), formats=FORMATS) as found:
                suffix = {"JPEG": "jpg"}.get(str(found.format), str(found.format).lower())
            name = f"{IMAGES_FOLDER}/{image.sha256[:16]}.{suffix}"
            write_whole(self.folder / name, case.data)
            row |= {"image": name, "image_sha256": [image.sha256]}
        append_synced(self.file, (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        return row_id


def what_was_changed(data: bytes) -> list[str]:
    """What the image policy makes of a file that it takes, where a person may not expect it."""
    notes = []
    with contextlib.suppress(*DAMAGE), PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if getattr(image, "n_frames", 1) > 1:
            notes.append(f"the first of {image.n_frames} pictures is asked about")  # type: ignore[attr-defined]
        if image.getexif().get(Base.Orientation, 1) in TURNS:
            notes.append("turned upright, as its EXIF block says")
        if image.mode != "RGB":
            notes.append(
                f"{image.mode} made RGB" + (", transparent parts white" if image.has_transparency_data else "")
            )
    return notes


def shown(answer: Answer, marks: Marks, seconds: float) -> dict[str, Any]:
    """An answer as the page takes it: with its boxes in pixels, or the fields of its JSON."""
    found = read_marks(answer.text) if marks else None
    fields: list[list[str | None]] = []
    text = unfenced(answer.text)
    if found is None and is_json_container(text):
        with contextlib.suppress(ValueError):  # deeper than anybody means
            fields = [[one.place, one.gold] for one in compared(text, (text,))[0]]
    return {
        "text": answer.text,
        "seconds": round(seconds, 2),
        "tokens": answer.n_new_tokens,
        "cut": answer.finish == "length",
        "raw": answer.raw,
        "unread": bool(marks) and not found,
        "marks": [[list(mark.numbers), mark.label] for mark in found or ()],
        "fields": fields,
    }


def play_page(name: str, arms: Mapping[str, Ask], wording: Wording, cases: Cases) -> Page:
    """The page. `arms`: name -> what answers, the one that is to be judged last."""
    files: dict[str, tuple[bytes, Image]] = {}
    asked: dict[str, Case] = {}

    def hold(held: dict[str, Any], value: Any) -> str:
        key = str(int(next(reversed(held), "0")) + 1)
        held[key] = value
        while len(held) > MOST_HELD:
            del held[next(iter(held))]
        return key

    def start(_: Any) -> dict[str, Any]:
        about: dict[str, Any] = {"question": wording.question, "around": wording.around, "system": wording.system}
        about |= {"marks": wording.marks, "notes": wording.notes, "needs_image": wording.needs_image}
        return {**about, "arms": [*arms], "file": str(cases.file), "kept": len(cases.ids()), "most": MOST_FILE_BYTES}

    def upload(value: Mapping[str, Any]) -> dict[str, Any]:
        data = base64.b64decode(value["data"], validate=True)
        if len(data) > MOST_FILE_BYTES:
            raise ValueError(f"Expected a file of at most {MOST_FILE_BYTES >> 20} MiB, got {len(data) >> 20} MiB")
        image = image_from_bytes(data, str(value["name"]))
        size = image.load().size
        return {"picture": hold(files, (data, image)), "size": size, "notes": what_was_changed(data)}

    def ask(value: Mapping[str, Any]) -> str:
        if value["picture"] and value["picture"] not in files:
            raise ValueError("Expected an image that was chosen just now, got an older one; choose it again")
        data, image = files.get(value["picture"], (b"", None))
        return hold(asked, Case(wording.prompt(image, value), data))

    def answer(value: Mapping[str, Any]) -> dict[str, Any]:
        case, started = asked[value["case"]], time.perf_counter()
        found = arms[value["arm"]](case.prompt)
        case.answers[value["arm"]] = found.text
        return shown(found, case.prompt.marks, time.perf_counter() - started)

    def keep(value: Mapping[str, Any]) -> dict[str, Any]:
        if value["case"] not in asked or {*asked[value["case"]].answers} != {*arms}:
            raise ValueError("Expected a question that was answered, got an older one; ask it again")
        row_id = cases.keep(asked[value["case"]], str(value["reference"]))
        return {"id": row_id, "kept": len(cases.ids())}

    html = html_page(f"Try {name}", packaged("play.html"), packaged("play.js"), ["play.css"])
    actions = {"start": start, "upload": upload, "ask": ask, "answer": answer, "keep": keep}
    in_base64 = MOST_FILE_BYTES * 4 // 3 + (1 << 16)
    return Page(html, actions, lambda picture: picture_bytes(files[picture][1].load()), in_base64)


def serve_play(page: Page, cases: Cases, port: int, open_browser: bool) -> None:
    """Serves it until a person has done; prints where the test cases are."""
    serve(page, port, open_browser)
    if kept := len(cases.ids()):
        print(f"{kept} test cases in {cases.file}")
