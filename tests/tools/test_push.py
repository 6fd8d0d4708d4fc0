"""vlmft export push=NAME/MODEL: what is sent where, and each failure in one line with the export left whole."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import ExportConfig
from vlmft.config.tools import compose_tool
from vlmft.tools import export as exporting
from vlmft.tools.settings import given

TOKEN = "hf_" + "a1B2" * 8


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files meets."""

    seen: list[tuple[str, dict[str, Any] | list[dict[str, Any]], str]]
    refusal: int | None
    known: str | None
    """private or public, of a repository that is there."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = [json.loads(line) for line in body.splitlines()]
        self.seen.append((self.path, lines if "commit" in self.path else lines[0], self.headers["Authorization"]))
        if self.refusal is not None:
            self.answer(self.refusal, {"error": f"no right to create this; {TOKEN} was given"})
        elif self.path.endswith("/create"):
            self.answer(200, {"url": f"https://huggingface.co/{lines[0]['organization']}/{lines[0]['name']}"})
        elif "preupload" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]
            self.answer(200, {"files": files})
        else:
            self.answer(
                200, {"commitUrl": "https://huggingface.co/me/model/commit/1", "commitOid": "1" * 40, "success": True}
            )

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/") and self.known is not None:
            self.answer(200, {"id": "me/model", "private": self.known == "private"})
        else:
            self.answer(404, {"error": "not found"}, "RepoNotFound")

    def answer(self, status: int, value: dict[str, Any], code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A Hub on this machine; HfApi is the real one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    handler = type("Here", (Hub,), {"seen": [], "refusal": None, "known": None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(exporting, "HfApi", functools.partial(HfApi, endpoint=address))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def adapter(trained: Any, tmp_path: Path) -> Path:
    """A run with an adapter that is quick to export."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


def exported(run: Path, to: Path, *more: str) -> Path:
    overrides = [f"run={run}", f"to={to}", "form=adapter", *more]
    return exporting.export(compose_tool("export", ExportConfig, overrides))


@pytest.mark.parametrize("public", [False, True])
def test_what_is_uploaded(
    hub: type[Hub], adapter: Path, tmp_path: Path, public: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Private unless set otherwise, under the token of the environment, every file of the folder."""
    to = exported(adapter, tmp_path / "to", "push=me/model", f"public={str(public).lower()}")
    (create, made, token), *_, (commit, lines, _) = hub.seen
    assert create == "/api/repos/create" and "/api/models/me/model/commit/main" in commit
    assert isinstance(made, dict) and isinstance(lines, list)
    assert (made["organization"], made["name"]) == ("me", "model") and token == f"Bearer {TOKEN}"
    assert made.get("private", made.get("visibility")) in ((False, "public") if public else (True, "private"))
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert sent == {str(file.relative_to(to)) for file in to.rglob("*") if file.is_file()} >= {"README.md"}
    assert "me/model" in capsys.readouterr().out.splitlines()[-1]


def test_nothing_goes_into_a_public_repository_unasked(hub: type[Hub], adapter: Path, tmp_path: Path) -> None:
    hub.known = "public"
    with pytest.raises(ConfigError, match="push: me/model is public already; say public=true, or name another"):
        exported(adapter, tmp_path / "to", "push=me/model")
    assert hub.seen == [] and (tmp_path / "to" / "README.md").is_file()
    hub.known = "private"
    exported(adapter, tmp_path / "more", "push=me/model")
    assert "/commit/main" in hub.seen[-1][0]


@pytest.mark.parametrize("refusal", [401, 403, 500, None])
def test_failures_are_one_line_and_the_export_stays(
    hub: type[Hub], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """No right, a broken Hub, and none at all: the token that the Hub repeats is not said."""
    hub.refusal = refusal
    if refusal is None:
        monkeypatch.setattr(exporting, "HfApi", functools.partial(HfApi, endpoint="http://127.0.0.1:9"))
    with pytest.raises(ConfigError) as refused:
        exported(adapter, tmp_path / "to", "push=me/model")
    said = str(refused.value)
    assert said.startswith("push: me/model could not be uploaded (") and "\n" not in said and TOKEN not in said
    assert f"`hf upload me/model {tmp_path / 'to'} --private` sends it later" in said
    assert (tmp_path / "to" / "adapter_model.safetensors").is_file() and (tmp_path / "to" / "README.md").is_file()


def test_no_token_is_reported_before_anything_is_made(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="push: there is no token for the Hub; set HF_TOKEN"):
        exported(adapter, tmp_path / "to", "push=me/model")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("push=model", "push: Expected a Hub repository as NAME/MODEL, got 'model'"),
        ("push=https://huggingface.co/me/model", "push: Expected a Hub repository as NAME/MODEL, got 'https"),
        ("public=true", "public: nothing is pushed; give push=NAME/MODEL"),
    ],
)
def test_names(adapter: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        exported(adapter, tmp_path / "to", override)
    assert str(refused.value).startswith(said)


def test_as_a_flag() -> None:
    arguments = ["run=x", "--push", "me/model", "--json"]
    assert given(arguments, ExportConfig).overrides == ["run=x", "push=me/model", "json=true"]
