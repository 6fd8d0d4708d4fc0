"""How a family writes boxes and points: a grid over the picture, and a syntax. Everywhere else they are in pixels.

| name           | grid                            | text of a box                                      |
|----------------|---------------------------------|----------------------------------------------------|
| thousand       | 0..1000 across and down         | `[{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}]`  |
| resized_pixels | pixels of the resized picture   | the same                                           |
| y_first        | 0..1000                         | `[{"box_2d": [y0, x0, y1, x1], "label": "cat"}]`   |
| percent        | 0..100, for a model as small as `tiny` | `cat 38 21 56 45; dog 0 0 9 9`              |
| qwen2_vl       | 0..1000                         | its tokens around `cat` and around `(x0,y0),(x1,y1)` |
| internvl       | 0..1000                         | `<ref>cat</ref><box>[[x0, y0, x1, y1]]</box>`      |
| loc            | 1024 bins                       | `<locY0><locX0><locY1><locX1> cat ; ...`, 4 digits |

Sources: https://github.com/QwenLM/Qwen3-VL (cookbooks; issues 721 and 1486), https://arxiv.org/abs/2409.12191 section
2.2.1, https://internvl.readthedocs.io, https://arxiv.org/abs/2407.07726 section 3.2, https://ai.google.dev/gemini-api.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.sample import BadRowError, Image, Mark, Message, Prompt, mark_of, marks_text, read_marks

Size = tuple[int, int]
Item = tuple[str, list[float]]
"""Label, and x0, y0, x1, y1 or x, y on the grid."""

FAMILIES = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "resized_pixels",
    "internvl": "internvl",
    "paligemma": "loc",
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), "thousand"),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), "thousand"),
}
"""model_type -> what its makers trained it on; every other gets `thousand`."""
NO_TEXT = {"moondream1": "moondream2 makes boxes by another head, not in text"}
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*(?:```|$)", re.DOTALL)
_OBJECT = re.compile(r"\{[^{}]*\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QWEN2 = re.compile(
    r"(?:<\|object_ref_start\|>(.*?)<\|object_ref_end\|>)?((?:<\|box_start\|>.*?<\|box_end\|>)+)", re.DOTALL
)
_INTERNVL = re.compile(r"(?:<ref>(.*?)</ref>)?<box>(.*?)</box>", re.DOTALL)
_LOC = re.compile(r"((?:<loc\d{4}>)+)\s*([^<;]*)")


class Syntax:
    """Items of whole numbers to text and back."""

    tokens: tuple[str, ...] = ()
    """Special tokens of the model that it writes with."""
    stops = ""
    """Characters that no label may hold, because they end it."""

    def hint(self, kind: str, grid: str) -> str:
        """What a question says of the form; empty where the makers' own models need no telling."""
        return ""

    def write(self, items: Sequence[tuple[str, list[int]]]) -> str:
        raise NotImplementedError

    def read(self, text: str) -> list[Item] | None:
        """The items in an answer; None where there is nothing to read."""
        if text.strip() == "[]":
            return []
        return [item for item in self._items(text) if len(item[1]) in (2, 4)] or None

    def _items(self, text: str) -> Iterator[Item]:
        """Labels with their numbers, of which four are a box and two a point."""
        raise NotImplementedError


@dataclass(frozen=True)
class Json(Syntax):
    """A list of objects. Reading takes any of the usual keys, fences and words around, and what a cut answer has."""

    box: str = "bbox_2d"
    point: str = "point_2d"
    y_first: bool = False

    def hint(self, kind: str, grid: str) -> str:
        key, names = (self.point, "xy") if kind == "points" else (self.box, "x0 y0 x1 y1")
        order = list(names) if kind == "points" else names.split()
        numbers = ", ".join(_swapped(order) if self.y_first else order)
        return f'\nAnswer in JSON, {grid}: [{{"{key}": [{numbers}], "label": "..."}}]'

    def write(self, items: Sequence[tuple[str, list[int]]]) -> str:
        told = []
        for label, numbers in items:
            key = self.box if len(numbers) == 4 else self.point
            told.append({key: _swapped(numbers) if self.y_first else numbers, **({"label": label} if label else {})})
        return json.dumps(told, ensure_ascii=False)

    def read(self, text: str) -> list[Item] | None:
        inner = fenced[1] if (fenced := _FENCE.search(text)) else text
        if re.fullmatch(r"\s*\[\s*\]\s*", inner):
            return []
        found = [item for one in _objects(inner) if (item := self._item(one)) is not None]
        if not found and "{" not in inner:  # bare lists of numbers
            lists = re.findall(r"\[([^\[\]]*)\]", inner)
            found = [("", n) for some in lists if len(n := [float(x) for x in _NUMBER.findall(some)]) in (2, 4)]
        return [(label, _swapped(n) if self.y_first else n) for label, n in found] or None

    def _item(self, fields: Any) -> Item | None:
        try:
            numbers = next(fields[k] for k in dict.fromkeys((self.box, self.point, *_KEYS)) if k in fields)
            numbers = [float(n) for n in numbers]
        except (ValueError, TypeError, AttributeError, StopIteration):
            return None
        return (str(fields.get("label", "")), numbers) if len(numbers) in (2, 4) else None


