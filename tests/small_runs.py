"""Whole runs of the small random model, made once and looked at by many tests."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.run.build import Built, build, resolved
from vlmft.run.evaluate import evaluate
from vlmft.run.train import train
from vlmft.training.metrics_file import METRICS_FILE, read_metrics

SMALL = (
    "model=tiny_qwen2vl",
    "data=shapes",
    "data.options.train_rows=2000",
    "data.limit_train=32",
    "data.limit_val=16",
    "data.limit_test=24",
    "train.rows_per_step=8",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "evaluation.rows_per_batch=8",
    "evaluation.canary_rows=4",
    "evaluation.arms=[untuned,tuned]",
    "logger=none",
    "cache.answers=false",  # else runs would not answer what others have answered
)
TRAINING_ALONE = ("preflight=false", "test=false", "model.quantization.mode=none", "data.max_new_tokens=1")


@dataclasses.dataclass
class Run:
    """A folder, and what was printed while it came about."""

    folder: Path
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text(encoding="utf-8")))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / METRICS_FILE)

    def steps(self, key: str) -> list[int]:
        """Steps at which a value was logged."""
        return [line["step"] for line in self.metrics if key in line]

    def predictions(self, arm: str) -> bytes:
        return (self.folder / "predictions" / f"{arm}.jsonl").read_bytes()


def called(action: Callable[[], Path]) -> Run:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        folder = action()
    return Run(folder, output.getvalue())


@pytest.fixture(scope="session")
def train_small(compose: Callable[..., TrainConfig]) -> Callable[..., Run]:
    """train_small(root, "key=value", ...): a run of some seconds."""

    def trained(root: Path, *overrides: str) -> Run:
        config = compose(*SMALL, f"output_root={root}", *overrides)
        return called(lambda: train(config))

    return trained


@pytest.fixture
def fit_small(train_small: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """fit_small("key=value", ...): training alone, without preflight and test."""
    return lambda *overrides: train_small(tmp_path, *TRAINING_ALONE, *overrides)


@pytest.fixture(scope="session")
def evaluate_small(compose_evaluate: Callable[..., EvaluateConfig]) -> Callable[..., Run]:
    """evaluate_small("run=...", ...): what evaluate.py does."""

    def evaluated(*overrides: str) -> Run:
        config = compose_evaluate("evaluation.arms=[untuned,tuned]", "cache.answers=false", *overrides)
        return called(lambda: evaluate(config))

    return evaluated


@pytest.fixture(scope="session")
def trained(train_small: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that most tests look at, with all three arms. Not to be changed; copy it."""
    root = tmp_path_factory.mktemp("runs")
    return train_small(root, "name=standard", "evaluation.arms=[untuned,tuned,blank]")


@pytest.fixture(scope="session")
def make_built(compose: Callable[..., TrainConfig]) -> Callable[..., tuple[TrainConfig, Built]]:
    """make_built("key=value", ...) -> (config, what a run works with), as if newly built: a model is made only once."""
    made: dict[tuple[str, ...], tuple[Built, dict[str, torch.Tensor], list[bool]]] = {}
    composed = functools.cache(compose)

    def built_for(*overrides: str) -> tuple[TrainConfig, Built]:
        config = copy.deepcopy(resolved(composed(*SMALL, *overrides)).config)
        key = tuple(override for override in overrides if override.startswith("model"))
        if key not in made:
            found = build(config.model, config.data, config.trainer, seed=config.seed)
            state = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
            made[key] = found, state, [parameter.requires_grad for parameter in found.model.parameters()]
        found, state, flags = made[key]
        for name, tensor in found.model.state_dict().items():  # not load_state_dict: 4-bit weights do not take it
            tensor.copy_(state[name])
        for parameter, flag in zip(found.model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        found.model.zero_grad(set_to_none=True)
        found.model.eval()
        ledger = Ledger(None, config.data.on_bad_row, config.data.bad_row_ceiling)
        dataset, rows = make_dataset(config.data), config.train.rows_per_step
        data = VLMDataModule(dataset, config.data, found.family.encode, ledger, rows, config.seed)
        return config, dataclasses.replace(found, data=data)

    return built_for


class ChatServer(socketserver.ThreadingTCPServer):
    """Speaks /v1/chat/completions, and fails by script. Not http.server's, which asks the network for its name.

    Each request takes the next step of `script`: "hang", "reset", bytes or JSON (sent with 200), (status, headers,
    bytes or JSON), or a function that makes one of these of the request's body. After the last one the answers are
    "caption 1", "caption 2", ..., numbered by request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.script: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        """Bodies as they came, each with its path and headers."""
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def texts(self) -> list[str]:
        """What was asked, in words."""
        contents = [request["messages"][0]["content"] for request in self.requests]
        return [content if isinstance(content, str) else content[-1]["text"] for content in contents]

    def answer(self, text: Any, finish_reason: str = "stop", message: Any = None) -> dict[str, Any]:
        """The body of a reply; `message` stands in for the usual one around `text`."""
        said = message if message is not None else {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return {"model": "served-1", "choices": [{"message": said, "finish_reason": finish_reason}], "usage": usage}


class ChatHandler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append({**body, "path": self.path, "headers": dict(self.headers)})
        step = server.script.pop(0) if server.script else server.answer(f"caption {len(server.requests)}")
        step = step(body) if callable(step) else step
        if step == "hang":
            server.over.wait(60)
        elif step == "reset":  # closed with data unsent in no time: the other side sees a reset, not an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self._send(*(step if isinstance(step, tuple) else (200, {}, step)))

    def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Says nothing."""


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server on this computer, for whoever asks a model behind one; no key is set."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving_chat() as server:
        yield server


@contextlib.contextmanager
def serving_chat() -> Iterator[ChatServer]:
    with ChatServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def json_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """json_of(run_score, "file.csv", "--metric", "exact_match"): what the tool prints under --json."""

    def run(tool: Callable[[Sequence[str]], None], *arguments: object) -> dict[str, Any]:
        tool([*map(str, arguments), "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run
