"""vlmft annotate: what is missing, drafts that survive anything, and nothing in the dataset that nobody accepted."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import AnnotateConfig
from vlmft.config.tools import compose_tool
from vlmft.data.dataset import Caption
from vlmft.data.datasets.characters import Characters
from vlmft.data.make import make_dataset
from vlmft.labels import annotate as tool
from vlmft.labels.annotate import Drafts, annotate
from vlmft.labels.review import review_page
from vlmft.pages.local_page import LocalServer, Page
from vlmft.servers.chat_client import Patient
from vlmft.tools import cli

CHROMIUM = Path("/usr/bin/chromium")
KEY = "canary-key-of-no-known-form"
NAMES = {"gena": "Крокодил Гена", "masha": "Маша"}
PROMPTS = ["Кто изображён на картинке?", "Что это за персонаж?", "Опиши этого персонажа"]
OLD = {"image": "data/images/gena/1.png", "character_folder": "gena", "question": "Кто?", "answer": "Гена", "x": 1.5}
NEW = ["images/gena/2.png", "images/gena/3.png", "images/masha/1.png", "images/masha/2.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of two characters, one of them annotated."""
    root = tmp_path / "characters"
    for number, name in enumerate(["images/gena/1.png", *NEW]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 6), (40 * number, 0, 0)).save(root / name)
    (root / "json").mkdir()
    write(root / "json/character_names.json", NAMES)
    write(root / "json/base_prompts.json", PROMPTS)
    write(root / "annotation.json", [OLD])
    return root


@pytest.fixture
def call(chat_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """call("key=value", ...): the tool against the server, without waiting; one image after the other."""
    monkeypatch.setattr(tool, "Patient", functools.partial(Patient, sleep=lambda seconds: None))

    def called(*overrides: str) -> None:
        asked = () if any("review" in one or "accept_all" in one for one in overrides) else ("annotator=openai",)
        fixed = (f"data.path={folder}", f"chat.base_url={chat_server.url}", "chat.model=asked", "chat.at_once=1")
        annotate(compose_tool("annotate", AnnotateConfig, [*fixed, *asked, *overrides]))

    return called


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def annotations(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "annotation.json").read_text(encoding="utf-8")))


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "annotation.drafts.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def statuses(folder: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["status"]) for row in lines(folder)]


def drafts_of(folder: Path) -> Drafts:
    dataset = make_dataset(compose_tool("annotate", AnnotateConfig, [f"data.path={folder}", "review=true"]).data)
    assert isinstance(dataset, Characters)
    return Drafts(dataset)


# --- the dataset


def test_what_is_missing(folder: Path) -> None:
    found = Characters(path=str(folder)).missing()
    assert [question.id for question in found] == NEW
    assert [[image.name for image in question.prompt.images] for question in found] == [[name] for name in NEW]
    texts = [question.prompt.messages[0].text for question in found]
    assert all(("Крокодил Гена" in text) == ("gena" in name) for text, name in zip(texts, NEW, strict=True))
    assert all(sum(prompt in text for prompt in PROMPTS) == 1 for text in texts)
    assert texts == [question.prompt.messages[0].text for question in Characters(path=str(folder)).missing()]
    own = Characters(path=str(folder), annotation_prompt="{question} (}{) {name}?").missing()
    assert own[0].prompt.messages[0].text.endswith(" (}{) Крокодил Гена?")


def test_a_stored_caption_is_a_row_like_the_others(folder: Path) -> None:
    dataset = Characters(path=str(folder))
    dataset.store([Caption(NEW[0], "Это Гена.", {"model": "m"}), Caption("images/gena/1.png", "other", {})])
    old, new = annotations(folder)
    assert old == OLD, "what was there stays, and an image is not annotated twice"
    asked = dataset.missing()[0].prompt.messages[0].text
    assert new["question"] in PROMPTS and new["source"] == {"model": "m"} and asked
    assert (new["image"], new["character_folder"], new["character_name"], new["answer"]) == (
        "data/images/gena/2.png",
        "gena",
        "Крокодил Гена",
        "Это Гена.",
    )
    again = Characters(path=str(folder), unannotated=False)
    samples = [again.to_sample(again.read(row_id)) for row_id in again.index()["train"]]
    assert [sample.answer for sample in samples] == ["Гена", "Это Гена."]
    assert [question.id for question in dataset.missing()] == NEW[1:]


