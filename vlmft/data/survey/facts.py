"""The facts that one pass over rows collects: a few numbers for each, so that a million rows take tens of megabytes.

The pass is cached for the next start if the dataset knows which files its rows come from (`cache.py`). Of images only
the paths are cached with it: hashes of pixels have a store of their own. Rows that could not be read are never cached,
but read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import pickle
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np

from vlmft.config.progress import Progress
from vlmft.data.dataset import Dataset, Ids
from vlmft.data.images import file_of, stored_bytes
from vlmft.data.ledger import Ledger
from vlmft.data.survey.cache import Arrays, code_of, kept, one_at_a_time, sha256
from vlmft.data.survey.image_hashes import decoding_threads, image_hashes
from vlmft.data.survey.near_duplicates import LOOK, MIRROR, look, near
from vlmft.sample import CLASS, GROUP, BadRow, BadRowError, Image, Sample

Poll = Callable[[], None]
SampleOf = Callable[[str], Sample]
"""Of a row id; raises BadRowError."""
CONTENT = f"S{LOOK.itemsize}"
NUMBERS = ("asks", "answers", "words", "classes", "text_bytes", "marked", "images", "form")
ROW = np.dtype([(name, "<i8") for name in NUMBERS])
"""The facts of each row.

* asks, answers: hashes of the texts of the prompt and of the answer. form: of the roles of its messages, in order.
* words: of the answer. images: of the row, repeated ones too. classes: a hash of its tag `CLASS`, 0 without one.
* text_bytes: in UTF-8, of all texts of the prompt and of the answer; no tokenizer makes more tokens of them.
* marked: which of `MARKS` occur in a text of the row, as in `marks_in`.
"""
ROWS_AT_ONCE = 64
"""Rows whose images are decoded together."""
MARKS = ("<", "[")
"""Every special token of a model contains one of these: a text without it does not contain the token."""


@dataclass(frozen=True)
class Facts:
    """Facts of n rows."""

    rows: np.ndarray
    """(n,) of `ROW`."""
    shows: np.ndarray
    """(m, 2) int64: a row, and the number in `contents` of one of its images, or of its text where it has none."""
    contents: np.ndarray
    """(k,) of 72 bytes, sorted: the `LOOK` of an image, or the sha256 of a text and zeros."""
    ties: np.ndarray
    """(t, 2) int64: a row, and a hash of a conversation or of a tag `GROUP` that it belongs to."""
    bad: dict[int, str]
    """Row -> why it cannot be used. Its other facts mean nothing."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Facts:
        """The facts of these rows alone, in this order."""
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))

        def moved(pairs: np.ndarray) -> np.ndarray:
            found = np.column_stack([place[pairs[:, 0]], pairs[:, 1]])
            return found[found[:, 0] >= 0]

        return replace(
            self,
            rows=self.rows[rows],
            shows=moved(self.shows),
            ties=moved(self.ties),
            bad={int(place[row]): why for row, why in self.bad.items() if place[row] >= 0},
        )

    def with_rows(self, other: Facts) -> Facts:
        """These rows, then those of `other`."""
        contents, number = np.unique(np.concatenate([self.contents, other.contents]), return_inverse=True)
        shows = np.concatenate([self.shows, other.shows + np.array([len(self), len(self.contents)])])
        return Facts(
            rows=np.concatenate([self.rows, other.rows]),
            shows=np.column_stack([shows[:, 0], number[shows[:, 1]]]),
            contents=contents,
            ties=np.concatenate([self.ties, other.ties + np.array([len(self), 0])]),
            bad=self.bad | {row + len(self): why for row, why in other.bad.items()},
        )

    def shown_images(self) -> np.ndarray:
        """`shows` without the rows of text alone."""
        images: np.ndarray = self.shows[self.rows["images"][self.shows[:, 0]] > 0]
        return images

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """(p,) `LOOK`s of the different images, and (p,) the first row that shows each."""
        shown = self.shown_images()
        shown = shown[np.argsort(shown[:, 0], kind="stable")]
        contents, first = np.unique(shown[:, 1], return_index=True)
        return self.contents[contents].view(LOOK), shown[first, 0]

    def sizes(self) -> list[list[tuple[int, int]]]:
        """Of each row the (width, height) of its different images, in pixels."""
        looks = self.contents.view(LOOK)
        found: list[list[tuple[int, int]]] = [[] for _ in range(len(self))]
        for row, content in self.shown_images().tolist():
            found[row].append((int(looks["width"][content]), int(looks["height"][content])))
        return found

    def groups(self, *, with_near_duplicates: bool = False) -> np.ndarray:
        """(n,) the smallest content number in the group of each row, -1 for a bad row.

        A group is a connected component: rows that share an image (exactly the same decoded pixels), a conversation or
        a tag `GROUP`, over any chain of rows; rows without an image share their text. `with_near_duplicates` ties those
        and mirrored ones together, too.
        """
        _, tie = np.unique(self.ties[:, 1], return_inverse=True)
        tied = np.column_stack([self.ties[:, 0], len(self.contents) + tie])
        pairs = np.concatenate([self.shows, tied])
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        same_row = pairs[1:, 0] == pairs[:-1, 0]
        joined = np.column_stack([pairs[:-1, 1], pairs[1:, 1]])[same_row]
        if with_near_duplicates:
            hashes = np.ascontiguousarray(self.contents.view(LOOK)["perceptual"])
            turned = np.where(hashes.any(axis=1, keepdims=True), hashes ^ MIRROR, hashes)
            twins = itertools.chain(near(hashes, hashes), near(turned, hashes))
            joined = np.concatenate([joined, *(np.column_stack([i, j]) for i, j, _ in twins)])
        roots = connected(len(self.contents) + len(self.ties), joined)
        found = np.full(len(self), -1)
        found[pairs[:, 0]] = roots[pairs[:, 1]]
        return found

    def group_names(self, groups: np.ndarray) -> dict[int, str]:
        """Number of a group -> the hash of its smallest content, hex: the same name in any set of rows."""
        return {int(g): self.contents[g].ljust(32, b"\0")[:32].hex() for g in np.unique(groups) if g >= 0}


