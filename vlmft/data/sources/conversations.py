"""Rows that are conversations, in the forms of the Hub, LLaVA, ShareGPT, OpenAI, Qwen, TRL, ms-swift and Alpaca."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmft.data.sources.fields import (
    MARK,
    UNSOUND,
    cut_at_marks,
    listed_images,
    listed_text,
    mark_problem,
    require_own_marks,
    text_of,
)
from vlmft.data.sources.json_forms import TURNS
from vlmft.data.sources.roles import USUAL_NAMES, fold
from vlmft.sample import BadRowError, Role

PAIRS = tuple(
    pair.split("/")
    for pair in "prompt/completion query/response instruction/output instruction/response question/answer "
    "question/response query/answer prompt/response prompt/answer user/assistant input/output".split()
)
"""Fields of a row that is one question and its answer: TRL's, ms-swift's, Alpaca's and others."""
IMAGES = USUAL_NAMES["image"]
SYSTEM = USUAL_NAMES["system"]
VIDEOS = ("videos", "video")
VIDEO_MARK = "<video>"
OTHER_MEDIA = ("audio", "audios", "objects")
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "answer"), "assistant"),
}
IMAGE_KINDS = ("image", "image_url", "input_image", "inline_data", "inlineData")
TEXT_KINDS = ("text", "input_text", "output_text")
LEARNED = ("weight", "loss", "train", "training", "train_on_turn", "trainable")
"""Keys of a message by which a row excludes its answer from training."""
MESSAGE_KEYS = {
    *"role from speaker content value text parts image images tool_calls function_call user assistant".split(),
    *LEARNED,
}
"""Keys of a message that are read."""
QWEN_TAG = re.compile(r"<img>\s*(.*?)\s*</img>", re.DOTALL)
"""Qwen-VL's own form: the image's path in the text."""


@dataclass(frozen=True)
class Slot:
    """The place of an image; `source` is its path or bytes, or None for the next one of the row's list."""

    source: Any = None
    video: bool = False
    fps: float | None = None
    """Of a folder of frames, as its row says."""


@dataclass(frozen=True)
class Turn:
    """One message of a row, the same for all source formats."""

    role: Role
    pieces: tuple[str | Slot, ...]
    learned: bool = True
    """False for an answer that its row excludes from training (`weight` 0, `loss` or `train` false)."""


@dataclass(frozen=True)
class Exchange:
    """One answer, and what comes before it. Not a mapping: the leak canary must not replace an earlier answer in it."""

    earlier: tuple[Turn, ...]
    images: tuple[Any, ...]
    """The row's list, of which the marks in `earlier` take the first ones."""
    conversation: bool
    """Whether the row has other exchanges."""


def exchanges_of(row: Mapping[str, Any]) -> list[tuple[Exchange, str]]:
    """Each answer to be trained on, with what comes before it.

    Turns of one user that follow each other are one question. Answers before any question are context alone.

    Raises:
        BadRowError: no turns, an unknown role, no answer, two answers to one question, an answer with an image, other
            media, another number of marks than of images or videos.
    """
    row = _folded(row)
    for key in OTHER_MEDIA:
        if row.get(key):
            raise BadRowError(f"Expected text, images and videos, got {key}; drop the row")
    turns, images = _with_videos(turns_of(row), row), images_in(row)
    slots = [piece for turn in turns for piece in turn.pieces if isinstance(piece, Slot) and not piece.video]
    marks = sum(slot == Slot() for slot in slots)
    if marks == 0 and slots and images:
        if len(images) != len(slots) or any(slot.source != one for slot, one in zip(slots, images, strict=True)):
            raise BadRowError(
                f"Expected images in the turns or in a list, got {len(slots)} and {len(images)}; remove one of them"
            )
        images = ()
    elif marks == 0 and images:  # images without a mark go before the first question
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = Turn(turns[first].role, (Slot(),) * len(images) + turns[first].pieces)
    elif marks != len(images):
        raise BadRowError(mark_problem(len(images), marks))
    first_question = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    ends = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i > first_question]
    if not ends or not all(turns[i - 1].role == "user" for i in ends):
        roles = ", ".join(turn.role for turn in turns)
        raise BadRowError(f"Expected each answer after a question, got turns of {roles or 'none'}; fix the row")
    learned = [i for i in ends if turns[i].learned]
    if not learned:
        raise BadRowError("Expected an answer to learn, got only answers with weight 0 or train false; drop the row")
    return [(Exchange(tuple(turns[:i]), images, len(ends) > 1), _answer(turns[i])) for i in learned]


