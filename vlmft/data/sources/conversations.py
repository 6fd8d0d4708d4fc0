"""Rows that are conversations, in the forms of the Hub, LLaVA, ShareGPT, OpenAI, Qwen, TRL, ms-swift and Alpaca."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmft.data.fields import MARK, mark_problem
from vlmft.data.roles import USUAL_NAMES, fold
from vlmft.sample import BadRowError, Role

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")
"""Fields that hold the list of turns."""
PAIRS = (
    ("prompt", "completion"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "response"),
)
"""Fields of a row that is one question and its answer: TRL's, ms-swift's, Alpaca's and others."""
IMAGES = USUAL_NAMES["image"]
SYSTEM = USUAL_NAMES["system"]
OTHER_MEDIA = ("video", "videos", "audio", "audios", "objects")
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "answer"), "assistant"),
}
IMAGE_KINDS = ("image", "image_url", "input_image")
TEXT_KINDS = ("text", "input_text", "output_text")
QWEN_TAG = re.compile(r"<img>\s*(.*?)\s*</img>", re.DOTALL)
"""Qwen-VL's own form: the image's path in the text."""


@dataclass(frozen=True)
class Slot:
    """Where an image stands; `source` is its path or bytes, or None for the next one of the row's list."""

    source: Any = None


@dataclass(frozen=True)
class Turn:
    """One message as the row holds it, in one form for all forms."""

    role: Role
    pieces: tuple[str | Slot, ...]
    learned: bool = True
    """False for an answer that its row keeps from training (`weight` 0, `loss` or `train` false)."""


@dataclass(frozen=True)
class Exchange:
    """One answer, and what stands before it. No mapping: the leak canary must not replace an earlier answer in it."""

    earlier: tuple[Turn, ...]
    images: tuple[Any, ...]
    """The row's list, of which the marks in `earlier` take the first ones."""
    conversation: bool
    """Whether the row has other exchanges."""


def exchanges_of(row: Mapping[str, Any]) -> list[tuple[Exchange, str]]:
    """Each answer that is to be learned, with what stands before it.

    Turns of one user that follow each other are one question. Answers before any question are context alone.

    Raises:
        BadRowError: no turns, an unknown role, no answer, two answers to one question, an answer with an image, other
            media, another number of marks than of images.
    """
    for key in OTHER_MEDIA:
        if row.get(key):
            raise BadRowError(f"Expected text and images, got {key}; drop the row")
    turns, images = turns_of(row), images_in(row)
    marks = sum(piece == Slot() for turn in turns for piece in turn.pieces)
    if marks == 0 and images:  # images without a place stand before the first question
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = Turn(turns[first].role, (Slot(),) * len(images) + turns[first].pieces)
    elif marks != len(images):
        raise BadRowError(mark_problem(len(images), marks))
    asked = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    ends = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i > asked]
    if not ends or not all(turns[i - 1].role == "user" for i in ends):
        found = ", ".join(turn.role for turn in turns)
        raise BadRowError(f"Expected each answer after a question, got turns of {found or 'none'}; mend the row")
    learned = [i for i in ends if turns[i].learned]
    return [(Exchange(tuple(turns[:i]), images, len(ends) > 1), _answer(turns[i])) for i in learned]