def _objects(text: str) -> list[Any]:
    """Of a whole JSON list or object, else each object in the text that is whole."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    found = []
    for match in _OBJECT.finditer(text):
        with contextlib.suppress(ValueError):
            found.append(json.loads(match[0]))
    return found


_KEYS = ("bbox_2d", "box_2d", "bbox", "box", "point_2d", "point")


class Qwen2(Syntax):
    """Its special tokens around labels and corners."""

    tokens = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")

    def write(self, items: Sequence[tuple[str, list[int]]]) -> str:
        """Nothing is an empty list, as in JSON: an answer has at least one token."""
        told = []
        for label, n in items:
            corners = ",".join(f"({n[i]},{n[i + 1]})" for i in range(0, len(n), 2))
            named = f"<|object_ref_start|>{label}<|object_ref_end|>" if label else ""
            told.append(f"{named}<|box_start|>{corners}<|box_end|>")
        return "".join(told) or "[]"

    def _items(self, text: str) -> Iterator[Item]:
        for label, boxes in _QWEN2.findall(text):
            for box in re.findall(r"<\|box_start\|>(.*?)<\|box_end\|>", boxes, re.DOTALL):
                yield label.strip(), [float(n) for n in _NUMBER.findall(box)]


class Plain(Syntax):
    """The label and its numbers, as few tokens as there can be."""

    stops = ";"

    def write(self, items: Sequence[tuple[str, list[int]]]) -> str:
        return "; ".join(f"{label} {' '.join(map(str, numbers))}".strip() for label, numbers in items) or "[]"

    def _items(self, text: str) -> Iterator[Item]:
        for part in text.split(";"):
            if match := re.fullmatch(r"\s*(.*?)\s*((?:\b\d+\s+){3}\d+|\d+\s+\d+)\s*", part, re.DOTALL):
                yield match[1], [float(n) for n in match[2].split()]


class InternVL(Syntax):
    """Labels and lists in pairs of tags."""

    tokens = ("<ref>", "</ref>", "<box>", "</box>")
    stops = "<"

    def write(self, items: Sequence[tuple[str, list[int]]]) -> str:
        return "".join((f"<ref>{label}</ref>" if label else "") + f"<box>[{n}]</box>" for label, n in items) or "[]"

    def _items(self, text: str) -> Iterator[Item]:
        for label, boxes in _INTERNVL.findall(text):
            for some in re.findall(r"\[([^\[\]]*)\]", boxes):
                yield label.strip(), [float(n) for n in _NUMBER.findall(some)]


class Loc(Syntax):
    """Tokens of places, y before x, the label behind them, `;` between items."""

    tokens = tuple(f"<loc{n:04d}>" for n in range(1024))
    stops = ";<"

    def write(self, items: Sequence[tuple[str, list[int]]]) -> str:
        told = ("".join(f"<loc{n:04d}>" for n in _swapped(numbers)) + f" {label}" for label, numbers in items)
        return " ; ".join(text.strip() for text in told) or "[]"

    def _items(self, text: str) -> Iterator[Item]:
        for tokens, label in _LOC.findall(text):
            numbers = [float(n) for n in re.findall(r"\d{4}", tokens)]
            if len(numbers) % 2 == 0:  # else it is neither, and has no pairs
                yield label.strip(), _swapped(numbers)


def _swapped(numbers: Sequence[Any]) -> list[Any]:
    """Each pair the other way round."""
    return [numbers[i ^ 1] for i in range(len(numbers))]


@dataclass(frozen=True)
class Coordinates:
    """One convention. Pickles: it travels to workers with its family."""

    name: str
    syntax: Syntax
    grid: Callable[[Size], Size]
    """(width, height) of a picture in pixels -> of the same picture in units of the grid."""
    most: int | None = None
    """The highest number there is, where it is not the grid's own edge."""
    said: str = "0 to 1000 across and down"
    """Of the grid, also in a question."""
    origin: str = "as model.coordinates says"

    @property
    def words(self) -> str:
        """For reports and model cards."""
        example = self.syntax.write([("cat", [10, 20, 30, 40])])
        resized = " of the picture as its image processor resizes it" if isinstance(self.grid, _Resized) else ""
        return f"{self.name} ({self.origin}): `{example}`, {self.said}{resized}"

    def answer(self, text: str, size: Size) -> str:
        """`marks_text` as the family writes it; any other text as it is."""
        marks = read_marks(text)
        return text if marks is None else self.write(marks, size)

    def write(self, marks: Sequence[Mark], size: Size) -> str:
        grid = self.grid(size)
        items = []
        for mark in marks:
            if set(mark.label) & set(self.syntax.stops):
                raise BadRowError(
                    f"Expected a label without any of {self.syntax.stops!r}, got {mark.label!r}; rename it"
                )
            on_grid = [round(n * grid[i % 2] / size[i % 2]) for i, n in enumerate(mark.numbers)]
            items.append((mark.label, [min(max(n, 0), self.most or grid[i % 2]) for i, n in enumerate(on_grid)]))
        return self.syntax.write(items)

    def pixels(self, text: str, size: Size) -> str:
        """An answer in pixels, as `marks_text`; as it is where nothing can be read."""
        items = self.syntax.read(text)
        if items is None:
            return text
        grid = self.grid(size)
        scaled = [(label, [n * size[i % 2] / grid[i % 2] for i, n in enumerate(found)]) for label, found in items]
        return marks_text([mark_of(numbers, label) for label, numbers in scaled])

    def prompt(self, prompt: Prompt) -> Prompt:
        """The prompt with its boxes and points as the family writes them, and the form told in each question."""
        size, messages = None, list[Message]()
        for message in prompt.messages:
            pieces = list[str | Image]()
            for piece in message.content:
                size = piece.size if isinstance(piece, Image) else size
                pieces.append(self._inside(piece, size) if isinstance(piece, str) and size is not None else piece)
            if message.role == "user" and (hint := self.syntax.hint(prompt.marks, self.said)):
                pieces.append(hint)
            messages.append(Message(message.role, tuple(pieces)))
        return replace(prompt, messages=tuple(messages))

    def _inside(self, text: str, size: Size) -> str:
        """The text with each list of marks in it rewritten."""
        if text.strip() == "[]":
            return self.write((), size)
        decoder, done = json.JSONDecoder(), ""
        while (start := text.find('[{"pixels"')) >= 0:
            try:
                _, end = decoder.raw_decode(text, start)
            except ValueError:
                break
            done, text = done + text[:start] + self.answer(text[start:end], size), text[end:]
        return done + text


