"""vlmft grade: nothing shows whose an answer is, nothing that was judged is lost, and the result is reported."""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from omegaconf import OmegaConf

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig
from vlmft.config.tool_schema import GradeConfig
from vlmft.config.tools import compose_tool
from vlmft.data.make import make_dataset
from vlmft.evaluation.grading import VerdictFile, read_verdicts, text_sha256
from vlmft.labels.grade import (
    Item,
    chosen_rows,
    grade,
    grading_into_report,
    grading_page,
    rater_of,
    read_predictions,
    read_samples,
    shuffled_items,
)
from vlmft.pages.local_page import LocalServer, Page
from vlmft.report import Report, write_report_files
from vlmft.run.folder import plain
from vlmft.sample import Sample

CHROMIUM = Path("/usr/bin/chromium")
N_ROWS = 12
ARMS = ("untuned", "zebra", "quokka")
SAMPLES: dict[str, Sample] = {}
"""The rows of the fixture `original`, read once."""
SAID = {"untuned": "I see {} things.", "zebra": "На картинке {}.", "quokka": "{} objects, some hidden."}


@pytest.fixture(scope="session")
def original(compose: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with made-up answers; in every third row zebra and quokka say the same."""
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    (folder / "predictions").mkdir(parents=True)
    config = compose("model=tiny", "data=shapes", "data.options.test_rows=20", "data.options.image_size=48")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    dataset = make_dataset(config.data)
    samples = [dataset.to_sample(dataset.read(row_id)) for row_id in dataset.index()["test"][:N_ROWS]]
    SAMPLES.update({sample.id: sample for sample in samples})
    for arm in ARMS:
        lines = []
        for number, sample in enumerate(samples):
            text = SAID["zebra" if arm == "quokka" and number % 3 == 0 else arm].format(number)
            images = [image.sha256 for image in sample.prompt.images]
            row = {"id": sample.id, "text": text, "image_sha256": images, "prompt_sha256": sample.prompt.sha256}
            lines.append(json.dumps({**row, "finish": "stop", "arm": arm}) + "\n")
        (folder / "predictions" / f"{arm}.jsonl").write_text("".join(lines))
    write_report_files(Report("t", "s", (), (), (), (), {"test": N_ROWS}, (), {}, {}, {}, ""), folder)
    (folder / "summary.json").write_text(json.dumps({"model": "tiny", "grading": None}))
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def composed(run: Path, *overrides: str) -> GradeConfig:
    return compose_tool("grade", GradeConfig, [f"run={run}", "open_browser=false", *overrides])


def items_of(run: Path, rater: str, n: int = N_ROWS, arms: Sequence[str] = ARMS, seed: int = 0) -> list[Item]:
    answers = read_predictions(run).answers
    return shuffled_items(answers, arms, chosen_rows(answers, arms, n, seed), f"{seed}:{rater}")


def page_of(run: Path, rater: str = "anna", items: Sequence[Item] | None = None, references: bool = True) -> Page:
    items = items_of(run, rater) if items is None else items
    return grading_page(items, SAMPLES, VerdictFile(run / "grading" / f"{rater}.jsonl"), references=references)


# --- blindness


def tells(page: Page, orders: Sequence[Sequence[Item]]) -> list[str]:
    """How the page or the raters' orders tell arms apart."""
    state = page.actions["items"](None)
    text = page.html + json.dumps(state, ensure_ascii=False)
    found = [f"the page says {arm}" for arm in ARMS if arm in text]
    found += ["the page says which row it is" for item in orders[0] if item.row_id in text][:1]
    found += [f"a key tells: {key}" for key in state["items"][0] if key not in SHOWN]
    for order in orders:
        arms = [item.arms for item in order]
        changes = sum(one != other for one, other in itertools.pairwise(arms))
        first = {arms_of[0] for arms_of in {item.row_id: item.arms for item in reversed(order)}.values()}
        found += ["arms come one after the other"] * (changes == len(set(arms)) - 1)
        found += ["one arm is always the first of its row"] * (len(first) == 1)
    return found + ["all raters have one order"] * (len(orders) > 1 and all(order == orders[0] for order in orders))


SHOWN = {"earlier", "question", "references", "answer", "images", "verdict", "note"}
RATERS = ("anna", "boris", "carl")


def test_nothing_tells_whose_an_answer_is(run: Path) -> None:
    assert tells(page_of(run), [items_of(run, rater) for rater in RATERS]) == []
    (run / "grading").mkdir()
    shutil.copy(run / "predictions" / "zebra.jsonl", run / "grading" / "other.txt")  # what lies beside is not served
    page = page_of(run)
    page.actions["grade"]({"item": 0, "verdict": "accept", "note": ""})
    assert tells(page, [items_of(run, "anna")]) == []


def test_the_test_above_sees_what_tells(run: Path) -> None:
    by_arm = sorted(items_of(run, "anna"), key=lambda item: item.arms)
    assert tells(page_of(run, items=by_arm), [by_arm]) == ["arms come one after the other"]
    by_row = sorted(items_of(run, "anna"), key=lambda item: (item.row_id, ARMS.index(item.arms[0])))
    assert tells(page_of(run), [by_row, by_row]) == ["one arm is always the first of its row"] * 2 + [
        "all raters have one order"
    ]
    page = page_of(run)
    items = page.actions["items"](None)["items"]
    leaking = replace(page, actions={"items": lambda _: {"items": [{**one, "arm": "zebra"} for one in items]}})
    assert tells(leaking, [items_of(run, "anna")]) == ["the page says zebra", "a key tells: arm"]


def test_the_rows_are_every_rater_s_and_stay_when_there_are_more(run: Path) -> None:
    rows = [{item.row_id for item in items_of(run, rater, n=5)} for rater in RATERS]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 5
    assert rows[0] < {item.row_id for item in items_of(run, "anna", n=8)}
    assert rows[0] != {item.row_id for item in items_of(run, "anna", n=5, seed=1)}
    few, many = items_of(run, "anna", n=5), items_of(run, "anna", n=8)
    assert [item for item in many if item.row_id in rows[0]] == few


def test_equal_texts_are_judged_once(run: Path) -> None:
    items = items_of(run, "anna")
    assert len(items) == 3 * N_ROWS - 4 and len({(item.row_id, item.text) for item in items}) == len(items)
    assert [item.arms for item in items].count(("zebra", "quokka")) == 4


def test_references_and_pictures(run: Path) -> None:
    shown = page_of(run).actions["items"](None)["items"]
    assert all(one["references"] and one["question"].startswith("How many") for one in shown)
    assert not any(one["references"] for one in page_of(run, references=False).actions["items"](None)["items"])
    page = page_of(run)
    (name,) = shown[3]["images"]
    assert page.image(name).startswith(b"\x89PNG") and page.image(name) != page.image(shown[4]["images"][0])
    with pytest.raises(KeyError):
        page.image("../config.yaml")


# --- what is kept


def test_verdicts_are_on_disk_and_the_page_goes_on_there(run: Path) -> None:
    page = page_of(run)
    for number, verdict in enumerate(["accept", "reject", "accept"]):
        page.actions["grade"]({"item": number, "verdict": verdict, "note": "да" * number})
    page.actions["grade"]({"item": 0, "verdict": "reject", "note": ""})
    found = page_of(run).actions["items"](None)
    assert found["start"] == 3
    assert [(one["verdict"], one["note"]) for one in found["items"][:4]] == [
        ("reject", ""),
        ("reject", "да"),
        ("accept", "дада"),
        (None, ""),
    ]
    verdicts = read_verdicts(run / "grading" / "anna.jsonl")
    judged = [Item(one.id, one.text_sha256, one.arms) for one in verdicts.values()]
    assert judged == [replace(item, text=text_sha256(item.text)) for item in items_of(run, "anna")[:3]]
    for wrong in ({"item": 0, "verdict": "maybe", "note": ""}, {"item": 10_000, "verdict": "accept", "note": ""}):
        with pytest.raises((ValueError, IndexError)):
            page.actions["grade"](wrong)
    assert page_of(run, "boris").actions["items"](None)["start"] == 0


def judge_all(run: Path, rater: str, accepts: Callable[[Item], bool]) -> None:
    page = page_of(run, rater)
    for number, item in enumerate(items_of(run, rater)):
        page.actions["grade"]({"item": number, "verdict": "accept" if accepts(item) else "reject", "note": ""})


def test_summary(run: Path, original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge_all(run, "anna", lambda item: "untuned" not in item.arms)
    judge_all(run, "boris", lambda item: item.arms == ("quokka",))
    shutil.copy(run / "grading" / "boris.jsonl", run / "grading" / "judge-x.jsonl")
    grade(composed(run, "summary=true"))
    out = capsys.readouterr().out
    assert "anna: 32 answers judged\n  untuned        0.00 %  (0.00 to 24.25, Wilson)  0 of 12 accepted\n" in out
    assert "untuned -> zebra: +100.00 points" in out and "12 rows fixed, 0 broken, n = 12: better" in out
    assert "mean of people  quokka        83.33 %" in out
    assert out.index("boris: 32") < out.index("judge-x (machine): 32") < out.index("anna and boris: Cohen's kappa")
    assert "judge-x and boris: Cohen's kappa 1.00 (32 answers, the same verdict on 100.0 %)" in out
    report = (run / "report.html").read_text()
    assert report.count('<section id="grading"') == 1 and "Machine judges" in report
    assert "## Graded by people" in (run / "report.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary == {"model": "tiny", "grading": json.loads((run / "grading" / "summary.json").read_text())}
    grade(composed(run, "summary=true", "json=true", "arms=[zebra,quokka]"))
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((run / "grading" / "summary.json").read_text())
    assert [pair["second"] for pair in content["raters"][0]["comparisons"]] == ["quokka"]
    assert (run / "report.html").read_text().count('<section id="grading"') == 1
    for name in ("report.html", "report.json"):  # evaluated again: the report is written anew
        shutil.copy(original / name, run / name)
    grading_into_report(run)
    assert (run / "report.html").read_text().count('<section id="grading"') == 1


def test_another_question_about_the_same_image_is_refused(run: Path) -> None:
    """The images alone would not tell: two questions on each, which changed places after they were answered."""
    for path in (run / "predictions").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "prompt_sha256": "0" * 64}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="got other images or questions in"):
        read_samples(composed(run), run, [*SAMPLES][:3])


def test_changed_predictions_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge_all(run, "anna", lambda item: True)
    path = run / "predictions" / "untuned.jsonl"
    path.write_text(path.read_text().replace("things", "items"))
    grade(composed(run, "summary=true"))
    assert "note: anna: 12 of 32 verdicts are on answers that are no longer there; not used" in capsys.readouterr().out
    assert page_of(run).actions["items"](None)["start"] is not None
    assert sum(one["verdict"] is None for one in page_of(run).actions["items"](None)["items"]) == 12


# --- mistakes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("arms=[untuned,lion]",), "arms: Expected some of quokka, untuned, zebra, got lion"),
        (("rater=judge-me",), "rater: Expected letters"),
        (("rater=../anna",), "rater: Expected letters"),
        (("n=0",), "n: Expected a whole number >= 1"),
        (("port=70000",), "port: Expected a port"),
        (("data_options.image_size=56",), "data_options: Expected the data that were answered, got other images"),
        (("data_options.image_sise=32",), r"data\.options\.image_sise: Shapes has no such option"),
        (("data_options.test_rows=3",), "run: the data no longer give the rows that were answered"),
    ],
)
def test_refused_in_a_sentence(run: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grade(composed(run, *overrides))
    assert not (run / "grading").exists()


def test_folders_without_what_is_needed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="run: there are no predictions in"):
        grade(composed(tmp_path / "empty"))
    shutil.copytree(run / "predictions", tmp_path / "empty" / "predictions")
    with pytest.raises(ConfigError, match="data: Expected the data that were evaluated"):
        grade(composed(tmp_path / "empty"))
    grade(composed(tmp_path / "empty", "summary=true"))
    assert capsys.readouterr().out == "no answer is judged\n"