def test_the_question_that_was_asked_is_the_one_that_is_stored(folder: Path) -> None:
    dataset = Characters(path=str(folder))
    asked = {question.id: question.prompt.messages[0].text for question in dataset.missing()}
    dataset.store([Caption(name, "x", {}) for name in NEW])
    assert all(row["question"] in asked[row["image"].removeprefix("data/")] for row in annotations(folder)[1:])


def test_a_new_character_is_a_folder_and_a_line(folder: Path) -> None:
    (folder / "images/lion").mkdir()
    (folder / "images/lion/1.png").write_bytes((folder / NEW[0]).read_bytes())
    with pytest.raises(
        ConfigError, match=r"Expected the name of 'lion' in .*character_names\.json, got none; add a line"
    ):
        Characters(path=str(folder)).missing()
    write(folder / "json/character_names.json", {**NAMES, "lion": "Лев"})
    (folder / "annotation.json").unlink()  # the first captions of all
    dataset = Characters(path=str(folder))
    assert len(dataset.missing()) == 6
    dataset.store([Caption("images/lion/1.png", "Лев.", {})])
    assert [row["character_name"] for row in annotations(folder)] == ["Лев"]


# --- drafting


def test_drafts_are_made_and_are_not_in_the_dataset(
    call: Callable[..., None], folder: Path, chat_server: Any, capsys: Any
) -> None:
    before = (folder / "annotation.json").read_bytes()
    call("chat.price_per_million_input_tokens=10", "chat.price_per_million_output_tokens=100")
    assert [row["id"] for row in lines(folder)] == NEW
    first = lines(folder)[0]
    assert first == {**first, "status": "draft", "text": "caption 1", "annotator": "openai", "model": "served-1"}
    assert len(first["date"]) == 10
    assert (folder / "annotation.json").read_bytes() == before
    assert len(Characters(path=str(folder), unannotated=False).index()["train"]) == 1
    asked = [question.prompt.messages[0].text for question in Characters(path=str(folder)).missing()]
    assert chat_server.texts == asked
    # 4 replies of 100 + 10 tokens: 400 * 10 / 1e6 + 40 * 100 / 1e6
    assert "4 drafts made, 0 failed; 400 + 40 tokens, cost 0.0080" in capsys.readouterr().out
    call()
    assert len(chat_server.requests) == 4, "what has a draft is not asked again"


def test_failures_of_one_do_not_stop_the_others(
    call: Callable[..., None], folder: Path, chat_server: Any, capsys: Any
) -> None:
    (folder / NEW[3]).write_bytes(b"no image")
    chat_server.script = [chat_server.answer("", finish_reason="content_filter"), b"junk", (500, {}, {})]
    call("json=true")
    shown = json.loads(capsys.readouterr().out)
    assert statuses(folder) == list(zip(NEW, ["failed", "failed", "draft", "failed"], strict=True))
    reasons = [row.get("reason", "") for row in lines(folder)]
    assert reasons[0] == "refused: content_filter" and reasons[1].startswith("junk") and "image" in reasons[3]
    assert (shown["waiting"], shown["failed"], shown["asked"]["answered"], shown["asked"]["cost"]) == (1, 3, 1, None)
    call()
    assert len(chat_server.requests) == 4
    call("again=true")
    assert len(chat_server.requests) == 6
    assert statuses(folder)[4:] == [(NEW[0], "draft"), (NEW[1], "draft"), (NEW[3], "failed")]


