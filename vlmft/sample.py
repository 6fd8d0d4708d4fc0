"""THE contract: every value that flows from a dataset through a model to an answer. Imports nothing of ours.

| value        | made by                  | holds                                                               |
|--------------|--------------------------|---------------------------------------------------------------------|
| `Image`      | dataset                  | a picture by reference: size, content hash, how to decode it to RGB |
| `Box`        | dataset, family          | a labelled rectangle in pixels of the decoded picture; `Point` alike |
| `Message`    | dataset                  | role + text pieces and images, in reading order                     |
| `Prompt`     | dataset                  | messages up to the question. A type WITHOUT an answer               |
| `Sample`     | dataset `to_sample`      | `Prompt` + answer (trained on) + references (scored against)        |
| `EncodedRow` | family `encode`          | one sample as token ids for one model family; images still apart    |
| `BadRow`     | any stage                | a row that is not used, and why                                     |
| `Batch`      | family `collate`         | tensors of some rows of a window, in one layout                     |
| `Answer`     | `evaluation/predict.py`  | model text for one prompt, and how it ended                         |

Shapes: B rows, T tokens (padded), N image tokens, D model width. Arrays are numpy until `collate`, torch after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:  # torch and PIL are needed for annotations alone: checking a config must not import them
    import PIL.Image
    import torch

GROUP, CLASS = "group", "class"
"""Tags of a Sample that mean something here: rows of one group stay in one split; splits and subsets have all classes
in proportion."""
Role = Literal["system", "user", "assistant"]
Split = Literal["train", "val", "test"]
Layout = Literal["right", "left", "shared_prefix"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class BadRowError(ValueError):
    """A row that cannot be used. The message says why; whoever catches it knows the row's id."""


def pixels_sha256(pixels: np.ndarray) -> str:
    """Hash of (height, width, 3) uint8 pixels and their shape, hex."""
    height, width, _ = pixels.shape
    return hashlib.sha256(f"{width}x{height}:".encode() + pixels.tobytes()).hexdigest()


PIXEL_HASHES: dict[str, str] = {}
"""`Image.identity` -> `Image.sha256` of images that were decoded in this process, or whose features are stored."""
MOST_PIXEL_HASHES = 1_000_000


@dataclass(frozen=True)
class Image:
    """A picture by reference. Two images with the same decoded pixels have the same `sha256`, whatever their files."""

    load: Callable[[], PIL.Image.Image]
    """Decodes to RGB under the one image policy (`vlmft/data/images.py`); raises `BadRowError`. Picklable."""
    name: str
    """What a person would look for: a path below the data folder, or "scene 12/34"."""
    identity: str = ""
    """What determines the pixels and costs no decoding: a file's path, size and times, or a hash of encoded bytes, and
    the code that decodes them. "" where nothing does."""
    measure: Callable[[], tuple[int, int]] | None = None
    """Tells `size` without decoding; raises `BadRowError`. Picklable."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the decoded picture, in pixels."""
        return self.measure() if self.measure is not None else self.load().size

    @property
    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8, decoded at each call: a split's worth of decoded images would fill the memory."""
        pixels = np.asarray(self.load())
        if not self.is_hashed:  # the hash rides along, so that nobody decodes a second time for it
            self.__dict__["sha256"] = pixels_sha256(pixels)
            if self.identity and len(PIXEL_HASHES) < MOST_PIXEL_HASHES:
                PIXEL_HASHES[self.identity] = self.sha256
        return pixels

    @property
    def is_hashed(self) -> bool:
        """Whether `sha256` is known without decoding."""
        return "sha256" in self.__dict__ or self.identity in PIXEL_HASHES

    @cached_property
    def sha256(self) -> str:
        """Hash of the decoded pixels and their shape, hex."""
        return PIXEL_HASHES.get(self.identity) or pixels_sha256(self.pixels)

    def __getstate__(self) -> dict[str, Any]:  # travels to workers without its pixels
        return {**vars(self), **({"sha256": self.sha256} if self.is_hashed else {})}


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the decoded image, upright by its EXIF turn: (0, 0) is the upper left corner of the
    picture, (width, height) the lower right one."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.left, self.top, self.right, self.bottom)


