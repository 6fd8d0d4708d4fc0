"""A video is some of its frames, in order, each behind its time; what is none is refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.datasets.messages import Messages
from vlmft.data.sources.videos import places
from vlmft.models.family import Family
from vlmft.sample import BadRowError, Image, Sample

N_FRAMES = 12


def grey(number: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (64, 48), (number * 20, number * 20, number * 20))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """12 frames with numbers that sort otherwise as texts, of rising grey; and a file that is no image."""
    folder = tmp_path / "clips/walk"
    folder.mkdir(parents=True)
    for number in range(N_FRAMES):
        grey(number).save(folder / f"frame_{number}.png")
    (folder / "notes.txt").write_text("not a frame")
    return tmp_path


def film(path: Path, rate: int = 4) -> None:
    """The same 12 frames as a file, four a second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(N_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(grey(number))))
        container.mux(stream.encode())


def sample(folder: Path, row: dict[str, Any], **options: Any) -> Sample:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    dataset = Messages(path=str(folder / "rows.jsonl"), **options)
    return dataset.to_sample(dataset.read("messages/train/000000/0"))


def row(question: Any = "<video>What happens?", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "It brightens."}]
    return {"messages": turns, **more}


def told(found: Sample) -> list[str]:
    """Texts, and of images the number of the frame that their grey says."""
    (message,) = found.prompt.messages
    return [
        f"#{round(float(piece.pixels.mean()) / 20)}" if isinstance(piece, Image) else piece for piece in message.content
    ]


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(clips: Path) -> None:
    found = told(sample(clips, row(videos=["clips/walk"]), max_frames=12))
    assert found[1::2][:12] == [f"#{n}" for n in range(12)] and found[-1] == "What happens?"
    assert found[0] == "[frame 1 of 12]"


def test_times_are_no_part_of_the_question(clips: Path) -> None:
    """By which a report groups rows, and a baseline answers."""
    found = sample(clips, row("<video>When is [2.0 s]?", videos=["clips/walk"], fps=4), instruction="Be short.")
    assert found.bare_question == "When is [2.0 s]?" and found.prompt.messages[0].text.startswith("[0.0 s][0.5 s]")


@pytest.mark.parametrize(
    ("fps", "options", "expected"),
    [
        (4, {"frames_per_second": 1.0}, ["[0.0 s]", "#0", "[1.0 s]", "#4", "[2.0 s]", "#8"]),
        (4, {"frames_per_second": 2.0, "max_frames": 2}, ["[0.8 s]", "#3", "[2.2 s]", "#9"]),
        (4, {"max_frames": 3}, ["[0.5 s]", "#2", "[1.5 s]", "#6", "[2.5 s]", "#10"]),
        (None, {"max_frames": 2}, ["[frame 1 of 2]", "#3", "[frame 2 of 2]", "#9"]),
    ],
)
def test_which_frames(clips: Path, fps: float | None, options: dict[str, Any], expected: list[str]) -> None:
    more = {} if fps is None else {"fps": fps}
    assert told(sample(clips, row(videos=["clips/walk"], **more), **options)) == [*expected, "What happens?"]


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_a_file_has_the_frames_of_its_folder(clips: Path, suffix: str) -> None:
    film(clips / f"walk.{suffix}")
    of_file = sample(clips, row(videos=[f"walk.{suffix}"]), frames_per_second=2.0)
    assert told(of_file) == told(sample(clips, row(videos=["clips/walk"], fps=4), frames_per_second=2.0))
    again = pickle.loads(pickle.dumps(of_file.prompt.images[1]))  # as it travels to a worker
    assert again.size == (64, 48) and again.sha256 == of_file.prompt.images[1].sha256
    assert "at 0.50 s" in again.name


def test_every_frame_of_a_file_is_the_one_that_was_written(clips: Path) -> None:
    """Seeking goes to a key frame, from which the wanted one is decoded."""
    film(clips / "walk.mp4")
    found = told(sample(clips, row(videos=["walk.mp4"]), max_frames=12))
    assert found[1::2] == [f"#{n}" for n in range(12)] and found[2] == "[0.2 s]"


