"""vlmft play: what is asked is what training asked, what is shown is what was said, and a kept case can be scored."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from omegaconf import OmegaConf
from PIL.ExifTags import Base

from tests.labels.test_annotate import dom_after
from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.config.tool_schema import ExportConfig, PlayConfig
from vlmft.config.tools import compose_tool, compose_train
from vlmft.data.datasets.shapes import Shapes
from vlmft.data.images import image_from_bytes
from vlmft.data.make import make_dataset
from vlmft.labels.play_page import CASES_FILE, MOST_FILE_BYTES, Cases, Wording, play_page, wording_of
from vlmft.pages.local_page import LocalServer, Page
from vlmft.run.folder import plain, read_run
from vlmft.sample import Answer, BadRowError, Box, Message, Prompt, Sample, marks_text
from vlmft.tools.cli import run_tool
from vlmft.tools.export import export
from vlmft.tools.play import asked_as, loaded_arms, play

BOX = marks_text([Box(2, 3, 12, 13, "cat")])


def encoded(picture: PIL.Image.Image, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def noise(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    return PIL.Image.fromarray(pixels, mode)


def composed(*overrides: str) -> PlayConfig:
    return compose_tool("play", PlayConfig, ["open_browser=false", *overrides])


class Client:
    """What the page's script does, over HTTP."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server

    def act(self, name: str, value: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.url + name, json.dumps(value).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def refused(self, name: str, value: Any) -> str:
        with pytest.raises(urllib.error.HTTPError) as error:
            self.act(name, value)
        return str(json.load(error.value)["error"])

    def upload(self, data: bytes, name: str = "a.png") -> Any:
        return self.act("upload", file_of(data, name))

    def ask(self, picture: str, question: str = "How many?", **words: str) -> tuple[str, dict[str, Any]]:
        asked = {"question": question, "around": "{question}", "system": "", "marks": "", "picture": picture, **words}
        case = self.act("ask", asked)
        return case, {arm: self.act("answer", {"case": case, "arm": arm}) for arm in self.act("start")["arms"]}


def file_of(data: bytes, name: str) -> dict[str, str]:
    return {"name": name, "data": base64.b64encode(data).decode()}


@contextlib.contextmanager
def served(page: Page) -> Iterator[Client]:
    with LocalServer(page) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Client(server)
        server.shutdown()


class Said:
    """Stands for an arm: says one text, and remembers what it was asked."""

    def __init__(self, text: str, raw: str = "") -> None:
        self.text, self.raw, self.prompts = text, raw, list[Prompt]()

    def __call__(self, prompt: Prompt) -> Answer:
        self.prompts.append(prompt)
        return Answer(self.text, "length", 7, raw=self.raw)


@pytest.fixture
def arms() -> dict[str, Said]:
    return {"untuned": Said("four"), "tuned": Said('```json\n{"a": [{"b": 1.50}, null], "c": "x"}\n```')}


@pytest.fixture
def client(arms: Mapping[str, Said], tmp_path: Path) -> Iterator[Client]:
    with served(play_page("a/run", arms, Wording("How many?", system="Be short."), Cases(tmp_path / "cases"))) as found:
        yield found


def test_both_answers(client: Client, arms: dict[str, Said]) -> None:
    start = client.act("start")
    assert (start["question"], start["system"], start["arms"]) == ("How many?", "Be short.", ["untuned", "tuned"])
    data = encoded(noise())
    picture = client.upload(data)
    assert picture["size"] == [40, 30] and picture["notes"] == []
    words = {"around": "Look. {question}\nOne word.", "system": "Be short."}
    _, answers = client.ask(picture["picture"], "How {question} many?", **words)
    prompt = Prompt(
        (
            Message("system", ("Be short.",)),
            Message("user", (image_from_bytes(data, "a.png"), "Look. How {question} many?\nOne word.")),
        )
    )
    assert [one.prompts[0].sha256 for one in arms.values()] == [prompt.sha256] * 2
    assert answers["untuned"]["text"] == "four" and answers["untuned"]["fields"] == []
    assert answers["tuned"]["cut"] and answers["tuned"]["tokens"] == 7 and answers["tuned"]["seconds"] >= 0
    assert answers["tuned"]["fields"] == [["a[0].b", "1.50"], ["c", "x"]], "null is no field"
    with urllib.request.urlopen(client.server.url + "image/" + picture["picture"], timeout=10) as response:
        assert np.array_equal(np.asarray(PIL.Image.open(response)), np.asarray(noise()))


def test_boxes_are_told_in_pixels(client: Client, arms: dict[str, Said]) -> None:
    arms["tuned"].text, arms["tuned"].raw = BOX, "cat <loc1>"
    picture = client.upload(encoded(noise()))["picture"]
    case, answers = client.ask(picture, "Where?", marks="boxes")
    assert arms["tuned"].prompts[0].marks == "boxes"
    assert answers["tuned"]["marks"] == [[[2, 3, 12, 13], "cat"]] and answers["tuned"]["raw"] == "cat <loc1>"
    assert answers["untuned"]["marks"] == [] and answers["untuned"]["unread"] and not answers["tuned"]["unread"]
    assert "Expected boxes such as [{" in client.refused("keep", {"case": case, "reference": "left"})
    client.act("keep", {"case": case, "reference": BOX})
    _, answers = client.ask(picture, "Where?")
    assert answers["tuned"]["marks"] == [], "what is not asked for in pixels is not drawn"


def rotated() -> bytes:
    exif = PIL.Image.Exif()
    exif[Base.Orientation] = 6
    return encoded(noise(), "JPEG", exif=exif)


TAKEN = {
    "animation": (
        encoded(noise(), "GIF", save_all=True, append_images=[noise(1)]),
        (40, 30),
        "the first of 2 pictures",
    ),
    "cmyk": (encoded(noise(mode="CMYK"), "JPEG"), (40, 30), "CMYK made RGB"),
    "turned": (rotated(), (30, 40), "turned upright, as its EXIF block says"),
    "transparent": (encoded(noise(mode="RGBA")), (40, 30), "RGBA made RGB, transparent parts white"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_says_what_was_made_of_it(client: Client, name: str) -> None:
    data, size, note = TAKEN[name]
    found = client.upload(data)
    assert tuple(found["size"]) == size and any(one.startswith(note) for one in found["notes"])


LARGE = encoded(PIL.Image.new("1", (10_000, 6_000)))
REFUSED = {
    "page": (b"<html>no</html>", r"Expected an image \(BMP, .*\), got an HTML page in a.png; replace the file"),
    "empty": (b"", "got an empty file in a.png"),
    "cut": (encoded(noise())[:-200], "Expected a whole image, got a damaged one in a.png"),
    "pixels": (LARGE, "Expected at most 50 million pixels, got 10000x6000 pixels in a.png; scale it down"),
    "bytes": (b"\0" * (MOST_FILE_BYTES + 1), "Expected a file of at most 32 MiB, got 32 MiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_one_line(client: Client, name: str) -> None:
    data, said = REFUSED[name]
    line = client.refused("upload", file_of(data, "a.png"))
    assert re.search(said, line) and "\n" not in line and "Traceback" not in line
    assert client.upload(encoded(noise()))["size"] == [40, 30], "it goes on"


def test_a_question_needs_its_parts(client: Client, arms: dict[str, Any]) -> None:
    asked = {"question": "What?", "around": "{question}", "system": "", "marks": "", "picture": ""}
    picture = client.upload(encoded(noise()))["picture"]
    assert client.refused("ask", asked) == "Expected an image, got none; choose one first"
    assert client.refused("ask", {**asked, "picture": "99"}).startswith("Expected an image that was chosen just now")
    asked["picture"] = picture
    assert client.refused("ask", {**asked, "question": " "}).startswith("Expected a question")
    assert client.refused("ask", {**asked, "around": "Look."}).startswith("Expected a question and {question}")
    assert client.refused("ask", {**asked, "marks": "lines"}).startswith("Expected boxes, points or nothing")
    case = client.act("ask", asked)
    assert client.refused("keep", {"case": case, "reference": "x"}).startswith("Expected a question that was answered")


def test_one_question_at_a_time(tmp_path: Path) -> None:
    """Those that come at once are answered one after the other: a model's adapter is off for one of them."""
    inside, most = list[str](), list[int]()

    def slow(prompt: Prompt) -> Answer:
        inside.append(prompt.sha256)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(prompt.sha256)
        return Answer("one", "stop", 1)

    with served(play_page("x", {"untuned": slow, "tuned": slow}, Wording(), Cases(tmp_path))) as client:
        picture = client.upload(encoded(noise()))["picture"]
        threads = [threading.Thread(target=client.ask, args=(picture, f"{n}?")) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert most == [1] * 6


def test_a_kept_case_is_scored_and_trained_on(
    client: Client, arms: dict[str, Said], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms["tuned"].text = "5"
    for seed, reference in enumerate(["5", " 4\n"]):
        data = encoded(noise(seed), "JPEG")
        case, _ = client.ask(client.upload(data)["picture"], "How many?", system="Be short.")
        assert client.refused("keep", {"case": case, "reference": " "}) == (
            "Expected the right answer, got none; write it"
        )
        kept = client.act("keep", {"case": case, "reference": reference})
        assert kept["kept"] == seed + 1
    assert "is kept already" in client.refused("keep", {"case": case, "reference": "4"})
    file = tmp_path / "cases" / CASES_FILE
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["prediction"], first["untuned"], first["answer"], second["answer"]) == ("5", "four", "5", "4")
    assert (file.parent / second["image"]).read_bytes() == data and second["image"].endswith(".jpg")

    for columns, value in (("prediction=prediction", 0.5), ("prediction=untuned", 0.0)):
        run_tool("score", [str(file), "--json", "--columns", columns, "--metric", "exact_match"])
        told = json.loads(capsys.readouterr().out)
        assert told["n"] == 2 and told["scores"][0]["value"] == value

    name = "vlmft.data.datasets.columns:Columns"
    dataset = make_dataset(DataConfig(name="columns", dataset=name, path=str(file)))
    rows = [dataset.to_sample(dataset.read(row_id)) for split in dataset.index().values() for row_id in split]
    assert [row.prompt.sha256 for row in rows] == [prompt.sha256 for prompt in arms["tuned"].prompts]
    assert [row.answer for row in rows] == ["5", "4"]


def test_asked_as_the_rows_are() -> None:
    dataset = Shapes()
    sample = dataset.to_sample(dataset.read(dataset.index()["test"][0]))
    wording = wording_of(sample)
    said = {"question": wording.question, "around": wording.around, "system": wording.system, "marks": wording.marks}
    assert wording.needs_image and wording.prompt(sample.prompt.images[0], said).sha256 == sample.prompt.sha256
    image = sample.prompt.images[0]
    asked = (Message("system", ("Be short.\n",)), Message("user", ("\nLook: how many?\nA number.", image)))
    last = Sample("r", Prompt(asked), "4", ("4",), question="how many?")
    wording = wording_of(last)
    around, system = "\nLook: {question}\nA number.", "Be short.\n"
    assert (wording.question, wording.around, wording.system) == ("how many?", around, system)
    said = {"question": "how many?", "around": around, "system": system, "marks": ""}
    assert wording.prompt(image, said) == Prompt(asked), "white space is a part of it"
    said = {"question": "why?", "around": wording.around, "system": "", "marks": ""}
    assert wording.prompt(image, said).messages == (Message("user", ("\nLook: why?\nA number.", image)),)


def test_other_rows_are_said_to_be_other() -> None:
    image = image_from_bytes(encoded(noise()), "a")

    def notes(*content: Any, before: tuple[Message, ...] = ()) -> tuple[str, ...]:
        return wording_of(Sample("r", Prompt((*before, Message("user", content))), "4", ("4",))).notes

    assert notes(image, "Why?") == notes("Why?", image) == notes("Why?") == ()
    assert "several images" in notes(image, image, "Why?")[0]
    assert "inside the text" in notes("In ", image, "why?")[0]
    assert "earlier turns" in notes(image, "Why?", before=(Message("assistant", ("So.",)),))[0]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / CASES_FILE).write_text('{"name": 1}\n')
    with pytest.raises(ConfigError, match=r"to: Expected test cases with an id in .*cases\.jsonl, got another line"):
        play(composed("model=tiny", f"to={tmp_path}"))
    assert (tmp_path / CASES_FILE).read_text() == '{"name": 1}\n'


def test_a_run_whose_data_are_gone_is_asked_plainly(tmp_path: Path) -> None:
    config = compose_train(["data=columns", f"data.path={tmp_path}", "model=tiny"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    wording, most = asked_as(composed(f"run={tmp_path}"))
    assert most == 256 and wording.around == "{question}"
    assert wording.notes[0].startswith("The run's data cannot be read (")


def test_a_model_alone_answers(tmp_path: Path) -> None:
    """The packaged model, whole: what the page says is what the model says."""
    config = composed("model=tiny", "trainer=cpu", "max_new_tokens=4")
    wording, most = asked_as(config)
    assert most == 4 and wording == Wording()
    with served(play_page("tiny", loaded_arms(config, most), wording, Cases(tmp_path))) as client:
        assert client.act("start")["arms"] == ["untuned"]
        picture = client.upload(encoded(noise(size=(80, 60))))["picture"]
        case, answers = client.ask(picture, "How many circles are there?")
        assert (
            answers["untuned"]["text"] and 1 <= answers["untuned"]["tokens"] <= 4 and answers["untuned"]["seconds"] > 0
        )
        client.act("keep", {"case": case, "reference": "3"})
        line = client.refused("answer", {"case": client.act("ask", words("word " * 5000, picture)), "arm": "untuned"})
        assert line.startswith("Expected at most") and "\n" not in line
    of_text = play_page("tiny", loaded_arms(config, most), Wording(needs_image=False), Cases(tmp_path / "texts"))
    with served(of_text) as client:  # rows of text alone
        case, _ = client.ask("", "How many legs has a cat?")
        client.act("keep", {"case": case, "reference": "4"})
    assert "image" not in json.loads((tmp_path / "texts" / CASES_FILE).read_text())
    (row,) = map(json.loads, (tmp_path / CASES_FILE).read_text().splitlines())
    assert row["prediction"] == answers["untuned"]["text"] and "untuned" not in row


def words(question: str, picture: str) -> dict[str, str]:
    return {"question": question, "around": "{question}", "system": "", "marks": "", "picture": picture}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "run: Expected run=<run folder>, or export=<folder>, model= or both, got none"),
        (("run=.", "model=tiny"), "got run and model"),
        (("run=.", "export=."), "got run and export"),
        (("run=no/such",), "run: there is no folder 'no/such'"),
        (("export=no/such",), "export: there is no folder 'no/such'"),
        (("export=.",), "export: Expected a folder of vlmft export, got '.', which holds no model"),
        (("model=tiny", "port=-1"), "port: Expected"),
    ],
)
def test_mistakes_are_a_sentence(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        composed(*overrides)


def test_an_adapter_alone_needs_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="export: Expected model=<its base> beside the adapter in"):
        composed(f"export={tmp_path}")


DRIVE = """
const until = async (what) => { while (!what()) await new Promise((then) => setTimeout(then, 5)); };
const log = [];
let reference = "7";
const choose = (name, bytes) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name));
  byId("file").files = files.files;
  byId("file").dispatchEvent(new Event("change"));
};
window.addEventListener("load", async () => {
  await until(() => byId("question").value);
  log.push(byId("question").value);
  choose("no.png", btoa("<html>"));
  await until(() => !byId("problem").hidden);
  log.push(byId("problem").textContent);
  choose("picture.jpg", PICTURE);
  await until(() => document.querySelector("#picture img") && document.querySelector("#picture img").naturalWidth);
  log.push(byId("told").textContent);
  byId("ask").click();
  await until(() => !byId("keeping").hidden);
  log.push([...document.querySelectorAll("#sides h3")].map((e) => e.textContent).join());
  log.push([...document.querySelectorAll("#sides .written")].filter((e) => e.textContent).length);
  byId("keep").click();
  await until(() => !byId("problem").hidden);
  log.push(byId("problem").textContent);
  MORE
  byId("reference").value = reference;
  byId("keep").click();
  await until(() => byId("kept").textContent);
  log.push(byId("kept").textContent.replace(/ as \\w+\\./, "."));
  document.title = log.join(" | ");
});
"""


def in_browser(page: Page, data: bytes, profile: Path, more: str = "") -> list[str]:
    """What a person sees who chooses a file that is none, then this one, asks, and keeps."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.html)
    drive = DRIVE.replace("PICTURE", json.dumps(base64.b64encode(data).decode())).replace("MORE", more)
    dom = dom_after(
        dataclasses.replace(page, html=html.replace("</body>", f"<script>{drive}</script></body>")), profile
    )
    return str(re.findall("<title>(.*?)</title>", dom)[0]).split(" | ")


@pytest.mark.slow
def test_a_person_in_a_browser(
    trained: Any, fit_small: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's two models: upload, ask, see both, keep, and score what was kept."""
    config = composed(f"run={trained.folder}", "trainer=cpu")
    wording, most = asked_as(config)
    arms, cases = loaded_arms(config, most), Cases(tmp_path / "cases")
    page = play_page("a run", arms, wording, cases)
    log = in_browser(page, rotated(), tmp_path / "profile")
    assert log[0] == wording.question != ""
    assert log[1].startswith("Not taken: Expected an image (") and log[1].endswith(
        "an HTML page in no.png; replace the file"
    )
    assert log[2] == "picture.jpg; 30 × 40 pixels; turned upright, as its EXIF block says"
    assert log[3:6] == ["untuned,tuned", "2", "Not saved: Expected the right answer, got none; write it"]
    assert log[6] == f"Kept. 1 test case in {cases.file}"
    run_tool("score", [str(cases.file), "--json"])
    assert json.loads(capsys.readouterr().out)["n"] == 1

    # each arm is what evaluation asked, on rows of the test split
    dataset = make_dataset(read_run(str(trained.folder)).data)
    (kept,) = map(json.loads, cases.file.read_text().splitlines())
    first = dataset.to_sample(dataset.read(dataset.index()["test"][0]))
    assert kept["question"] == first.prompt.messages[-1].text, "in the words of training, through the browser"
    for arm, ask in arms.items():
        stored = {row["id"]: row["text"] for row in map(json.loads, trained.predictions(arm).splitlines())}
        for row_id in [*stored][:4]:
            assert ask(dataset.to_sample(dataset.read(row_id)).prompt).text == stored[row_id], arm


@pytest.mark.slow
def test_a_browser_draws_boxes_and_fields(tmp_path: Path) -> None:
    arms = {"untuned": Said('{"total": 3, "items": [{"name": "tea"}]}'), "tuned": Said('{"total": "3.50"}')}
    more = """
      const lines = [...document.querySelectorAll("#fields tr")];
      log.push(lines.map((e) => e.innerText.replace(/\\s+/g, " ")).join(";"));
    """
    page = play_page("x", arms, Wording("What?"), Cases(tmp_path / "json"))
    assert in_browser(page, encoded(noise()), tmp_path / "profile", more)[6] == (
        "Field untuned tuned Compared;total 3 3.50 differs;items[0].name tea – differs"
    )
    boxes = {"untuned": Said(marks_text([Box(50, 0, 60, 9), Box(30, 20, 60, 40)])), "tuned": Said(BOX)}
    more = """
      const box = document.querySelector("rect.mark-second").getBoundingClientRect();
      const image = document.querySelector("#picture img").getBoundingClientRect();
      const scale = image.width / 40;
      const sides = [box.left - image.left, box.top - image.top, box.right - image.left, box.bottom - image.top];
      log.push(sides.map((n) => Math.round(n / scale)).join());
      const told = [...document.querySelectorAll("#sides article")].map((e) => e.innerText);
      log.push(told.map((text) => text.includes("outside the picture: 1")).join());
      byId("take").lastChild.click();
      reference = byId("reference").value;
    """
    page = play_page("x", boxes, Wording("Where?", marks="boxes"), Cases(tmp_path / "boxes"))
    log = in_browser(page, encoded(noise()), tmp_path / "other", more)
    assert log[6:8] == ["2,3,12,13", "true,false"] and log[8].startswith("Kept. 1 test case")
    assert json.loads((tmp_path / "boxes" / CASES_FILE).read_text())["answer"] == BOX
    plain = dom_after(page, tmp_path / "other")  # as it is served, under its policy
    assert "Begin with what tuned said" in plain and 'id="problem" role="alert" hidden=""' in plain


@pytest.mark.slow
def test_parts_that_were_trained_in_full(fit_small: Callable[..., Any]) -> None:
    """The untuned model is then another one: without the adapter, the tuned parts would stay."""
    run = fit_small("model.train.connector=full", "model.lora.target_modules=[q_proj]", "train.lr=1e-1").folder
    config = composed(f"run={run}", "trainer=cpu", "max_new_tokens=8")
    arms = loaded_arms(config, 8)
    alone = loaded_arms(composed("model=tiny_qwen2vl", "trainer=cpu", "model.quantization.mode=none"), 8)
    prompt = Prompt((Message("user", (image_from_bytes(encoded(noise(size=(80, 60))), "a"), "How many?")),))
    assert arms["untuned"](prompt).text == alone["untuned"](prompt).text != arms["tuned"](prompt).text


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_export_beside_its_base(fit_small: Callable[..., Any], tmp_path: Path, form: str) -> None:
    run = fit_small("train.lr=3e-2").folder
    dtype = ["dtype=float32"] if form == "merged" else []
    to = export(
        compose_tool(
            "export", ExportConfig, [f"run={run}", f"to={tmp_path / form}", f"form={form}", "check_rows=0", *dtype]
        )
    )
    of_run = loaded_arms(composed(f"run={run}", "trainer=cpu"), 8)
    base = ("model=tiny_qwen2vl", "trainer=cpu", "model.quantization.mode=none")
    found = loaded_arms(composed(f"export={to}", *base), 8)
    prompt = Prompt((Message("user", (image_from_bytes(encoded(noise(size=(80, 60))), "a"), "How many?")),))
    said = {arm: ask(prompt).text for arm, ask in of_run.items()}
    assert said["untuned"] != said["tuned"]
    assert {arm: ask(prompt).text for arm, ask in found.items()} == {
        "untuned": said["untuned"],
        "export": said["tuned"],
    }
    if form == "merged":
        alone = loaded_arms(composed(f"export={to}", "trainer=cpu"), 8)
        assert {arm: ask(prompt).text for arm, ask in alone.items()} == {"export": said["tuned"]}
    with pytest.raises(BadRowError, match="Expected at most"):
        found["export"](Prompt((Message("user", ("word " * 9000,)),)))