@dataclass(frozen=True)
class Point:
    """A place in the same pixels."""

    x: float
    y: float
    label: str = ""

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.x, self.y)


Mark: TypeAlias = Box | Point
Marks = Literal["", "boxes", "points"]


def mark_of(numbers: Sequence[float], label: str) -> Mark:
    """Four numbers are a box, two a point; raises ValueError for any other."""
    if len(numbers) == 2:
        return Point(float(numbers[0]), float(numbers[1]), label)
    left, top, right, bottom = map(float, numbers)
    return Box(left, top, right, bottom, label)


def marks_text(marks: Sequence[Mark]) -> str:
    """The one text of marks outside a family: `[{"pixels": [10, 20.5, 30, 40], "label": "cat"}]`, two decimals."""
    items = []
    for mark in marks:
        numbers = [int(n) if n == int(n) else n for n in (round(float(n), 2) for n in mark.numbers)]
        items.append({"pixels": numbers, **({"label": mark.label} if mark.label else {})})
    return json.dumps(items, ensure_ascii=False)


def read_marks(text: str) -> tuple[Mark, ...] | None:
    """What `marks_text` wrote; None for any other text. No model writes "pixels": what is not converted is not read."""
    if not text.startswith("["):
        return None
    try:
        return tuple(mark_of(item["pixels"], str(item.get("label", ""))) for item in json.loads(text))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


@dataclass(frozen=True)
class Message:
    role: Role
    content: tuple[str | Image, ...]

    @property
    def text(self) -> str:
        """The text pieces joined; images show as nothing."""
        return "".join(piece for piece in self.content if isinstance(piece, str))


@dataclass(frozen=True)
class Prompt:
    """What the model is asked: earlier turns and few-shot examples included, the answer never."""

    messages: tuple[Message, ...]
    marks: Marks = ""
    """What the answer is made of, where it is `marks_text`: a family writes and reads that, and such texts in the
    messages, in its own coordinates, each in those of the last image before it."""

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in reading order."""
        return tuple(piece for message in self.messages for piece in message.content if isinstance(piece, Image))

    @property
    def sha256(self) -> str:
        """Hash of roles, texts and image contents, hex: equal prompts ask the same thing of any model."""
        digest = hashlib.sha256(self.marks.encode())
        for message in self.messages:
            digest.update(f"\x1e{message.role}".encode())
            for piece in message.content:
                digest.update(
                    b"\x1fi" + piece.sha256.encode() if isinstance(piece, Image) else b"\x1ft" + piece.encode()
                )
        return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One question to the model. A conversation of n assistant turns is n samples with one `conversation`."""

    id: str
    prompt: Prompt
    answer: str
    """The text that training teaches."""
    references: tuple[str, ...]
    """The texts that scoring accepts; at least one."""
    conversation: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What a report may break down by, such as {"source": "human"}."""
    question: str = ""
    """The question without the dataset's instructions; "" where the text of the last message is just that."""

    @property
    def bare_question(self) -> str:
        return self.question or self.prompt.messages[-1].text

    @property
    def group(self) -> str:
        """Rows of one group never stand in two splits: the set of image contents, or the text where there is none."""
        hashes = sorted({image.sha256 for image in self.prompt.images})
        return "+".join(hashes) if hashes else self.prompt.sha256

    def __post_init__(self) -> None:
        if not self.references:
            raise BadRowError("Expected at least one reference answer, got none; every question needs its gold text")
        if not self.answer.strip():
            raise BadRowError(f"Expected a non-empty answer, got {self.answer!r}; drop the row or fill it in")


@dataclass(frozen=True)
class EncodedImage:
    """One image as its family's image processor made it, alone."""

    sha256: str
    arrays: Mapping[str, np.ndarray]
    """The processor's output for this image alone, such as pixel_values; without pixels where `features_stored`."""
    placeholder: str = ""
    """The text that the processor writes in the image's place; "" where it does not tell."""
    image: Image | None = None
    """Where `arrays` were made from; None where its features are never stored."""
    features_stored: bool = False
    """Whether the features were in the cache when the row was encoded."""
    feature: np.ndarray | None = None
    """(n_image_tokens, d): where the worker that encoded the row has made it."""


