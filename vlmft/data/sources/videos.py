"""A video as some of its frames: a folder of images, or a file that PyAV decodes. The model sees images, and the time
of each as a text before it: `[0.5 s]`, or `[frame 2 of 8]` where nothing says how long a frame lasts."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from pathlib import Path, PureWindowsPath
from typing import Any

import PIL.Image

from vlmft.config.check import ConfigError
from vlmft.data.images import image_at, image_policy
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES
from vlmft.data.sources.locate import ImageFolders
from vlmft.data.survey.cache import stamp
from vlmft.sample import BadRowError, Image


def frames_of(
    source: Any, folders: ImageFolders | None, fps: float | None, per_second: float | None, most: int
) -> list[str | Image]:
    """Texts and images in turns, at most `most` images: `per_second` of them a second, else evenly over the whole.

    `fps` is the rate at which a folder's frames were taken; a file says its own.

    Raises:
        BadRowError: no such folder or file below the data folder, no frames in it, or no rate where one is needed.
        ConfigError: PyAV is not installed.
    """
    path = _located(source, folders)
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=_by_number)
        if not files:
            raise BadRowError(f"Expected images in the folder of frames {source!r}, got none; check the path")
        if per_second is not None and fps is None:
            raise BadRowError(
                f"Expected the rate of the folder of frames {source!r}, got none; write fps beside videos, or leave "
                "data.options.frames_per_second out"
            )
        n_frames, rate = len(files), fps
        frames = [image_at(file, f"{source}/{file.name}") for file in files]
        chosen = [(n, frames[n]) for n in places(n_frames, rate, per_second, most)]
    else:
        n_frames, rate = _length(path, str(stamp(path)))
        chosen = [(n, _frame(path, n, rate, source)) for n in places(n_frames, rate, per_second, most)]
    pieces: list[str | Image] = []
    for number, (place, image) in enumerate(chosen, start=1):
        pieces += [f"[{place / rate:.1f} s]" if rate else f"[frame {number} of {len(chosen)}]", image]
    return pieces


def places(n_frames: int, rate: float | None, per_second: float | None, most: int) -> list[int]:
    """Which of the frames, from 0: every so many that there are `per_second`, else the middles of equal parts."""
    step = max(rate / per_second, 1.0) if rate and per_second else 1.0
    chosen = [int(i * step) for i in range(int((n_frames - 1) / step) + 1)]
    if len(chosen) <= most:
        return chosen
    return [(2 * i + 1) * n_frames // (2 * most) for i in range(most)]


def _located(source: Any, folders: ImageFolders | None) -> Path:
    """The folder or file that a row names, below the data folder and not through a link out of it."""
    if not isinstance(source, str) or not source.strip() or "://" in source:
        found = source if isinstance(source, str) else type(source).__name__
        raise BadRowError(f"Expected the path of a folder of frames or of a video file, got {found!r}; save it there")
    windows = PureWindowsPath(source)
    if windows.anchor or ".." in windows.parts or folders is None:
        raise BadRowError(f"Expected a video below the data folder, got {source!r}; write its path from there")
    top = folders.named or folders.top
    path = ((folders.named or folders.root) / source.replace("\\", "/")).resolve()
    if not path.exists() or not path.is_relative_to(top.resolve()):
        raise BadRowError(f"Expected a folder of frames or a video file {source!r} in {top}, got none; check the path")
    return path


def _by_number(file: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _frame(path: Path, place: int, rate: float, source: str) -> Image:
    mark = stamp(path)
    identity = "" if mark is None else f"{path} {mark} frame {place} {_av().__version__} {image_policy()}"
    return Image(partial(decode_frame, path, place / rate, rate), f"{source} at {place / rate:.2f} s", identity)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "data: Expected PyAV to read video files, got none; pip install 'vlmft[video]', or give folders of frames"
        ) from error
    return av


@lru_cache(maxsize=1 << 14)
def _length(path: Path, mark: str) -> tuple[int, float]:
    """(frames, frames a second) of a video file; `mark` is its stamp, so that a changed one is read again."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate)
            seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1_000_000
            return max(stream.frames or round(float(seconds) * rate), 1), rate
    except (av.FFmpegError, IndexError, TypeError, OSError) as error:
        raise BadRowError(f"Expected a video in {path.name}, got none that PyAV reads ({error}); replace it") from error


def decode_frame(path: Path, seconds: float, rate: float) -> PIL.Image.Image:
    """The frame that is shown at that time, upright, mode RGB; the last one where the file ends before.

    Raises:
        BadRowError: it cannot be decoded.
    """
    av, last = _av(), None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = stream.start_time or 0
            container.seek(int(seconds / stream.time_base) + start, stream=stream)  # to the key frame before
            for frame in container.decode(stream):
                last = frame
                if frame.time is None or frame.time - float(start * stream.time_base) >= seconds - 0.5 / rate:
                    break
    except (av.FFmpegError, OSError) as error:
        raise BadRowError(f"Expected a whole video, got a damaged {path.name} ({error}); replace it") from error
    if last is None:
        raise BadRowError(f"Expected a frame at {seconds:.2f} s of {path.name}, got none; replace the file")
    image: PIL.Image.Image = last.to_image()
    return image.rotate(last.rotation, expand=True) if last.rotation else image
