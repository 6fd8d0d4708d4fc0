"""The pixel hash of each image file, computed once for each content of the file and stored.

Only good images are stored, by path, size and times; files that cannot be decoded are tried again at each start.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from vlmft.config.progress import Progress
from vlmft.data import images
from vlmft.data.images import open_image
from vlmft.data.survey import near_duplicates
from vlmft.data.survey.cache import Store, sha256, stamp
from vlmft.data.survey.near_duplicates import look
from vlmft.sample import BadRowError, pixels_sha256

FILES_AT_ONCE, MOST_THREADS = 256, 8


@functools.lru_cache(maxsize=1)
def code_of_images() -> str:
    """Hash of the code that turns a file into a `LOOK`, and of Pillow's version."""
    return sha256(PIL.__version__, *[inspect.getsource(code) for code in (images, near_duplicates, pixels_sha256)])


def image_hashes(paths: Sequence[str], poll: Callable[[], None] = lambda: None) -> list[bytes | str]:
    """For each file its `LOOK`, or why it cannot be decoded. `poll` is called now and then."""
    if not paths:
        return []
    store, stamps = Store(), [stamp(path) for path in paths]
    marks = [None if found is None else f"{found} {code_of_images()}" for found in stamps]
    found: list[bytes | str | None] = [*store.values(paths, marks)]
    missing = [place for place, known in enumerate(found) if known is None]
    with (
        decoding_threads() as pool,
        Progress("images checked", len(missing)) as progress,
    ):
        for start in range(0, len(missing), FILES_AT_ONCE):
            poll()
            some = missing[start : start + FILES_AT_ONCE]
            for place, result in zip(some, pool.map(pixel_hash, [paths[place] for place in some]), strict=True):
                found[place] = result
                progress.advance()
            looks = [(paths[place], marks[place], found[place]) for place in some]
            store.keep([(path, mark, look) for path, mark, look in looks if isinstance(look, bytes)])
    return [known for known in found if known is not None]


def decoding_threads() -> ThreadPoolExecutor:
    """Pillow and hashlib let threads run."""
    return ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))


def pixel_hash(path: str) -> bytes | str:
    """Its `LOOK`, 72 bytes, or the reason why there is none."""
    try:
        return look(open_image(Path(path)))
    except BadRowError as error:
        return str(error)