def test_an_evaluation_s_folder_takes_the_data_of_its_run(run: Path) -> None:
    folder = run / "evaluations" / "test"
    shutil.copytree(run / "predictions", folder / "predictions")
    rows = chosen_rows(read_predictions(folder).answers, ARMS, 3, 0)
    assert len(read_samples(composed(folder), folder, rows)) == 3
    given = composed(folder, "data=shapes", "data.options.test_rows=20", "data.options.image_size=48")
    assert len(read_samples(given, folder, rows)) == 3


def test_the_login_name_is_the_rater(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "olga")
    assert rater_of(composed(run)) == "olga"
    monkeypatch.setenv("LOGNAME", "domain\\olga")
    with pytest.raises(ConfigError, match="rater: "):
        rater_of(composed(run))


# --- whole programs


def started(run: Path, *overrides: str) -> tuple[subprocess.Popen[str], str]:
    """The program, and its page's address."""
    command = [sys.executable, "-m", "vlmft", "grade", f"run={run}", "open_browser=false", "rater=anna", *overrides]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+", line):
            return process, found[0]
    raise AssertionError(process.communicate())


def post(url: str, name: str, value: Any) -> Any:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=30)
    connection.request("POST", f"{place.path}{name}", json.dumps(value), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    return json.loads(answer.read())


@pytest.mark.slow
def test_killed_interrupted_and_finished(run: Path) -> None:
    process, url = started(run)
    for number in range(5):
        post(url, "grade", {"item": number, "verdict": "accept", "note": ""})
    process.kill()
    process.communicate()
    with (run / "grading" / "anna.jsonl").open("ab") as stream:
        stream.write(b'{"id": "shapes/A/te')  # as a loss of power leaves it
    process, url = started(run)
    assert post(url, "items", None)["start"] == 5
    post(url, "grade", {"item": 5, "verdict": "reject", "note": "нет"})
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "") and output.startswith("anna: 6 answers judged\n")
    assert len((run / "grading" / "anna.jsonl").read_text().splitlines()) == 6
    process, url = started(run, "--json")
    assert post(url, "items", None)["start"] == 6
    assert post(url, "done", None) is None
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "") and json.loads(output)["raters"][0]["n_texts"] == 6


