"""A server as one more arm: what it gets, what of its faults passes, and that an answer is never asked for twice."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.chat_schema import ServerConfig
from vlmft.config.check import ConfigError
from vlmft.evaluation.rows import EvaluationRows
from vlmft.evaluation.server_arms import Served, ask_server, canary_on_requests
from vlmft.sample import Answer, Image, Message, Prompt, Question, Sample
from vlmft.servers.chat_client import connected

N = 12


def scene(number: int) -> Image:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 9, 3), np.uint8)
    return Image(lambda: PIL.Image.fromarray(pixels), f"scene {number}")


QUESTIONS = [
    Question(
        f"row {number}",
        Prompt(
            (
                Message("system", ("Be short.",)),
                Message("user", ("Look: ", scene(number), f"question {number}?")),
            )
        ),
    )
    for number in range(N)
]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmft.servers.chat_client.random.uniform", lambda low, high: 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def ask(chat_server: Any, tmp_path: Path) -> Callable[..., Served]:
    """ask(questions=..., folder=..., poll=..., fresh=..., setting=...): the arm `big`."""

    def asked(
        questions: Any = QUESTIONS,
        folder: Path = tmp_path,
        poll: Callable[[], None] = lambda: None,
        fresh: bool = False,
        **settings: Any,
    ) -> Served:
        config = ServerConfig(**{"model": "org/big", "base_url": chat_server.url, "at_once": 3, **settings})
        chat = connected("big", config, max_new_tokens=8)
        return ask_server("big", chat, config, questions, "test", folder, poll, fresh)

    return asked


def said(body: Any) -> str:
    return str(body["messages"][-1]["content"][-1]["text"])


def echo(chat_server: Any, model: str = "served-1") -> Callable[[Any], Any]:
    """Answers each question by its own text."""
    return lambda body: {**chat_server.answer(said(body).upper()), "model": model}


def stored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions/big.jsonl").read_text().splitlines()]


def test_a_server_gets_the_rows_as_they_are(
    ask: Any, chat_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", "a-key-of-no-known-form")
    chat_server.script = [echo(chat_server)] * N
    found = ask(key_variable="BIG_KEY", options={"seed": 7, "max_tokens": None, "max_completion_tokens": 8})
    assert {row_id: answer.text for row_id, answer in found.answers.items()} == {
        question.id: f"QUESTION {number}?" for number, question in enumerate(QUESTIONS)
    }
    by_text = {said(request): request for request in chat_server.requests}
    assert len(by_text) == len(chat_server.requests) == N
    request = by_text["question 5?"]
    assert request["headers"]["Authorization"] == "Bearer a-key-of-no-known-form"
    sent = {"model": "org/big", "temperature": 0.0, "seed": 7, "max_completion_tokens": 8}
    assert {key: value for key, value in request.items() if key not in ("messages", "path", "headers")} == sent
    system, user = request["messages"]
    assert system == {"role": "system", "content": "Be short."} and user["role"] == "user"
    first, picture, last = user["content"]
    assert (first, last) == ({"type": "text", "text": "Look: "}, {"type": "text", "text": "question 5?"})
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert (np.asarray(PIL.Image.open(io.BytesIO(data))) == scene(5).pixels).all(), "no pixel changes on the way"
    assert "a-key" not in (tmp_path / "predictions/big.jsonl").read_text()


def test_questions_are_asked_at_once(ask: Any, chat_server: Any) -> None:
    together = threading.Barrier(3, timeout=20)

    def wait(body: Any) -> Any:
        together.wait()
        return echo(chat_server)(body)

    chat_server.script = [wait] * N
    found = ask(at_once=3)
    assert found.answers["row 11"] == Answer("QUESTION 11?", "stop", 10)


def test_faults_that_pass(ask: Any, chat_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chat_server.script = [
        (429, {"Retry-After": "0"}, {}),
        (500, {}, {"error": {"message": "oops"}}),
        "hang",
        b"<html>an idle proxy</html>",
        "reset",
        {"choices": []},
        (503, {}, b"busy"),
    ]
    chat_server.script += [echo(chat_server)] * N
    found = ask(timeout_seconds=0.5)
    assert [answer.text for answer in found.answers.values()] == [f"QUESTION {number}?" for number in range(N)]
    assert len(chat_server.requests) == N + 7 and not found.unanswered and not found.cautions
    assert capsys.readouterr().err.count("; again in ") == 1, "seven faults at the same time are told once"


def test_answers_that_are_poor_ones(ask: Any, chat_server: Any, tmp_path: Path) -> None:
    """A refusal, a cut and an empty answer are what the model said: they are kept, and not asked for again."""
    steps = [
        lambda body: chat_server.answer("two"),
        lambda body: chat_server.answer("one, two, thr", finish_reason="length"),
        lambda body: chat_server.answer(" "),
        lambda body: chat_server.answer("", finish_reason="content_filter"),
        lambda body: (400, {}, {"error": {"message": "the image is too small"}}),
    ]
    chat_server.script = [*steps, *[lambda body: chat_server.answer("two")] * N]
    found = ask(at_once=1)
    answers = list(found.answers.values())
    assert answers[1] == Answer("one, two, thr", "length", 10)
    assert [answer.text for answer in answers[2:5]] == ["", "", ""] and answers[5].text == "two"
    (caution,) = found.cautions
    assert caution.startswith("big: 2 of 12 rows got no answer and count as it (row 3: refused: content_filter)")
    assert [row.get("problem") for row in stored(tmp_path)][3:6] == [
        "refused: content_filter",
        "evaluation.servers.big.base_url: the server answered 400 (the image is too small)",
        None,
    ]
    ask()
    assert len(chat_server.requests) == N


def test_a_model_that_changes_in_the_middle(ask: Any, chat_server: Any) -> None:
    chat_server.script = [echo(chat_server, "big-0528")] * 7 + [echo(chat_server, "big-0613")] * 5
    found = ask(at_once=1)
    host = chat_server.url.split("/")[2]
    assert found.origins == {f"big-0528 at {host}": 7, f"big-0613 at {host}": 5}
    assert found.cautions == [
        f"big: answered by more than one model (7 rows by big-0528 at {host}, 5 rows by big-0613 at {host}): its value "
        "is of a mixture"
    ]
    assert "asked for 'org/big'" in found.note and "cannot be checked from here" in found.note


def test_thoughts_are_told(ask: Any, chat_server: Any) -> None:
    chat_server.script = [chat_server.answer("<think>one, two</think>two")] * 3
    (caution,) = ask().cautions
    assert caution.startswith("big: 3 of 12 answers begin with <think>, and are scored with it")


def test_cost(ask: Any, chat_server: Any) -> None:
    found = ask(price_per_million_input_tokens=2.0, price_per_million_output_tokens=10.0)
    assert found.tokens == (1200, 120) and found.cost == pytest.approx(0.0036)
    assert "1200 + 120 tokens, cost 0.0036" in found.note and found.to_dict()["cost"] == pytest.approx(0.0036)


def test_too_many_unanswered(ask: Any, chat_server: Any, tmp_path: Path) -> None:
    """One of twelve is too many to be counted as wrong; the others are not asked again."""

    def step(body: Any) -> Any:
        return (500, {}, b"oops") if said(body) == "question 4?" else echo(chat_server)(body)

    chat_server.script = [step] * 40
    with pytest.raises(ConfigError, match=r"1 of 12 rows were not answered by 127\.0\.0\.1"):
        ask(max_retries=1)
    assert len(stored(tmp_path)) == N - 1 and len(chat_server.requests) == N + 1
    chat_server.script, chat_server.requests = [echo(chat_server)] * 3, []
    found = ask(max_retries=1)
    assert [said(request) for request in chat_server.requests] == ["question 4?"]
    assert found.stored == N - 1 and found.answers["row 4"].text == "QUESTION 4?"


def test_few_unanswered_count_as_wrong(ask: Any, chat_server: Any) -> None:
    questions = [dataclasses.replace(QUESTIONS[i % N], id=f"row {i}") for i in range(100)]
    down = iter([(500, {}, b"oops")])
    chat_server.script = [lambda body: next(down, None) or echo(chat_server)(body)] * 101
    found = ask(questions, max_retries=0, at_once=1)
    assert found.unanswered == ["row 0"] and found.answers["row 0"] == Answer("", "stop", 0)
    assert found.cautions == [
        "big: 1 of 100 rows were not answered by the server and count as wrong (first: row 0); the same command asks "
        "for them again"
    ]


def test_a_server_that_is_down_is_soon_left_alone(ask: Any, chat_server: Any) -> None:
    chat_server.script = [(500, {}, b"oops")] * 100
    with pytest.raises(ConfigError, match=r"500 \(oops\), 2 times, for 3 questions in a row"):
        ask(max_retries=1, at_once=1)
    assert len(chat_server.requests) == 6


def test_an_interruption_keeps_what_is_under_way(ask: Any, chat_server: Any, tmp_path: Path) -> None:
    def poll() -> None:
        if len(chat_server.requests) >= 4:
            raise KeyboardInterrupt

    chat_server.script = [echo(chat_server)] * N
    with pytest.raises(KeyboardInterrupt):
        ask(poll=poll)
    assert 4 <= len(stored(tmp_path)) == len(chat_server.requests) < N, "what was asked, and may be paid, is kept"
    chat_server.script = [echo(chat_server)] * N
    assert len(ask().answers) == len(chat_server.requests) == N


def test_a_kill(ask: Any, chat_server: Any, tmp_path: Path) -> None:
    """SIGKILL in the middle: no answer that was on disk is asked for again, none is lost or there twice."""

    def slowly(body: Any) -> Any:
        time.sleep(0.05)
        return echo(chat_server)(body)

    chat_server.script = [slowly] * 3 * N
    process = multiprocessing.get_context("fork").Process(target=ask)
    process.start()
    path, until = tmp_path / "predictions/big.jsonl", time.monotonic() + 30
    while (not path.exists() or len(path.read_bytes().splitlines()) < 4) and time.monotonic() < until:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {row["id"] for row in stored(tmp_path)}
    with path.open("ab") as file:
        file.write(b'{"id": "row 1", "text": "tor')
    time.sleep(0.3)
    chat_server.requests = []
    found = ask()
    assert 4 <= len(before) < N
    assert {f"row {said(request)[9:-1]}" for request in chat_server.requests} == {q.id for q in QUESTIONS} - before
    assert len(chat_server.requests) == N - len(before) == N - found.stored
    assert sorted(row["id"] for row in stored(tmp_path)) == sorted(question.id for question in QUESTIONS)


def test_answers_of_the_same_run_and_of_a_named_file(ask: Any, chat_server: Any, tmp_path: Path) -> None:
    """An evaluation after training finds what the training's own one has paid for."""
    chat_server.script = [echo(chat_server)] * 100
    run = tmp_path / "run"
    ask(folder=run)
    assert len(chat_server.requests) == N
    later = ask(folder=run / "evaluations/test")
    assert len(chat_server.requests) == N and later.stored == N
    assert stored(run / "evaluations/test") == stored(run)
    ask(folder=run / "evaluations/again", fresh=True)
    assert len(chat_server.requests) == 2 * N
    ask(folder=run / "evaluations/longer", max_new_tokens=20)
    assert len(chat_server.requests) == 3 * N, "another length is another answer"
    other = [dataclasses.replace(QUESTIONS[0], prompt=QUESTIONS[1].prompt), *QUESTIONS[1:]]
    ask(other, folder=tmp_path / "other", answers=str(run / "predictions/big.jsonl"))
    assert [said(request) for request in chat_server.requests[3 * N :]] == ["question 1?"]
    with pytest.raises(ConfigError, match="was asked another question; set fresh=true"):
        ask(other, folder=run)
    with pytest.raises(ConfigError, match="answers of two kinds are never mixed"):
        ask(folder=run, model="org/other")