def images_in(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row's own images, under the first of their usual names that holds some."""
    from vlmft.data.fields import listed_images

    keys = {fold(str(key)): key for key in reversed(list(row))}
    found = (listed_images(row[keys[name]]) for name in IMAGES if name in keys)
    return tuple(next((images for images in found if images), ()))


def turns_of(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row, its system text first.

    Raises:
        BadRowError: as `exchanges_of`.
    """
    stored = next((found for key in TURNS if (found := _listed(row.get(key))) is not None), None)
    if stored is None:
        stored = _pair(row)
    if stored is None:
        if "chosen" in row and "rejected" in row:
            raise BadRowError("Expected one answer, got chosen and rejected ones, of preference training; take one")
        raise BadRowError(
            f"Expected a list in {' or '.join(TURNS[:2])}, got fields {', '.join(map(str, row))}; mend the row"
        )
    turns = _merged([_turn(message) for message in stored])
    system = next((row[key] for key in SYSTEM if isinstance(row.get(key), str) and row[key].strip()), None)
    if system is None:
        return turns
    if turns and turns[0].role == "system":
        if turns[0].pieces != (system,):
            raise BadRowError("Expected one system text, got one in a field and another in a turn; take one out")
        return turns
    return [Turn("system", (system,)), *turns]


def _listed(value: Any) -> list[Any] | None:
    """A list of turns, also one that a table holds as its text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRowError(f"Expected turns in JSON, got a text that is none ({error}); mend the row") from error
    return list(value) if isinstance(value, (list, tuple)) else None


def _pair(row: Mapping[str, Any]) -> list[Any] | None:
    """A row of one question and its answer as turns, what it calls its history before them."""
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            question, answer = _turns_or_text(row[asked], "user"), _turns_or_text(row[answered], "assistant")
            more = row.get("input") if asked == "instruction" else None
            if isinstance(more, str) and more.strip() and isinstance(row[asked], str):
                question = [{"role": "user", "content": f"{row[asked]}\n{more.strip()}"}]
            return [*_history(row.get("history")), *question, *answer]
    return None


def _turns_or_text(value: Any, role: str) -> list[Any]:
    found = _listed(value) if isinstance(value, (list, tuple)) else None
    return found if found is not None else [{"role": role, "content": value}]


def _history(pairs: Any) -> Iterator[dict[str, Any]]:
    for pair in pairs or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRowError(f"Expected pairs of question and answer in history, got {str(pair)[:80]!r}; mend the row")
        yield from ({"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True))


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of a user that follow each other as one."""
    found: list[Turn] = []
    for turn in turns:
        if found and turn.role == "user" == found[-1].role:
            between = ("\n",) if isinstance(found[-1].pieces[-1], str) and isinstance(turn.pieces[0], str) else ()
            found[-1] = Turn("user", (*found[-1].pieces, *between, *turn.pieces))
        else:
            found.append(turn)
    return found


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise BadRowError(f"Expected a message with role and content, got {message!r}; mend the row")
    said = next((message[key] for key in ("role", "from", "speaker") if message.get(key)), None)
    role = ROLES.get(str(said).lower())
    if role is None:
        raise BadRowError(f"Expected a role of {', '.join(ROLES)}, got {said!r}; mend or drop the row")
    if message.get("tool_calls"):
        raise BadRowError("Expected text and images, got calls of tools; drop the row")
    content = next(
        (message[key] for key in ("content", "value", "text", "parts") if message.get(key) is not None), None
    )
    pieces = content if isinstance(content, (list, tuple)) else [{"type": "text", "text": content}]
    found = tuple(made for piece in pieces for made in _pieces(piece, marked=role != "assistant"))
    if not found:
        raise BadRowError(f"Expected a text or an image as content, got {content!r}; mend the row")
    learned = message.get("weight", 1) != 0 and message.get("loss", True) is not False
    return Turn(role, found, learned and message.get("train", True) is not False)


def _pieces(piece: Any, *, marked: bool) -> list[str | Slot]:
    """One part of a message's content: an image, or text cut at its marks; in an answer a mark is text."""
    if isinstance(piece, str):
        piece = {"type": "text", "text": piece}
    if not isinstance(piece, Mapping):
        raise BadRowError(f"Expected a text or an image as content, got {str(piece)[:80]!r}; mend the row")
    kind = piece.get("type") or next(
        (key for key in ("text", "image", "image_url") if piece.get(key) is not None), None
    )
    if kind in IMAGE_KINDS:
        keys = ("image", "image_url", "path", "url", "source", "file_path")
        return [Slot(next((piece[key] for key in keys if piece.get(key)), None))]
    text = piece.get("text")
    if kind not in TEXT_KINDS or not isinstance(text, str):
        raise BadRowError(f"Expected a text or an image as content, got {str(piece)[:80]!r}; mend the row")
    if not marked:
        return [text]
    return [made for tagged, plain in _tagged(text) for made in ([Slot(plain)] if tagged else _marked(plain))]


def _tagged(text: str) -> Iterator[tuple[bool, str]]:
    """The text in turns with the paths of Qwen-VL's image tags: (whether it is a path, the piece)."""
    for number, part in enumerate(QWEN_TAG.split(text)):
        if number % 2 or part:
            yield bool(number % 2), part


def _marked(text: str) -> list[str | Slot]:
    if MARK not in text:
        return [text]
    found: list[str | Slot] = []
    for number, part in enumerate(text.split(MARK)):
        found += ([Slot()] if number else []) + ([part.strip()] if part.strip() else [])
    return found


def _answer(turn: Turn) -> str:
    if any(isinstance(piece, Slot) for piece in turn.pieces):
        raise BadRowError("Expected an answer of text, got one with an image; drop the row")
    return "".join(piece for piece in turn.pieces if isinstance(piece, str))