def _with_videos(turns: list[Turn], row: Mapping[str, Any]) -> list[Turn]:
    """The turns with the row's list of videos at their marks, or before the first question."""
    listed = next((value for name in VIDEOS if (value := listed_text(row.get(name)))), ())
    listed, fps = list(listed) if isinstance(listed, (list, tuple)) else [listed], row.get("fps")
    slots = [piece for turn in turns for piece in turn.pieces if isinstance(piece, Slot) and piece.video]
    if not listed and not slots:
        return turns
    if fps is not None and not (isinstance(fps, (int, float)) and fps > 0):
        raise BadRowError(f"Expected frames a second as fps, got {fps!r}; fix the row")
    marks = [slot for slot in slots if slot.source is None]
    if listed and slots and not marks:
        if [slot.source for slot in slots] != listed:
            raise BadRowError("Expected videos in the turns or in a list, got different ones; remove one of them")
        listed = []
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    if listed and turns and not marks:
        turns[first] = Turn(turns[first].role, (Slot(video=True),) * len(listed) + turns[first].pieces)
    elif len(marks) != len(listed):
        found = f"{len(listed)} and {len(marks)}"
        raise BadRowError(
            f"Expected as many videos as {VIDEO_MARK} marks, got {found}; add the video or remove the mark"
        )
    following = iter(listed)

    def filled(piece: str | Slot) -> str | Slot:
        if isinstance(piece, str) or not piece.video:
            return piece
        return Slot(next(following) if piece.source is None else piece.source, True, fps)

    return [Turn(turn.role, tuple(map(filled, turn.pieces)), turn.learned) for turn in turns]


def _folded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in lower case; of two that differ only in case the first."""
    return {fold(str(key)): value for key, value in reversed([*row.items()])}


def images_in(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row's own images, from the first usual field that has some.

    Raises:
        BadRowError: `image` and `images` hold different ones.
    """
    folded = _folded(row)
    found = {name: tuple(images) for name in IMAGES if (images := listed_images(folded.get(name)))}
    if {"image", "images"} <= found.keys() and found["image"] != found["images"]:
        raise BadRowError("Expected images in one field, got different ones in image and images; remove one field")
    return next(iter(found.values()), ())