def test_what_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, sentence in (
        ({"model": None}, r"evaluation\.servers\.big\.model: Expected the name"),
        ({"base_url": "localhost:1"}, r"evaluation\.servers\.big\.base_url: Expected an address"),
        ({"base_url": "https://me:secret@h/v1"}, r"evaluation\.servers\.big\.base_url: Expected an address"),
        ({"base_url": None}, r"OPENAI_API_KEY: Expected the key for api\.openai\.com in this variable, got none"),
        ({"key_variable": "BIG_KEY"}, r"BIG_KEY: Expected the key for h in this variable, got none; set it"),
        ({"options": {"api_key": "s"}}, r"evaluation\.servers\.big\.options\.api_key: Expected no secret in settings"),
        ({"answers": "nowhere.jsonl"}, r"evaluation\.servers\.big\.answers: there is no file 'nowhere\.jsonl'"),
        ({"options": {"stream": True}}, r"evaluation\.servers\.big\.options: Expected none of model, messages"),
    ):
        config = ServerConfig(**{"model": "m", "base_url": "https://h/v1", **settings})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=sentence):
            connected("big", config)


@pytest.mark.parametrize("leaks", [False, True])
def test_the_canary_looks_at_requests(leaks: bool) -> None:
    """Also where a dataset writes the answer into the prompt, which a server is never asked about for this check."""

    def row(number: int, answer: str) -> Sample:
        question = QUESTIONS[number]
        hint = f" Hint: {answer}" if leaks else ""
        prompt = Prompt((*question.prompt.messages, Message("user", (f"Well?{hint}",))))
        return Sample(question.id, prompt, answer, (answer,))

    samples = [row(number, "two") for number in range(N)]
    rows = EvaluationRows(
        "test",
        [sample.id for sample in samples],
        samples,
        "exact_match",
        lambda row_id, answer: (row(int(row_id[4:]), answer), True),
        [],
        lambda row_id: samples[0],
        list,
        list,
        0,
    )
    config = ServerConfig(model="m")
    found = canary_on_requests(rows, samples, 5, lambda shown: [Question(s.id, s.prompt) for s in shown], config)
    assert found is not None and (found.n, found.in_source, found.ok) == (5, 5, not leaks)
    assert len(found.exposed) == (5 if leaks else 0) and found.moved == ()
    assert ("LEAK" in found.sentence) == leaks and "no prediction" not in found.sentence


def test_boxes_are_asked_for_and_read_in_coordinates_that_are_told(ask: Any, chat_server: Any) -> None:
    """Nobody knows whose convention a server has: 0 to 1000 is told, and read back into the picture's 9 x 6 pixels."""
    prompt = Prompt((Message("user", (scene(0), "Where is it?")),), "boxes")
    chat_server.script = [chat_server.answer('```json\n[{"bbox_2d": [0, 500, 1000, 1000], "label": "it"}]\n```')]
    served = ask(questions=[Question("row 0", prompt)])
    assert served.answers["row 0"].text == '[{"pixels": [0, 3, 9, 6], "label": "it"}]'
    assert served.answers["row 0"].raw.startswith("```json")
    (request,) = chat_server.requests
    assert "0 to 1000 across and down" in json.dumps(request)
