"""A server beside the tuned model: whole runs of train.py and evaluate.py with one more arm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import ChatServer, Run, serving_chat
from vlmft.config.check import ConfigError
from vlmft.run.start import require_evaluation, require_training

N = 24
ALONE = ("model=tiny_qwen2vl", "data=shapes", f"data.limit_test={N}", "evaluation.rows_per_batch=8")


def big(server: ChatServer, name: str = "big", **settings: Any) -> str:
    more = "".join(f", {key}: {value}" for key, value in settings.items())
    return f"evaluation.servers.{name}={{base_url: {server.url}, model: org/big{more}}}"


def two(server: ChatServer) -> Callable[[Any], Any]:
    return lambda body: server.answer("2")


@pytest.fixture(scope="module")
def asked(chat_server_of_module: ChatServer, train_small: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose table has a server. Not to be changed."""
    server = chat_server_of_module
    server.script = [two(server)] * N
    root = tmp_path_factory.mktemp("servers")
    run: Run = train_small(root, "name=asked", "trainer.max_epochs=1", big(server))
    return run


@pytest.fixture(scope="module")
def chat_server_of_module() -> Iterator[ChatServer]:
    with serving_chat() as server:
        yield server


def test_one_more_arm(asked: Run, chat_server_of_module: ChatServer) -> None:
    server, summary = chat_server_of_module, asked.summary
    host = server.url.split("/")[2]
    assert [arm["arm"] for arm in summary["arms"]] == ["untuned", "tuned", "big"]
    assert summary["arms"][2]["answered_by"].startswith(f"served-1 at {host}, 20")
    assert summary["arms"][2]["top_answer"] == "2" and summary["arms"][0]["answered_by"] == ""
    pairs = [(one["first"], one["second"]) for one in summary["comparisons"]]
    assert pairs == [("untuned", "tuned"), ("untuned", "big"), ("tuned", "big")]
    found = summary["servers"]["big"]
    assert found["rows_by_origin"] == {f"served-1 at {host}": N} and found["asked_for"] == "org/big"
    assert found["leak_canary"]["n"] == 4 and found["leak_canary"]["ok"] and not found["leak_canary"]["asked"]
    note = f"big: {N} answers of served-1 at {host}, asked for 'org/big' (20"
    assert [one for one in summary["notes"] if one.startswith(note)]
    rows = [json.loads(line) for line in asked.predictions("big").splitlines()]
    ours = [json.loads(line) for line in asked.predictions("tuned").splitlines()]
    prompts = {row["id"]: (row["prompt_sha256"], row["image_sha256"]) for row in ours}
    assert {row["id"]: (row["prompt_sha256"], row["image_sha256"]) for row in rows} == prompts, "the same rows"
    assert not {"adapter_sha256", "fingerprint_sha256", "numerics"} & set(rows[0]), "nothing that nobody knows"
    longest = {request["max_tokens"] for request in server.requests}
    assert len(server.requests) == N and longest == {ours[0]["generation"]["max_new_tokens"] + 1}
    assert f"note: {note}" in asked.output and "tuned -> big" in asked.output.replace("\u2192", "->")
    assert f"big, served-1 at {host}" not in asked.output, "the table has no room for it"
    page = (asked.folder / "report.html").read_text(encoding="utf-8")
    assert (
        f"served-1 at {host}" in page and "cannot be checked from here" in page and "leak canary of big" in page.lower()
    )


def test_an_evaluation_of_the_run_asks_nobody_twice(
    asked: Run, chat_server_of_module: ChatServer, evaluate_small: Any
) -> None:
    server = chat_server_of_module
    server.requests = []
    again = evaluate_small(f"run={asked.folder}", big(server))
    assert server.requests == [] and again.predictions("big") == asked.predictions("big")
    assert [arm["value"] for arm in again.summary["arms"]] == [arm["value"] for arm in asked.summary["arms"]]
    without = evaluate_small(f"run={asked.folder}", "split=val")
    assert [arm["arm"] for arm in without.summary["arms"]] == ["untuned", "tuned"], (
        "a stored run's servers are not asked"
    )
    assert server.requests == []