def connected(n_contents: int, pairs: np.ndarray) -> np.ndarray:
    """(n_contents,) for each content the smallest in its connected component; `pairs`: (m, 2) edges."""
    from scipy.sparse import coo_array, csgraph  # slow to import, and not needed to check a config

    edges = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(n_contents, n_contents))
    _, labels = csgraph.connected_components(edges, directed=False)
    found: np.ndarray = np.unique(labels, return_index=True)[1][labels]
    return found


def group_sizes(groups: np.ndarray) -> tuple[int, int]:
    """(number of groups, members of the largest), without rows of no group (-1)."""
    _, sizes = np.unique(groups[groups >= 0], return_counts=True)
    return len(sizes), int(sizes.max(initial=0))


@dataclass
class Reading:
    """Facts collected row by row. Images in files are held as paths."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    """The numbers of `ROW`, one row after another."""
    shows: array[int] = field(default_factory=lambda: array("q"))
    """Row and content, in turn: that of files as their number, that of digests as -1 minus theirs."""
    ties: array[int] = field(default_factory=lambda: array("q"))
    files: dict[str, int] = field(default_factory=dict)
    digests: dict[bytes, int] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    seen: dict[bytes, bytes] = field(default_factory=dict)
    """Images that are not in files of their own, by what `_key` says -> their `LOOK`."""

    def add(self, sample: Sample) -> None:
        """Raises BadRowError where an image stored in its row cannot be decoded."""
        row = len(self)
        images, messages = sample.prompt.images, sample.prompt.messages
        for content in [self._content(image) for image in images] or [self._text(sample)]:
            self.shows.extend((row, content))
        for kind, name in (("conversation", sample.conversation), (GROUP, sample.tags.get(GROUP, ""))):
            if name:
                self.ties.extend((row, _hash(f"{kind} {name}")))
        texts = [*(message.text for message in messages), sample.answer]
        numbers = {
            "asks": _hash("\n".join(texts[:-1])),
            "answers": _hash(sample.answer),
            "words": len(sample.answer.split()),
            "classes": _hash(sample.tags[CLASS]) if sample.tags.get(CLASS) else 0,
            "text_bytes": sum(len(text.encode(errors="surrogatepass")) for text in texts),
            "marked": marks_in(texts),
            "images": len(images),
            "form": _hash(" ".join(message.role for message in messages)),
        }
        self.rows.extend(numbers[name] for name in NUMBERS)

    def decode(self, samples: Iterable[Sample | str], pool: Executor) -> None:
        """Looks at the images that are stored in these rows, several at once. What cannot be
        decoded is left to `add`, which says in which row it is. Drawn images and those of a user's own loader, which
        may not be made for threads, are left to it, too."""
        images = [image for sample in samples if isinstance(sample, Sample) for image in sample.prompt.images]
        new = {key: image for image in images if stored_bytes(image) and (key := _key(image)) not in self.seen}
        looks = zip(new, pool.map(_look_or_none, new.values()), strict=True)
        self.seen |= {key: found for key, found in looks if found is not None}

    def refuse(self, reason: str) -> None:
        self.bad[len(self)] = reason
        self.rows.extend([0] * len(NUMBERS))

    def __len__(self) -> int:
        return len(self.rows) // len(NUMBERS)

    def _content(self, image: Image) -> int:
        file = file_of(image)
        if file is not None:
            return self.files.setdefault(str(file), len(self.files))
        key = _key(image)
        if key not in self.seen:
            self.seen[key] = look(image.load())
        return -1 - self.digests.setdefault(self.seen[key], len(self.digests))

    def _text(self, sample: Sample) -> int:
        digest = bytes.fromhex(sample.prompt.sha256).ljust(LOOK.itemsize, b"\0")
        return -1 - self.digests.setdefault(digest, len(self.digests))

    def arrays(self) -> Arrays:
        return {
            "rows": np.frombuffer(self.rows, ROW),
            **{name: np.frombuffer(getattr(self, name), np.int64).reshape(-1, 2) for name in ("shows", "ties")},
            "files": np.frombuffer("\0".join(self.files).encode(errors="surrogatepass"), np.uint8),
            "digests": np.array(list(self.digests), CONTENT),
            "unread": np.array(list(self.bad), np.int64),
        }


def marks_in(texts: Iterable[str]) -> int:
    """Bit i is set where any of the texts holds `MARKS[i]`."""
    whole = "".join(texts)
    return sum((mark in whole) << i for i, mark in enumerate(MARKS))


def sources_of(dataset: Dataset) -> tuple[str, ...] | None:
    """What the rows come from; None for a user's class that only inherits `comes_from`: it may read more files."""
    own = type(dataset).__module__.startswith("vlmft.data.") or "comes_from" in vars(type(dataset))
    return dataset.comes_from() if own else None