def test_no_torch() -> None:
    code = "import sys, vlmft.labels.grade; print(sorted({'torch', 'transformers', 'datasets'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


DRIVE = """
const wait = (milliseconds) => new Promise((then) => setTimeout(then, milliseconds));
async function until(what) { while (!what()) await wait(5); }
const press = (key, more = {}) =>
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
const pressed = (id) => ", pressed " + byId(id).getAttribute("aria-pressed");
const place = () => byId("place").textContent.split(" ")[1];
const log = [];
window.addEventListener("load", async () => {
  await until(() => place() === "1");
  press("a"); await until(() => place() === "2");
  press("r"); await until(() => place() === "3");
  press("s"); log.push("skipped to " + place());
  press("\\u0444", { code: "KeyA" }); await until(() => place() === "5");
  press("a", { repeat: true }); press("a", { ctrlKey: true });
  press("n"); log.push("focus " + document.activeElement.id); press("a"); press("ArrowLeft");
  byId("note").value = "a \\u003cb> note"; press("Escape"); log.push("left " + (document.activeElement.id !== "note"));
  log.push("still " + place()); press("r"); await until(() => place() === "6");
  press("ArrowLeft"); log.push("note " + byId("note").value + pressed("reject"));
  for (const _ of "1234") press("ArrowLeft");
  log.push("back " + place() + pressed("accept"));
  press("r"); await until(() => place() === "2");
  for (let i = 0; i < 100; i++) press("ArrowRight");
  log.push(byId("left").textContent); byId("open").click(); log.push("open " + place());
  await until(() => document.querySelector("#pictures img").naturalWidth);
  byId("accept").focus(); log.push("outline " + getComputedStyle(byId("accept")).outlineStyle);
  byId("accept").click(); await until(() => place() === "4");
  for (let i = 0; i < 100; i++) press("ArrowRight");
  byId("finish").click(); await until(() => document.querySelector("main .sentence"));
  document.title = log.join(" | ");
});
"""