def test_a_server_that_is_down_costs_nothing_else(
    asked: Run, evaluate_small: Any, chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmft.servers.chat_client.random.uniform", lambda low, high: 0.0)
    chat_server.script = [two(chat_server)] * 5 + [(401, {}, b"who are you?")]
    found = evaluate_small(f"run={asked.folder}", big(chat_server, "other", at_once=1))
    assert [arm["arm"] for arm in found.summary["arms"]] == ["untuned", "tuned"]
    first = found.summary["notes"][0]
    assert first.startswith("other: not in this table: OPENAI_API_KEY: the server answered 401 (who are you?)")
    assert f"caution: {first}" in found.output
    chat_server.script, chat_server.requests = [two(chat_server)] * N, []
    found = evaluate_small(f"run={asked.folder}", big(chat_server, "other", at_once=1))
    assert len(chat_server.requests) == N - 5 and found.summary["arms"][2]["arm"] == "other"


@pytest.mark.slow
def test_a_server_alone(chat_server: ChatServer, evaluate_small: Any, tmp_path: Path) -> None:
    chat_server.script = [two(chat_server)] * 2 * N
    more = (f"output_root={tmp_path}", "evaluation.arms=[big,big@bare]", "evaluation.canary_rows=4")
    found = evaluate_small(*ALONE, *more, big(chat_server))
    assert [arm["arm"] for arm in found.summary["arms"]] == ["big"] and len(chat_server.requests) == N
    assert "big@bare: not run: the dataset's own prompt is the same" in found.summary["notes"]


def test_what_cannot_be_asked_is_said_at_once(compose: Any, compose_evaluate: Any) -> None:
    settings = "evaluation.servers.big={base_url: nowhere, model: m}"
    for check, config in (
        (require_training, compose("model=tiny_qwen2vl", "data=shapes", settings)),
        (require_evaluation, compose_evaluate("model=tiny_qwen2vl", "data=shapes", settings)),
    ):
        with pytest.raises(ConfigError, match=r"evaluation\.servers\.big\.base_url: Expected an address"):
            check(config)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["evaluation.servers.big.modle=m"], "evaluation.servers.big.modle: no such setting; did you mean 'model'?"),
        (
            ["evaluation.servers={big: {at_once: 0}}"],
            "evaluation.servers.big.at_once: Expected a whole number >= 1, got 0",
        ),
        (["evaluation.servers.tuned={model: m}"], "evaluation.servers: Expected a name of letters"),
        (["evaluation.servers.big.model=m", "evaluation.arms=[big@vendor]"], "Expected @bare behind a server's name"),
        (["evaluation.arms=[untuned,big]"], "evaluation.arms: Expected one of untuned"),
    ],
)
def test_settings_of_servers(compose: Any, settings: list[str], sentence: str) -> None:
    from vlmft.config.entry import explained

    with pytest.raises(Exception) as error:
        compose(*settings)
    line = str(error.value) if isinstance(error.value, ConfigError) else explained(error.value)
    assert sentence in line


def test_settings_of_two_servers(compose: Any) -> None:
    """Given as a whole and one by one, each with what it was given."""
    config = compose(
        "evaluation.servers.big={base_url: http://localhost:8000/v1, model: org/big}",
        "evaluation.servers.small.model=m:1",
        "evaluation.servers.small.options={seed: 0, max_tokens: null}",
        "evaluation.servers.big.at_once=2",
    )
    big, small = config.evaluation.servers["big"], config.evaluation.servers["small"]
    assert (big.base_url, big.model, big.at_once) == ("http://localhost:8000/v1", "org/big", 2)
    assert (small.model, small.options, small.at_once) == ("m:1", {"seed": 0, "max_tokens": None}, 8)