def survey(dataset: Dataset, rows: Ids, sample_of: SampleOf, poll: Poll = lambda: None) -> Facts:
    """The facts of these rows. Every different image file is decoded once, and not at all where its hash is known.

    `poll` is called before each row and now and then between images; it raises where the run was asked to stop.
    """
    sources, settings = sources_of(dataset), dataset.settings()
    known = sources is not None and settings is not None
    fingerprint = sha256(code_of(type(dataset)), *(sources or ())) if known else None
    name = f"rows-{sha256(settings, hashlib.sha256(rows.numbers.tobytes()).hexdigest())}"
    with one_at_a_time(name, poll) if known else contextlib.nullcontext():
        arrays = kept(name, fingerprint, lambda: _read(rows, sample_of, poll).arrays())
        facts, unread = seen(arrays, poll), arrays["unread"]
    if not len(unread):
        return facts
    again = _read(rows.take(unread), sample_of, poll)
    second = seen(again.arrays(), poll)
    order = np.arange(len(facts))
    order[unread] = len(facts) + np.arange(len(unread))
    return facts.with_rows(replace(second, bad=second.bad | again.bad)).take(order)


class FactsOfRows:
    """The facts of a dataset's rows, each read once; the bad ones go to the ledger."""

    def __init__(self, dataset: Dataset, ids: Ids, ledger: Ledger, sample_of: SampleOf) -> None:
        self.dataset, self.ids, self.ledger, self.sample_of = dataset, ids, ledger, sample_of
        self._places = np.zeros(0, np.int64)
        """Of the rows in `ids` that `_facts` are of."""
        self._facts: Facts | None = None

    def of(self, places: np.ndarray, poll: Poll = lambda: None) -> Facts:
        """The facts of the rows at these places of `ids`, in this order; raises BadRowError as the ledger does."""
        new = np.setdiff1d(places, self._places)
        if len(new) or self._facts is None:
            found = survey(self.dataset, self.ids.take(new), self.sample_of, poll)
            self._facts = found if self._facts is None else self._facts.with_rows(found)
            self._places = np.concatenate([self._places, new])
            self.ledger.survey(len(self._places), len(self.ids))
            self.ledger.refuse_all([BadRow(self.ids[new[row]], why) for row, why in sorted(found.bad.items())])
        order = np.argsort(self._places)
        return self._facts.take(order[np.searchsorted(self._places, places, sorter=order)])