def marked_size(prompt: Prompt) -> Size | None:
    """Size of the image that the answer's marks lie in: the last one. None where the answer is plain text, or the
    prompt a control that shows none."""
    return prompt.images[-1].size if prompt.marks and prompt.images else None


def _thousand(size: Size) -> Size:
    return (1000, 1000)


def _hundred(size: Size) -> Size:
    return (100, 100)


def _bins(size: Size) -> Size:
    return (1024, 1024)


THOUSAND = Coordinates("thousand", Json(), _thousand)


@dataclass(frozen=True)
class _Resized:
    """The picture as Qwen's image processor makes it."""

    images: Any

    def __call__(self, size: Size) -> Size:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        from vlmft.models.refusals import processor_refusals

        factor, limits = self.images.patch_size * self.images.merge_size, self.images.size
        with processor_refusals():
            height, width = smart_resize(size[1], size[0], factor, limits.shortest_edge, limits.longest_edge)
        return width, height


def coordinates_of(named: str, model_type: str, processor: Any) -> Coordinates | None:
    """The convention that `model.coordinates` names, or for `auto` the architecture's own; None where it has no text.

    Raises:
        ConfigError: pixels of the resized picture of a processor that does not say that size.
    """
    origin = "as model.coordinates says"
    if named == "auto":
        if model_type in NO_TEXT:
            return None
        origin = "as its makers trained it" if model_type in FAMILIES else "the default: its makers publish none"
        named = FAMILIES.get(model_type, "thousand")
    if named == "resized_pixels":
        if not hasattr(processor.image_processor, "merge_size"):
            raise ConfigError("model.coordinates: resized_pixels is for Qwen's image processors; choose another")
        return Coordinates(named, Json(), _Resized(processor.image_processor), said="in pixels", origin=origin)
    if named == "percent":
        return Coordinates(named, Plain(), _hundred, said="0 to 100 across and down", origin=origin)
    if named == "loc":
        return Coordinates(named, Loc(), _bins, most=1023, said="1024 bins, y before x", origin=origin)
    syntaxes = {"thousand": Json(), "y_first": Json("box_2d", "point", y_first=True), "qwen2_vl": Qwen2()}
    return Coordinates(named, syntaxes.get(named) or InternVL(), _thousand, origin=origin)