def turns_of(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row, its system text first.

    Raises:
        BadRowError: as `exchanges_of`.
    """
    row = _folded(row)
    stored = next((listed for key in TURNS if (listed := _listed(row.get(key))) is not None), None)
    if stored is not None and row.get("history"):
        raise BadRowError("Expected earlier turns in the list of turns, got a separate history; put its turns first")
    if stored is None:
        stored = _pair(row)
    if stored is None:
        if "chosen" in row and "rejected" in row:
            raise BadRowError("Expected one answer, got chosen and rejected ones, of preference training; keep one")
        raise BadRowError(
            f"Expected a list in {' or '.join(TURNS[:2])}, got fields {', '.join(map(str, row))}; fix the row"
        )
    turns = _merged([_turn(message) for turn in stored for message in _both(turn)])
    system = next((row[key] for key in SYSTEM if row.get(key) not in (None, "", [])), None)
    if system is None:
        return turns
    system = text_of("system", system[0] if isinstance(system, list) and len(system) == 1 else system)
    if turns and turns[0].role == "system":
        if turns[0].pieces != (system,):
            raise BadRowError("Expected one system text, got one in a field and another in a turn; remove one")
        return turns
    return [Turn("system", (system,)), *turns]


def _listed(value: Any) -> list[Any] | None:
    """A list of turns, also one stored as text in a table."""
    found = listed_text(value)
    if isinstance(found, str) and found.startswith("["):
        raise BadRowError(f"Expected turns in JSON, got a text that is not JSON ({found[:60]!r}); fix the row")
    return list(found) if isinstance(found, (list, tuple)) else None


def _both(turn: Any) -> list[Any]:
    """A turn, or the two of {"user": ..., "assistant": ...}."""
    if not isinstance(turn, Mapping) or not {"user", "assistant"} <= turn.keys():
        return [turn]
    return [{"role": role, "content": turn[role]} for role in ("user", "assistant")]


def _pair(row: Mapping[str, Any]) -> list[Any] | None:
    """A row of one question and its answer as turns, after those of its `history`."""
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            question, answer = _turns_or_text(row[asked], "user"), _turns_or_text(row[answered], "assistant")
            more = row.get("input") if asked == "instruction" else None
            if isinstance(more, str) and more.strip() and isinstance(row[asked], str):
                question = [{"role": "user", "content": f"{row[asked]}\n{more.strip()}"}]
            return [*_history(row.get("history")), *question, *answer]
    return None


def _turns_or_text(value: Any, role: str) -> list[Any]:
    turns = isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping) and ROLE_KEYS & value[0].keys()
    return list(value) if turns else [{"role": role, "content": value}]


def _history(pairs: Any) -> Iterator[dict[str, Any]]:
    for pair in listed_text(pairs) or ():  # type: ignore[attr-defined]
        if isinstance(pair, Mapping) and ROLE_KEYS & pair.keys():
            yield dict(pair)
            continue
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRowError(f"Expected pairs of question and answer in history, got {str(pair)[:80]!r}; fix the row")
        yield from ({"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True))


ROLE_KEYS = {"role", "from", "speaker"}


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of a user that follow each other as one."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and turn.role == "user" == merged[-1].role:
            between = ("\n",) if isinstance(merged[-1].pieces[-1], str) and isinstance(turn.pieces[0], str) else ()
            merged[-1] = Turn("user", (*merged[-1].pieces, *between, *turn.pieces))
        else:
            merged.append(turn)
    return merged


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise BadRowError(f"Expected a message with role and content, got {message!r}; fix the row")
    name = next((message[key] for key in ("role", "from", "speaker") if message.get(key)), None)
    role = ROLES.get(str(name).lower())
    if role is None:
        raise BadRowError(f"Expected a role of {', '.join(ROLES)}, got {name!r}; fix or drop the row")
    if message.get("tool_calls") or message.get("function_call"):
        raise BadRowError("Expected text and images, got tool calls; drop the row")
    content = next(
        (message[key] for key in ("content", "value", "text", "parts") if message.get(key) is not None), None
    )
    pieces = tuple(piece for part in _parts(content, role) for piece in _pieces(part, marked=role != "assistant"))
    pieces = _own_images(message, pieces)
    if not pieces:
        raise BadRowError(f"Expected a text or an image as content, got {content!r}; fix the row")
    flags = {key: str(message[key]).lower() for key in LEARNED if message.get(key) is not None}
    if odd := [key for key in flags if flags[key] not in ("0", "0.0", "1", "1.0", "true", "false")]:
        raise BadRowError(f"Expected 0 or 1 as {odd[0]} of an answer, got {message[odd[0]]!r}; fix the row")
    return Turn(role, pieces, not {"0", "0.0", "false"} & {*flags.values()})


def _parts(content: Any, role: Role) -> Sequence[Any]:
    """A message's content as a list of texts and objects; an answer that is itself a list or object becomes JSON."""
    if isinstance(content, str) and content.lstrip().startswith('[{"type"'):
        content = listed_text(content)
    if role == "assistant" and _is_json_answer(content):
        return [json.dumps(content, ensure_ascii=False)]
    if isinstance(content, (list, tuple)):
        return content
    number = isinstance(content, (bool, int, float))
    return [text_of("content", content) if number else content]


def _is_json_answer(content: Any) -> bool:
    if isinstance(content, Mapping):
        return not PART_KEYS & content.keys()
    listed = isinstance(content, (list, tuple)) and len(content) > 1
    return listed and not any(isinstance(part, Mapping) and PART_KEYS & part.keys() for part in content)


PART_KEYS = {"type", *TEXT_KINDS, *IMAGE_KINDS}
"""Keys of one part of a message's content."""


def _own_images(message: Mapping[str, Any], pieces: tuple[str | Slot, ...]) -> tuple[str | Slot, ...]:
    """The pieces with the images that the message itself lists, at its marks or before its text."""
    own = [*listed_images(message.get("images")), *listed_images(message.get("image"))]
    marks = [place for place, piece in enumerate(pieces) if piece == Slot()]
    if not own:
        return pieces
    if not marks:
        return (*map(Slot, own), *pieces)
    if len(marks) != len(own):
        raise BadRowError(mark_problem(len(own), len(marks)))
    image_at = dict(zip(marks, map(Slot, own), strict=True))
    return tuple(image_at.get(place, piece) for place, piece in enumerate(pieces))


def _pieces(piece: Any, *, marked: bool) -> list[str | Slot]:
    """One part of a message's content: an image, or text cut at its marks; in an answer a mark is text."""
    if isinstance(piece, str):
        piece = {"type": "text", "text": piece}
    if not isinstance(piece, Mapping):
        raise BadRowError(f"Expected a text or an image as content, got {str(piece)[:80]!r}; fix the row")
    kind = piece.get("type") or next((key for key in ("text", *IMAGE_KINDS) if piece.get(key) is not None), None)
    if kind in IMAGE_KINDS:
        keys = (*IMAGE_KINDS, "path", "url", "source", "file_path")
        return [Slot(next((piece[key] for key in keys if piece.get(key)), None))]
    if kind == "video":
        return [Slot(next((piece[key] for key in ("video", "path", "url") if piece.get(key)), None), video=True)]
    text = piece.get("text")
    if kind not in TEXT_KINDS or not isinstance(text, str):
        raise BadRowError(f"Expected a text or an image as content, got {str(piece)[:80]!r}; fix the row")
    if UNSOUND.search(text):
        raise BadRowError(f"Expected a text as content, got {text[:80]!r}, with a zero byte or lone surrogate; fix it")
    if not marked:
        return [text]
    if VIDEO_MARK in text:
        parts = [_pieces(part.strip(), marked=True) if part.strip() else [] for part in text.split(VIDEO_MARK)]
        return [*parts[0], *(piece for part in parts[1:] for piece in (Slot(video=True), *part))]
    require_own_marks(QWEN_TAG.sub("", text))
    made: list[str | Slot] = []
    for number, part in enumerate(QWEN_TAG.split(text)):  # text and path in turns
        if number % 2:
            made.append(Slot(part))
        elif MARK in part:
            made += [Slot() if cut is None else cut for cut in cut_at_marks(part)]
        elif part:
            made.append(part)
    return made


def _answer(turn: Turn) -> str:
    if any(isinstance(piece, Slot) for piece in turn.pieces):
        raise BadRowError("Expected an answer of text, got one with an image; drop the row")
    return "".join(piece for piece in turn.pieces if isinstance(piece, str))