def _read(rows: Ids, sample_of: SampleOf, poll: Poll) -> Reading:
    found, ids = Reading(), iter(rows)
    with Progress("rows read", len(rows)) as progress, decoding_threads() as pool:
        while some := [_sample_or_reason(row_id, sample_of, poll) for row_id in itertools.islice(ids, ROWS_AT_ONCE)]:
            found.decode(some, pool)
            for sample in some:
                try:
                    found.add(sample) if isinstance(sample, Sample) else found.refuse(sample)
                except BadRowError as error:
                    found.refuse(str(error))
                progress.advance()
    return found


def _sample_or_reason(row_id: str, sample_of: SampleOf, poll: Poll) -> Sample | str:
    poll()
    try:
        return sample_of(row_id)
    except BadRowError as error:
        return str(error)


def _key(image: Image) -> bytes:
    """Equal where two images are: what identifies the bytes that are stored in a row, or what loads any other."""
    return image.identity.encode() if stored_bytes(image) else hashlib.sha256(pickle.dumps(image.load)).digest()


def _look_or_none(image: Image) -> bytes | None:
    try:
        return look(image.load())
    except BadRowError:
        return None


def seen(arrays: Arrays, poll: Poll = lambda: None) -> Facts:
    """The facts of a reading, once the images in files are hashed."""
    paths = arrays["files"].tobytes().decode(errors="surrogatepass")
    files = paths.split("\0") if paths else []
    hashes = image_hashes(files, poll)
    known = np.array([found if isinstance(found, bytes) else b"" for found in hashes], CONTENT)
    contents, number = np.unique(np.concatenate([known, arrays["digests"]]), return_inverse=True)
    rows, code = arrays["shows"].T
    code = np.where(code >= 0, code, len(files) - 1 - code)
    broken = np.array([isinstance(found, str) for found in hashes] + [False] * len(arrays["digests"]), bool)[code]
    bad = {int(row): str(hashes[file]) for row, file in zip(rows[broken][::-1], code[broken][::-1], strict=True)}
    good = ~np.isin(rows, list(bad))
    pairs = np.unique(rows[good] * len(contents) + number[code[good]])
    return Facts(
        rows=arrays["rows"],
        shows=np.column_stack(np.divmod(pairs, max(1, len(contents)))),
        contents=contents,
        ties=arrays["ties"][~np.isin(arrays["ties"][:, 0], list(bad))],
        bad=bad,
    )


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