def test_a_phone_s_video_is_upright(clips: Path) -> None:
    """An mp4 whose header says to turn it clockwise, as one that was held upright: what was left is on top."""
    av = pytest.importorskip("av")
    picture = PIL.Image.new("RGB", (64, 48), "white")
    picture.paste("black", (0, 0, 32, 48))
    with av.open(str(clips / "phone.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    data = (clips / "phone.mp4").read_bytes()
    one, none, minus = (number.to_bytes(4, "big", signed=True) for number in (1 << 16, 0, -(1 << 16)))
    as_it_is, turned = one + 3 * none + one, none + one + none + minus + none
    header = data.index(b"tkhd")
    place = data.index(as_it_is, header)
    (clips / "phone.mp4").write_bytes(data[:place] + turned + data[place + len(turned) :])
    (image,) = sample(clips, row(videos=["phone.mp4"])).prompt.images
    assert image.size == (48, 64)
    assert image.pixels[:28].mean() < 30 and image.pixels[36:].mean() > 225


FORMS: dict[str, dict[str, Any]] = {
    "no mark": row("What happens?", videos=["clips/walk"]),
    "one": row("What happens?", video="clips/walk"),
    "part": row([{"type": "video"}, {"type": "text", "text": "What happens?"}], videos=["clips/walk"]),
    "path in place": row([{"type": "video", "video": "clips/walk"}, {"type": "text", "text": "What happens?"}]),
    "twice the same": row(
        [{"type": "video", "video": "clips/walk"}, {"type": "text", "text": "What happens?"}], videos=["clips/walk"]
    ),
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "Light."}],
        "videos": ["clips/walk"],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(clips: Path, form: str) -> None:
    found = told(sample(clips, FORMS[form], max_frames=1))
    assert found == ["[frame 1 of 1]", "#6", "What happens?"]


def test_beside_images_and_another_video(clips: Path) -> None:
    grey(5).save(clips / "still.png")
    question = "<video>or<image>or<video>?"
    found = told(sample(clips, row(question, videos=["clips/walk"] * 2, images=["still.png"]), max_frames=1))
    assert found == ["[frame 1 of 1]", "#6", "or", "#5", "or", "[frame 1 of 1]", "#6", "?"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": (row(videos=["clips/run"]), "Expected a folder of frames or a video file 'clips/run'"),
    "out": (row(videos=["../x"]), "Expected a video below the data folder"),
    "address": (row(videos=["https://x.org/a.mp4"]), "Expected the path of a folder of frames"),
    "tensors": (row(videos=[{"frames": [1, 2]}]), "Expected the path of a folder of frames .* got 'dict'"),
    "empty folder": (row(videos=["empty"]), "Expected images in the folder of frames 'empty'"),
    "two places": (row([{"type": "video", "video": "clips/walk"}], videos=["b"]), "in the turns or in a list"),
    "more marks": (row("<video><video>?", videos=["clips/walk"]), "got 1 and 2"),
    "fps": (row(videos=["clips/walk"], fps="fast"), "Expected frames a second as fps"),
    "audio": (row(audios=["a.wav"], videos=["clips/walk"]), "got audios"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(clips: Path, case: str) -> None:
    (clips / "empty").mkdir()
    with pytest.raises(BadRowError, match=REFUSED[case][1]) as refused:
        sample(clips, REFUSED[case][0])
    assert "\n" not in str(refused.value)


def test_a_rate_is_needed_where_one_is_asked_for(clips: Path) -> None:
    with pytest.raises(BadRowError, match="write fps beside videos"):
        sample(clips, row(videos=["clips/walk"]), frames_per_second=1.0)


def test_a_file_that_is_no_video(clips: Path) -> None:
    pytest.importorskip("av")
    (clips / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(BadRowError, match=r"Expected a video in x\.mp4, got none that PyAV reads"):
        sample(clips, row(videos=["x.mp4"]))


def test_without_pyav_the_library_is_named(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clips / "x.mp4").write_bytes(b"nothing")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlmft\[video\]'"):
        sample(clips, row(videos=["x.mp4"]))


@pytest.mark.parametrize("options", [{"max_frames": 0}, {"frames_per_second": 0.0}])
def test_options_that_say_nothing(clips: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_frames of 1 or more and frames_per_second above 0"):
        sample(clips, row(videos=["clips/walk"]), **options)


@pytest.mark.parametrize("n_frames", [1, 7, 100])
@pytest.mark.parametrize("most", [1, 5, 100])
@pytest.mark.parametrize("per_second", [None, 0.3, 2.0, 99.0])
def test_places_rise_and_are_never_too_many(n_frames: int, most: int, per_second: float | None) -> None:
    found = places(n_frames, 8.0, per_second, most)
    assert found == sorted(set(found)) and 1 <= len(found) <= most and 0 <= found[0] <= found[-1] < n_frames


def test_a_model_of_one_image_refuses_the_frames(
    clips: Path, family_of: Callable[[str], Family], kind: str = "one"
) -> None:
    found = sample(clips, row(videos=["clips/walk"]), max_frames=3)
    assert len(family_of("several").encode(found).images) == 3
    with pytest.raises(BadRowError, match="Expected at most 1 images, got 3"):
        family_of("one").encode(found)


@pytest.fixture
def family_of(tmp_path: Path) -> Callable[[str], Family]:
    from benchmarks.tiny_models import MODELS
    from tests.models.tiny_folders import loaded

    names = {"one": "LLaVA-OneVision", "several": "LLaVA"}
    tiny = {model.name: model for model in MODELS}
    return lambda name: loaded(tiny[names[name]], tmp_path / name)[0]
