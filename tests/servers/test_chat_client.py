"""Asking a server that fails by script: what is tried again, what ends with a line, what is one question's fault."""

from __future__ import annotations

import base64
import io
import sys
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.chat_schema import ChatConfig
from vlmft.config.check import ConfigError
from vlmft.labels.gigachat_client import GigaChat
from vlmft.sample import Image
from vlmft.servers.chat_client import (
    MAX_SIDE_PIXELS,
    GaveUpError,
    OpenAIChat,
    Patient,
    Reply,
    UnaskableError,
    is_loopback,
    jpeg,
    reply_of,
    retry_after,
)

KEY = "canary-key-of-no-known-form"
PICTURE = b"\xff\xd8 not looked into"


class Asking:
    """A patient client of a server, with the waits that it would have made."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.waits: list[float] = []
        self.said: list[str] = []
        self.seconds = 0.0
        config = ChatConfig(model="asked", base_url=url, **settings)
        client = OpenAIChat(config, "chat")
        self.patient = Patient(client, config, self.said.append, self.sleep, lambda: self.seconds)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds

    def __call__(self, *images: bytes) -> Reply:
        return self.patient(images, "What is it?")


def test_what_a_server_gets(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    reply = Asking(chat_server.url + "/")(PICTURE)
    assert reply == Reply("caption 1", "served-1", 100, 10)
    (request,) = chat_server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("asked", 400, 0.0)
    picture, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) == PICTURE
    monkeypatch.delenv("OPENAI_API_KEY")
    Asking(chat_server.url, max_new_tokens=None, temperature=None)()
    assert not {"max_tokens", "temperature"} & chat_server.requests[1].keys()
    assert "Authorization" not in chat_server.requests[1]["headers"]
    assert chat_server.requests[1]["messages"] == [{"role": "user", "content": "What is it?"}]


def test_a_proxy_is_not_trusted_with_this_computer(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert Asking(chat_server.url, max_retries=0)().text == "caption 1"
    hosts = {"127.0.0.1": True, "127.9.9.9": True, "::1": True, "localhost": True, "10.0.0.1": False}
    assert {host: is_loopback(host) for host in (*hosts, "localhost.evil.org")} == {
        **hosts,
        "localhost.evil.org": False,
    }


# --- what passes


def test_retry_after_is_kept(chat_server: Any) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    chat_server.script = [(429, {"Retry-After": "17"}, {}), (503, {"retry-after": date}, b"busy")]
    asking = Asking(chat_server.url)
    assert asking().text == "caption 3"
    assert 17 <= asking.waits[0] <= 18 and 88 <= asking.waits[1] <= 91
    assert "429" in asking.said[0] and "busy" in asking.said[1]


def test_500_twice_then_fine(chat_server: Any) -> None:
    chat_server.script = [(500, {}, {"error": {"message": "oops"}})] * 2
    asking = Asking(chat_server.url)
    assert asking().text == "caption 3" and len(chat_server.requests) == 3
    assert 0.5 <= asking.waits[0] <= 1 and 1 <= asking.waits[1] <= 2
    assert asking.said[0].startswith("the server answered 500 (oops); again in ")


def test_back_off_grows_and_has_jitter(chat_server: Any) -> None:
    seen = set()
    for _ in range(3):
        chat_server.script = [(502, {}, b"busy")] * 8
        asking = Asking(chat_server.url, max_retries=7)
        with pytest.raises(GaveUpError, match=r"502 \(busy\), 8 times"):
            asking()
        assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(asking.waits[:6]))
        assert len(asking.waits) == 7 and max(asking.waits) <= 60
        seen.add(asking.waits[3])
    assert len(seen) > 1


@pytest.mark.parametrize("fault", ["hang", "reset", (200, {"Content-Length": "9999"}, b"{")])
def test_a_lost_connection_is_tried_again(chat_server: Any, fault: Any) -> None:
    chat_server.script = [fault]
    asking = Asking(chat_server.url, timeout_seconds=0.3)
    assert asking().text == "caption 2" and len(asking.waits) == 1
    assert "no answer from 127.0.0.1" in asking.said[0]


def test_nobody_listens() -> None:
    asking = Asking("http://127.0.0.1:9/v1", max_retries=2)
    with pytest.raises(GaveUpError, match="refused"):
        asking()
    assert len(asking.waits) == 2


def test_who_wants_too_long_a_wait_gets_none(chat_server: Any) -> None:
    chat_server.script = [(429, {"Retry-After": "86400"}, {})]
    asking = Asking(chat_server.url)
    with pytest.raises(ConfigError, match=r"left alone for 8640[01] s"):
        asking()
    assert asking.waits == []


@pytest.mark.parametrize(("said", "seconds"), [("3", 3.0), ("", None), ("soon", None), ("-1", None), ("1e9", None)])
def test_retry_after_of_any_kind(said: str, seconds: float | None) -> None:
    assert retry_after({"retry-AFTER": said}) == seconds


def test_requests_a_minute(chat_server: Any) -> None:
    asking = Asking(chat_server.url, requests_per_minute=30)
    for _ in range(3):
        asking()
    assert asking.waits == [2.0, 2.0]
    asking.seconds += 60
    asking()
    assert len(asking.waits) == 2


# --- what does not pass


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (
            (400, {}, {"error": {"message": "no such field"}}),
            r"chat\.base_url: the server answered 400 \(no such field\)",
        ),
        ((401, {}, {"error": {"message": f"wrong key {KEY}"}}), "OPENAI_API_KEY: the server answered 401 .*is set"),
        ((403, {}, b""), "OPENAI_API_KEY: the server answered 403, and"),
        ((404, {}, {"detail": "Not Found"}), r"404 \(Not Found\); check this address and chat\.model"),
        ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), r"429 \(pay\)"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "the server answered 302"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_one_line_and_no_second_try(
    chat_server: Any, step: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chat_server.script = [step]
    asking = Asking(chat_server.url)
    with pytest.raises((ConfigError, UnaskableError), match=sentence) as error:
        asking()
    assert len(chat_server.requests) == 1 and asking.waits == []
    assert KEY not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["localhost:8000/v1", "ftp://h/v1", "http://", "http://h:port/v1", "http://[::1/v1", "http://a b/v1"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match=r"chat\.base_url: Expected an address such as https://"):
        Asking(address)


def test_a_key_goes_nowhere_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    Asking("http://10.0.0.1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConfigError, match=r"chat\.base_url: Expected https://") as error:
        Asking("http://10.0.0.1/v1")
    assert KEY not in str(error.value)
    Asking("https://10.0.0.1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "ключ")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: Expected a key of plain characters, got others"):
        Asking("https://10.0.0.1/v1")


# --- what is the fault of one question


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (lambda server: server.answer(None, finish_reason="content_filter"), "refused: content_filter"),
        (lambda server: server.answer("", message={"content": None, "refusal": "I will not"}), "refused: I will not"),
        (lambda server: server.answer("  \n"), "an empty answer"),
        (lambda server: server.answer([{"text": "x"}]), "an empty answer"),
        (lambda server: server.answer("a long st", finish_reason="length"), "an answer that was cut at max_new_tokens"),
        (lambda server: b"<html>login</html>", "junk instead of an answer: <html>login</html>"),
        (lambda server: {"choices": []}, 'junk instead of an answer: {"choices": []}'),
        (lambda server: [1], "junk instead of an answer: [1]"),
        (lambda server: {"error": "sorry"}, 'junk instead of an answer: {"error": "sorry"}'),
        (lambda server: (413, {}, {"error": "too large"}), "refused: too large"),
        (lambda server: (400, {}, {"error": {"message": "policy", "code": "content_filter"}}), "refused: policy"),
    ],
)
def test_a_reply_that_is_no_answer(chat_server: Any, step: Callable[[Any], Any], problem: str) -> None:
    chat_server.script = [step(chat_server)]
    asking = Asking(chat_server.url)
    reply = asking()
    assert (reply.problem, asking.waits) == (problem, [])
    assert reply.text == ("a long st" if reply.fault == "cut" else "")
    assert reply.fault and reply.fault in problem.replace("an answer that was ", "")


def test_half_a_surrogate_pair_can_be_stored() -> None:
    data = b'{"model": "m", "choices": [{"message": {"content": "a \\ud83d b"}, "finish_reason": "stop"}]}'
    assert reply_of(data).text == "a ? b"


def test_images_are_made_small() -> None:
    picture = PIL.Image.fromarray(np.zeros((MAX_SIDE_PIXELS // 4, MAX_SIDE_PIXELS * 2, 3), np.uint8))
    sent = PIL.Image.open(io.BytesIO(jpeg(Image(lambda: picture, "wide"))))
    assert (sent.format, sent.size) == ("JPEG", (MAX_SIDE_PIXELS, MAX_SIDE_PIXELS // 8))


# --- gigachat


class FakeGigaChat(types.ModuleType):
    """The package `gigachat` as far as it is used, with the signatures of its 0.2 (client.py, exceptions.py, and the
    models UploadedFile, ChatCompletion, Choices, Usage)."""

    def __init__(self) -> None:
        super().__init__("gigachat")
        self.script: list[Any] = []
        self.uploaded: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.payloads: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        fake = self

        class ResponseError(Exception):
            def __init__(self, url: str, status_code: int, content: bytes | None, headers: Any) -> None:
                super().__init__(f"{status_code} {url}")
                self.url, self.status_code, self.content, self.headers = url, status_code, content, headers

        class Client:
            def __init__(
                self,
                *,
                base_url: str | None = None,
                model: str | None = None,
                timeout: float | None = None,
                max_retries: int | None = None,
            ) -> None:
                fake.settings = {"base_url": base_url, "model": model, "timeout": timeout, "max_retries": max_retries}

            def upload_file(self, file: tuple[str, bytes, str], purpose: str = "general") -> Any:
                name, data, kind = file
                assert (name, kind, purpose) == ("image.jpg", "image/jpeg", "general")
                fake.uploaded[f"file-{len(fake.uploaded)}"] = data
                return types.SimpleNamespace(id_=list(fake.uploaded)[-1])

            def chat(self, payload: dict[str, Any]) -> Any:
                fake.payloads.append(payload)
                step = fake.script.pop(0) if fake.script else ("Крокодил Гена.", "stop")
                if isinstance(step, Exception):
                    raise step
                message = types.SimpleNamespace(content=step[0])
                choice = types.SimpleNamespace(message=message, finish_reason=step[1])
                usage = types.SimpleNamespace(prompt_tokens=50, completion_tokens=5)
                return types.SimpleNamespace(choices=[choice], model="GigaChat-2-Pro:2.0.28.2", usage=usage)

            def delete_file(self, file: str) -> None:
                fake.deleted.append(file)

        self.GigaChat = Client
        self.exceptions = types.ModuleType("gigachat.exceptions")
        self.exceptions.ResponseError = ResponseError  # type: ignore[attr-defined]
        self.error = lambda status, content=b"", **headers: ResponseError("https://giga", status, content, headers)


@pytest.fixture
def gigachat(monkeypatch: pytest.MonkeyPatch) -> FakeGigaChat:
    fake = FakeGigaChat()
    monkeypatch.setitem(sys.modules, "gigachat", fake)
    monkeypatch.setitem(sys.modules, "gigachat.exceptions", fake.exceptions)
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", KEY)
    return fake


def test_gigachat_uploads_asks_and_deletes(gigachat: FakeGigaChat) -> None:
    reply = GigaChat(ChatConfig())([PICTURE], "Кто это?")
    assert reply == Reply("Крокодил Гена.", "GigaChat-2-Pro:2.0.28.2", 50, 5)
    assert gigachat.uploaded == {"file-0": PICTURE} and gigachat.deleted == ["file-0"]
    message = {"role": "user", "content": "Кто это?", "attachments": ["file-0"]}
    assert gigachat.payloads == [{"messages": [message], "max_tokens": 400, "temperature": 0.0}]
    assert gigachat.settings == {"base_url": None, "model": "GigaChat-2-Pro", "timeout": 60.0, "max_retries": 0}


def test_gigachat_s_failures(gigachat: FakeGigaChat) -> None:
    httpx = pytest.importorskip("httpx")
    waits: list[float] = []
    config = ChatConfig(max_retries=3)
    patient = Patient(GigaChat(config), config, lambda line: None, waits.append)
    gigachat.script = [gigachat.error(429, **{"retry-after": "7"}), httpx.ReadTimeout("slow"), gigachat.error(500)]
    assert patient([PICTURE], "Кто это?").text == "Крокодил Гена."
    assert 7 <= waits[0] <= 8 and len(waits) == 3
    assert len(gigachat.deleted) == len(gigachat.uploaded) == 4, "no picture stays there"
    gigachat.script = [("Не люблю менять тему разговора", "blacklist")]
    refused = patient([PICTURE], "Кто это?")
    assert (refused.problem, refused.text, refused.input_tokens) == ("refused: blacklist", "", 50)
    gigachat.script = [ValueError("no JSON")]
    assert patient([], "Кто это?").problem == "junk instead of an answer: no JSON"
    gigachat.script = [gigachat.error(401, f'{{"message": "bad {KEY}"}}'.encode())]
    with pytest.raises(ConfigError, match="GIGACHAT_CREDENTIALS: the server answered 401") as error:
        patient([], "Кто это?")
    assert KEY not in str(error.value)
    gigachat.script = [httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in chain")]
    with pytest.raises(ConfigError, match="GIGACHAT_CA_BUNDLE_FILE: the server's certificate is not trusted"):
        patient([], "Кто это?")


def test_gigachat_says_what_is_missing(gigachat: FakeGigaChat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIGACHAT_CREDENTIALS")
    with pytest.raises(ConfigError, match="GIGACHAT_CREDENTIALS: Expected GigaChat's authorisation key"):
        GigaChat(ChatConfig())
    monkeypatch.setitem(sys.modules, "gigachat", None)
    with pytest.raises(ConfigError, match=r"annotator: gigachat needs .*; pip install 'vlmft\[gigachat\]'"):
        GigaChat(ChatConfig())