def test_one_question_that_the_server_refuses_does_not_block_the_others(
    call: Callable[..., None], folder: Path, chat_server: Any
) -> None:
    """400 after an answer is the question's fault; before any it may be a setting's, and nothing is written down."""
    chat_server.script = [chat_server.answer("one"), (400, {}, {"error": {"message": "too long", "code": 400}})]
    call()
    assert statuses(folder) == list(zip(NEW, ["draft", "failed", "draft", "draft"], strict=True))


def test_a_setting_that_the_server_refuses_stops_early(
    call: Callable[..., None], folder: Path, chat_server: Any
) -> None:
    chat_server.script = [(400, {}, {"error": {"message": "no such field"}})] * 3
    with pytest.raises(ConfigError, match=r"no such field.*for 3 questions in a row"):
        call()
    assert len(chat_server.requests) == 3
    call()
    assert statuses(folder) == [(name, "draft") for name in NEW]


def test_a_draft_for_another_question_is_made_again(
    call: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which base prompt an image has hangs on how many there are."""
    call()
    before = statuses(folder)
    prompts = folder / "json/base_prompts.json"
    prompts.write_text(json.dumps([f"Another question {n}?" for n in range(3)]))
    call()
    assert "4 drafts answer a question that is no longer asked" in capsys.readouterr().err
    again = [row for row in lines(folder)[len(before) :] if row["status"] == "draft"]
    assert [row["id"] for row in again] == NEW and all("Another question" in row["asked"] for row in again)


def test_a_last_line_that_an_editor_left_without_its_end(call: Callable[..., None], folder: Path) -> None:
    call("limit=2")
    drafts = folder / "annotation.drafts.jsonl"
    drafts.write_bytes(drafts.read_bytes().rstrip(b"\n"))
    call()
    assert statuses(folder) == [(name, "draft") for name in NEW]


def test_a_server_that_is_gone_is_left(call: Callable[..., None], folder: Path, chat_server: Any) -> None:
    chat_server.script = [chat_server.answer("one"), *[(503, {}, b"down")] * 6]
    with pytest.raises(ConfigError, match="for 3 questions in a row; the same command goes on after the 1 that"):
        call("chat.max_retries=1")
    assert statuses(folder) == [(NEW[0], "draft")]
    call()
    assert statuses(folder) == [(name, "draft") for name in NEW]


def test_images_are_asked_about_at_once(call: Callable[..., None], folder: Path, chat_server: Any) -> None:
    together = threading.Barrier(3, timeout=20)

    def wait(body: Any) -> Any:
        together.wait()
        return chat_server.answer("so it is")

    chat_server.script = [wait] * 3
    call("chat.at_once=3")
    assert sorted(statuses(folder)) == [(name, "draft") for name in NEW]


def test_ctrl_c_keeps_what_is_under_way(folder: Path, chat_server: Any) -> None:
    """It may have been paid for; no other is asked."""
    running: list[subprocess.Popen[bytes]] = []

    def interrupt(body: Any) -> Any:
        running[0].send_signal(signal.SIGINT)
        time.sleep(1)
        return chat_server.answer("late")

    chat_server.script = [chat_server.answer("early"), interrupt]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    line = command(folder, chat_server.url, "chat.at_once=1")
    running.append(subprocess.Popen(line, cwd=Path(cli.__file__).parents[2], preexec_fn=heard, stderr=subprocess.PIPE))
    _, said = running[0].communicate(timeout=60)
    assert running[0].returncode == 130 and b"Traceback" not in said, said.decode()
    assert statuses(folder) == [(name, "draft") for name in NEW[:2]] and len(chat_server.requests) == 2


def test_limit(call: Callable[..., None], folder: Path, chat_server: Any) -> None:
    call("limit=1")
    call("limit=2")
    assert [row["id"] for row in lines(folder)] == NEW[:3]


def command(folder: Path, url: str, *more: str) -> list[str]:
    fixed = ["data=characters", f"data.path={folder}", "annotator=openai", "chat.model=asked", f"chat.base_url={url}"]
    return [sys.executable, "-m", "vlmft", "annotate", *fixed, *more]


def test_killed_and_gone_on(call: Callable[..., None], folder: Path, chat_server: Any) -> None:
    """SIGKILL while the third image is asked about; then the file is torn as a power cut would tear it."""
    running: list[subprocess.Popen[bytes]] = []

    def kill(body: Any) -> Any:
        os.kill(running[0].pid, signal.SIGKILL)
        running[0].wait()
        return "reset"

    chat_server.script = [chat_server.answer("one"), chat_server.answer("two"), kill]
    line = command(folder, chat_server.url, "chat.at_once=1")
    running.append(subprocess.Popen(line, cwd=Path(cli.__file__).parents[2]))
    assert running[0].wait(60) == -signal.SIGKILL
    assert statuses(folder) == [(name, "draft") for name in NEW[:2]]
    with (folder / "annotation.drafts.jsonl").open("ab") as file:
        file.write(b'{"id": "images/masha/1.png", "status": "dra')
    call()
    assert statuses(folder) == [(name, "draft") for name in NEW]
    pictures = [request["messages"][0]["content"][0]["image_url"]["url"] for request in chat_server.requests]
    assert len(pictures) == 5 and pictures[2] == pictures[3], "only the one that was lost is asked about twice"
    assert len(set(pictures)) == 4


def test_no_key_anywhere(
    chat_server: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It is sent, the server sends it back in every way it can, and it is in no file and no output."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    chat_server.script = [
        f"<html>{KEY}".encode(),
        (500, {}, {"error": {"message": f"bad day, {KEY}"}}),
        chat_server.answer(f"I was given {KEY}"),
        chat_server.answer("", finish_reason="stop", message={"content": "", "refusal": f"not for {KEY}"}),
        (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
    ]
    monkeypatch.setattr(sys, "argv", ["vlmft", *command(folder, chat_server.url)[3:], "--json"])
    monkeypatch.setattr(tool, "Patient", functools.partial(Patient, sleep=lambda seconds: None))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    shown = capfd.readouterr()
    assert stopped.value.code == 2 and "OPENAI_API_KEY: the server answered 401 (Incorrect API key" in shown.err
    assert {request["headers"]["Authorization"] for request in chat_server.requests} == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert folder / "annotation.drafts.jsonl" in files and len(lines(folder)) == 3
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in shown.out + shown.err and "bad day" in shown.err


# --- accepting


def test_accept_all_says_that_nobody_read_them(call: Callable[..., None], folder: Path, capsys: Any) -> None:
    call()
    call("accept_all=true")
    assert "4 captions written into the dataset, 4 of them read by nobody (accept_all)" in capsys.readouterr().out
    rows = annotations(folder)
    assert rows[0] == OLD and [row["answer"] for row in rows[1:]] == [f"caption {n}" for n in (1, 2, 3, 4)]
    assert all(row["source"]["accepted_by"] == "nobody: accept_all" for row in rows[1:])
    assert rows[1]["source"]["model"] == "served-1" and "text" not in rows[1]["source"]


class Browser:
    """What the page would send."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server

    def act(self, name: str, value: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.url + name, json.dumps(value).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def get(self, name: str) -> bytes:
        with urllib.request.urlopen(self.server.url + name, timeout=10) as response:
            return bytes(response.read())


def test_review(call: Callable[..., None], folder: Path, chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person accepts one as it is, edits one, rejects one after accepting it, and leaves one for later."""
    call()
    seen: dict[str, Any] = {}

    def person(page: Any, port: int, open_browser: bool) -> None:
        assert (port, open_browser) == (0, False)
        with LocalServer(page) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            browser = Browser(server)
            seen["items"] = browser.act("items")
            assert PILImage.open(io.BytesIO(browser.get("image/1"))).getpixel((0, 0)) == (80, 0, 0)
            assert "Captions to review" in browser.get("").decode()
            browser.act("decide", {"item": 0, "status": "accepted", "text": "caption 1"})
            browser.act("decide", {"item": 1, "status": "accepted", "text": " Гена читает. \n"})
            browser.act("decide", {"item": 2, "status": "accepted", "text": "caption 3"})
            browser.act("decide", {"item": 2, "status": "rejected", "text": "caption 3"})
            for wrong in ({"item": 3, "status": "accepted", "text": " "}, {"item": 3, "status": "?", "text": "x"}):
                with pytest.raises(urllib.error.HTTPError, match="400"):
                    browser.act("decide", wrong)
            seen["while"] = annotations(folder)
            server.shutdown()

    monkeypatch.setattr("vlmft.labels.review.serve", person)
    call("review=true", "open_browser=false")
    assert seen["while"] == [OLD], "nothing is in the dataset before the page is done"
    assert [item["text"] for item in seen["items"]] == [f"caption {n}" for n in (1, 2, 3, 4)]
    assert seen["items"][0]["by"] == "openai, served-1" and "Гена" in seen["items"][0]["asked"]
    old, first, second = annotations(folder)
    assert (old, first["answer"], second["answer"]) == (OLD, "caption 1", "Гена читает.")
    assert first["source"]["accepted_by"] == "a person"
    assert second["source"]["accepted_by"] == "a person, who edited it"
    call()
    assert len(chat_server.requests) == 4, "a rejected one is not asked about again, one that waits neither"
    call("again=true")
    assert len(chat_server.requests) == 5
    assert drafts_of(folder).of("draft") == [NEW[2], NEW[3]]


DRIVE = """
const until = async (what) => { while (!what()) await new Promise((then) => setTimeout(then, 5)); };
const press = (key, more = {}) =>
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
const place = () => byId("place").textContent.split(" ")[1];
const log = [];
window.addEventListener("load", async () => {
  await until(() => place() === "1" && byId("picture").naturalWidth);
  press("\\u0444", { code: "KeyA" }); await until(() => place() === "2");
  press("e"); log.push("focus " + document.activeElement.id); press("a");
  byId("text").value = "written \\u003cb> by hand"; press("ArrowRight"); press("Escape"); log.push("still " + place());
  press("a"); await until(() => place() === "3");
  press("r"); await until(() => place() === "4");
  press("e"); byId("text").value = " "; press("Escape"); press("a"); await until(() => !byId("problem").hidden);
  log.push(byId("problem").textContent);
  press("ArrowLeft"); press("ArrowLeft");
  log.push(byId("text").value + " " + byId("accept").getAttribute("aria-pressed"));
  for (let i = 0; i < 9; i++) press("ArrowRight");
  log.push(byId("left").textContent);
  byId("finish").click(); await until(() => document.querySelector("main .sentence"));
  document.title = log.join(" | ");
});
"""


def dom_after(page: Page, profile: Path) -> str:
    """The document after its scripts ran, as Chromium writes it."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    with LocalServer(page) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        command = [str(CHROMIUM), *flags, "--virtual-time-budget=20000", "--dump-dom", server.url]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    return dom


@pytest.mark.slow
def test_a_person_reviews_by_keys_in_a_browser(call: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    """With a script more that presses keys, and without the policy that would refuse it; then as it is served."""
    call()
    page = review_page(drafts_of(folder))
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.html)
    pressing = dataclasses.replace(page, html=html.replace("</body>", f"<script>{DRIVE}</script></body>"))
    dom = dom_after(pressing, tmp_path / "profile")
    (title,) = re.findall("<title>(.*?)</title>", dom)
    assert title.split(" | ") == [
        "focus text",
        "still 2",
        "Not saved: a caption needs a text; write one, or reject the draft",
        "written &lt;b&gt; by hand true",
        "1 draft has no decision yet; they wait for next time.",
    ]
    assert "2 of 4 drafts accepted. You can close this page" in dom
    decided = [(row["status"], row["text"]) for row in lines(folder)[4:]]
    assert decided == [("accepted", "caption 1"), ("accepted", "written <b> by hand"), ("rejected", "caption 3")]
    plain = dom_after(review_page(drafts_of(folder)), tmp_path / "profile")
    assert "Draft 1 of 1" in plain and 'id="problem" role="alert" hidden=""' in plain


def test_what_was_accepted_before_a_kill_is_not_lost(call: Callable[..., None], folder: Path, capsys: Any) -> None:
    call()
    review_page(drafts_of(folder)).actions["decide"]({"item": 1, "status": "accepted", "text": "Да."})
    assert annotations(folder) == [OLD]  # killed here: the decision is on disk, the dataset is as it was
    call("limit=1")
    assert [row["answer"] for row in annotations(folder)] == ["Гена", "Да."]
    assert "1 captions written" in capsys.readouterr().out
    write(folder / "annotation.json", [OLD])  # somebody takes the caption out again
    call()
    assert annotations(folder) == [OLD], "it does not come back by itself"
    assert drafts_of(folder).of("draft") == NEW


def test_a_draft_in_the_dataset_would_be_seen(call: Callable[..., None], folder: Path) -> None:
    """The defect: drafts stored as they come. The check above must fail on it."""
    before = (folder / "annotation.json").read_bytes()
    call()
    drafts = drafts_of(folder)
    assert (folder / "annotation.json").read_bytes() == before
    drafts.dataset.store([Caption(name, drafts.rows[name]["text"], {}) for name in drafts.of("draft")])
    assert (folder / "annotation.json").read_bytes() != before


# --- mistakes


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["annotator=null"], "annotator: Expected openai, gigachat, local, or review=true"),
        (["annotator=local"], "annotator: local takes either run=<run folder> or model=, got none"),
        (["annotator=openai"], r"chat\.model: Expected the name"),
        (["annotator=openai", "chat.model=m", "model=tiny"], "run: Expected annotator=local beside run= or model="),
        (["review=true", "accept_all=true"], "accept_all: Expected it or review=true, got both"),
        (
            ["annotator=openai", "chat.model=m", "chat.max_retries=-1"],
            r"chat\.max_retries: Expected a whole number >= 0",
        ),
        (["review=true", "port=70000"], "port: Expected a port from 0 to 65535"),
        (["review=true"], r"data\.path: Expected the folder"),
        (
            ["review=true", "data=shapes"],
            "data: Expected a dataset that takes captions, such as characters, got 'shapes'",
        ),
    ],
)
def test_one_line(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        annotate(compose_tool("annotate", AnnotateConfig, overrides))


@pytest.mark.parametrize("damage", ["nonsense\n", '["a"]\n', '{"id": "images/gena/2.png", "status": "draft"}\n'])
def test_damaged_drafts(call: Callable[..., None], folder: Path, damage: str) -> None:
    (folder / "annotation.drafts.jsonl").write_text(damage)
    with pytest.raises(ConfigError, match=r"annotation\.drafts\.jsonl: Expected"):
        call()


@pytest.mark.slow
def test_a_local_model_drafts(folder: Path, chat_server: Any) -> None:
    settings = ["model=tiny_qwen2vl", "annotator=local", f"data.path={folder}", "limit=1", "chat.max_new_tokens=4"]
    annotate(compose_tool("annotate", AnnotateConfig, settings))
    (row,) = lines(folder)
    assert row["annotator"] == "local" and row["model"] == "tiny_qwen2vl" and row["status"] in ("draft", "failed")
    assert chat_server.requests == []