@dataclass(frozen=True)
class EncodedRow:
    """One sample for one family. Without an answer (`supervised` all False) it is a prompt for generation."""

    id: str
    input_ids: np.ndarray
    """(T,) int64. Prompt ids exactly as generation sees them, then answer ids, then the end token."""
    supervised: np.ndarray
    """(T,) bool. True on the answer's ids and the end token: these are predicted and carry loss."""
    prompt_length: int
    """Ids before the answer."""
    token_arrays: Mapping[str, np.ndarray]
    """What else the processor says per token, each (T,) int64, such as mm_token_type_ids."""
    images: tuple[EncodedImage, ...]
    """In reading order."""
    marked_size: tuple[int, int] | None = None
    """(width, height) of the image that the answer's boxes or points lie in; None where the answer is plain text."""

    @property
    def length(self) -> int:
        return len(self.input_ids)

    @property
    def n_supervised(self) -> int:
        return int(self.supervised.sum())


@dataclass(frozen=True)
class BadRow:
    """A row that is not used: goes to the ledger, is counted, and is never replaced by another."""

    id: str
    reason: str


def on_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor there. A GPU copies it while this program goes on, which needs pages that stay where they are."""
    if str(device).startswith("cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class Batch:
    """Tensors of B rows in one layout, T = the longest of them."""

    row_ids: tuple[str, ...]
    layout: Layout
    input_ids: torch.Tensor
    """(B, T) int64."""
    attention_mask: torch.Tensor
    """(B, T) int64, 1 on real tokens; in layout `shared_prefix` (B, 1, T, T): bool,
    or where attention is eager what is added, 0 or the lowest number."""
    position_ids: torch.Tensor
    """(B, T) int64, or (3, B, T) where the family has three-dimensional positions. Padding holds 0 or 1, never read."""
    supervised: torch.Tensor
    """(B, T) bool, as in `EncodedRow`."""
    token_arrays: dict[str, torch.Tensor]
    """Each (B, T) int64."""
    images: tuple[EncodedImage, ...]
    """Of all rows, row by row, in reading order."""
    image_arrays: dict[str, torch.Tensor]
    """Small per-image facts that the language part needs beside the features, such as image_grid_thw (n_images, 3)."""

    @property
    def keep(self) -> torch.Tensor:
        """(B, T) bool: positions whose logits predict a supervised token, which stand one before it."""
        import torch

        return torch.cat([self.supervised[:, 1:], torch.zeros_like(self.supervised[:, :1])], dim=1)

    @property
    def targets(self) -> torch.Tensor:
        """(n_supervised,) int64: the ids that the logits at `keep` are to predict, in the same order."""
        return self.input_ids[:, 1:][self.supervised[:, 1:]]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`; images stay apart as arrays."""
        moved: dict[str, Any] = {
            name: on_device(getattr(self, name), device)
            for name in ("input_ids", "attention_mask", "position_ids", "supervised")
        }
        return dataclasses.replace(
            self,
            **moved,
            token_arrays={k: on_device(v, device) for k, v in self.token_arrays.items()},
            image_arrays={k: on_device(v, device) for k, v in self.image_arrays.items()},
        )


@dataclass(frozen=True)
class Question:
    """What evaluation hands to generation: an id and a prompt. There is no field for the answer."""

    id: str
    prompt: Prompt
    shorter: tuple[Prompt, ...] = ()
    """The same with fewer examples, tried in turn where it is longer than the model takes."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt."""

    text: str
    """Decoded new tokens without special tokens, stripped of surrounding white space."""
    finish: Literal["stop", "length"]
    """`stop`: the end token came; `length`: cut at `max_new_tokens`."""
    n_new_tokens: int
    shots_dropped: int = 0
    """Few-shot examples left out because they did not fit."""
    raw: str = ""
    """What the model wrote, where `text` is that in pixels; else empty."""