@pytest.fixture
def served(run: Path) -> Iterator[LocalServer]:
    """The page with a script more that presses keys, and without the policy that would refuse it."""
    page = page_of(run)
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.html)
    with LocalServer(replace(page, html=html.replace("</body>", f"<script>{DRIVE}</script></body>"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def dom_after(url: str, profile: Path) -> str:
    """The document after its scripts ran, as Chromium writes it."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=20000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_a_person_judges_by_keys_in_a_browser(run: Path, served: LocalServer, tmp_path: Path) -> None:
    dom = dom_after(served.url, tmp_path / "profile")
    (title,) = re.findall("<title>(.*?)</title>", dom)
    assert title.split(" | ") == [
        "skipped to 4",
        "focus note",
        "left true",
        "still 5",
        "note a &lt;b&gt; note, pressed true",
        "back 1, pressed true",
        "28 answers have no verdict yet.",
        "open 3",
        "outline solid",
    ]
    assert "5 of 32 answers judged. You can close this page" in dom
    verdicts = read_verdicts(run / "grading" / "anna.jsonl")
    found = [verdicts[item.row_id, text_sha256(item.text)] for item in items_of(run, "anna")[:5]]
    assert [one.verdict for one in found] == ["reject", "reject", "accept", "accept", "reject"]
    assert [one.note for one in found] == ["", "", "", "", "a <b> note"] and len(verdicts) == 5


@pytest.mark.slow
def test_a_browser_under_the_page_s_own_policy(run: Path, tmp_path: Path) -> None:
    """Without the extra script: the page as it is served loads its items and pictures."""
    with LocalServer(page_of(run)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        dom = dom_after(server.url, tmp_path / "profile")
        server.shutdown()
    assert (
        "Answer 1 of 32" in dom
        and 'src="image/0-0"' in dom
        and '<p class="warnings" id="problem" role="alert" hidden="">' in dom
    )
