"""Asking a model behind a server: one question, one `Reply`; patience with what passes, a line for what does not."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from vlmft.config.chat_schema import ChatConfig, ServerConfig
from vlmft.config.check import ConfigError
from vlmft.config.secrets import names_secret, redacted_text
from vlmft.sample import Image

OPENAI_URL, OPENAI_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
OURS = ("model", "messages", "stream", "n")
"""Fields of a request that `options` cannot have."""
MAX_SIDE_PIXELS, JPEG_QUALITY = 2048, 95
MAX_REPLY_BYTES = 16 << 20
LONGEST_WAIT_SECONDS = 600.0
"""A server that wants a longer one, such as until tomorrow, is not waited for."""
REFUSALS = ("content_filter", "blacklist", "content_policy_violation")
"""OpenAI's and its like, GigaChat's; the last as the code of a 400."""


@dataclass(frozen=True)
class Reply:
    """What came back for one question."""

    text: str
    """"" where there is a problem, but for an answer that was cut."""
    model: str = ""
    """The name that the server gives its model: often more exact than the one asked for."""
    input_tokens: int = 0
    output_tokens: int = 0
    """0 where the server does not say."""
    problem: str | None = None
    """Why `text` is no answer; other questions may still get one."""
    fault: Literal["", "refused", "empty", "cut", "junk"] = ""
    """The kind of `problem`."""


class Annotator(Protocol):
    """Something that answers questions about images.

    Raises:
        PassingError: another try may help.
        ConfigError: no question can be answered, such as under a wrong key.
    """

    def __call__(self, images: Sequence[bytes], prompt: str) -> Reply:
        """`images` are encoded files, see `jpeg`."""


class PassingError(Exception):
    """A fault that may pass: too many requests, a server in trouble, a timeout, a lost connection."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """What the server asks for."""


class GaveUpError(Exception):
    """The fault did not pass."""


class UnaskableError(RuntimeError):
    """The server refuses this question as it is; perhaps every other, too."""


def jpeg(image: Image) -> bytes:
    """The image under the one policy of `vlmft/data/images.py`, of at most MAX_SIDE_PIXELS; raises BadRowError."""
    picture = image.load()
    picture.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


@dataclass
class Patient:
    """Tries again with exponential back-off and jitter, and keeps to the number of requests a minute."""

    annotator: Annotator
    config: ChatConfig
    say: Callable[[str], None]
    sleep: Callable[[float], object] | None = None
    """None: until `stopping` is set, at most."""
    now: Callable[[], float] = time.monotonic
    stopping: threading.Event = field(default_factory=threading.Event)
    """Once it is set, nothing is tried any more."""
    next_request: float = field(default=0.0, init=False)
    turn: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __call__(self, images: Sequence[bytes], prompt: str) -> Reply:
        """As the annotator's own; raises GaveUpError for what did not pass."""
        return self.tried(lambda: self.annotator(images, prompt))

    def tried(self, ask: Callable[[], Reply]) -> Reply:
        """What `ask` gets at last, from several threads, too; raises as it does, and GaveUpError."""
        for attempt in range(self.config.max_retries + 1):
            self._keep_the_rate()
            if self.stopping.is_set():
                raise GaveUpError("asked to stop")
            try:
                return ask()
            except PassingError as error:
                if attempt == self.config.max_retries:
                    raise GaveUpError(f"{error}, {attempt + 1} times") from error
                self._wait(error, attempt)
        raise AssertionError("max_retries is at least 0")

    def _wait(self, error: PassingError, attempt: int) -> None:
        back_off = min(60.0, 2.0**attempt) * random.uniform(0.5, 1.0)
        seconds = back_off if error.wait_seconds is None else error.wait_seconds + random.uniform(0.0, 1.0)
        if seconds > LONGEST_WAIT_SECONDS:
            raise ConfigError(
                f"{error}; it asks to be left alone for {seconds:.0f} s; give the same command again then"
            )
        self.say(f"{error}; again in {seconds:.1f} s")
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        (self.sleep or self.stopping.wait)(seconds)

    def _keep_the_rate(self) -> None:
        if self.config.requests_per_minute is not None:
            with self.turn:
                now = self.now()
                seconds = self.next_request - now
                self.next_request = max(now, self.next_request) + 60.0 / self.config.requests_per_minute
            if seconds > 0:
                self._sleep(seconds)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Python would send the key along to whatever host it is pointed to."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class OpenAIChat:
    """A server's /chat/completions, see platform.openai.com/docs/api-reference/chat; vLLM and others have it."""

    def __init__(
        self, config: ChatConfig, section: str, key_variable: str = OPENAI_KEY, options: Mapping[str, Any] | None = None
    ) -> None:
        """`section`: the setting that holds `config`; `options`: more fields of each request, null leaves one out.

        Raises ConfigError for an address or a key that cannot be.
        """
        if config.model is None:
            raise ConfigError(f"{section}.model: Expected the name of the server's model, got none; set it")
        self.config, self.section, self.key_variable, self.options = config, section, key_variable, options or {}
        self.url = f"{(config.base_url or OPENAI_URL).rstrip('/')}/chat/completions"
        self.key = os.environ.get(key_variable, "").strip()
        try:
            parts = urlsplit(self.url)
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in self.url
            whole = whole and parts.username is None  # a key in an address would be stored with the settings
        except ValueError:  # brackets or a port that are none
            whole = False
        if not whole or not self.url.isprintable() or not self.url.isascii():
            raise ConfigError(f"{section}.base_url: Expected an address such as {OPENAI_URL}, got {config.base_url!r}")
        assert parts.hostname is not None
        near = is_loopback(parts.hostname)
        if self.key and parts.scheme == "http" and not near:
            raise ConfigError(
                f"{section}.base_url: Expected https://, got {config.base_url!r}: anyone on the way could read the key "
                f"in {key_variable}; use https, or unset the key where the server needs none"
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError(f"{key_variable}: Expected a key of plain characters, got others; copy it again")
        handlers: list[urllib.request.BaseHandler] = [NoRedirects()]
        if near:  # a proxy from the environment would get the images, and its "localhost" is another computer
            handlers.append(urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)

    def __call__(self, images: Sequence[bytes], prompt: str) -> Reply:
        content: Any = prompt
        if images:
            content = [*(picture(image, "jpeg") for image in images), {"type": "text", "text": prompt}]
        return self.answer([{"role": "user", "content": content}])

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> Reply:
        """To a conversation in the protocol's form; raises as `Annotator`."""
        limits = {"max_tokens": self.config.max_new_tokens, "temperature": self.config.temperature, **self.options}
        more = {name: value for name, value in limits.items() if value is not None}
        body = {"model": self.config.model, "messages": messages, **more}
        status, headers, data = self._post(json.dumps(body).encode())
        if status == 200:
            return reply_of(data)
        return failed(status, headers, data, f"{self.section}.base_url", f"{self.section}.model", self.key_variable)

    @property
    def host(self) -> str:
        """Name and port."""
        return urlsplit(self.url).netloc

    def _post(self, data: bytes) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data, headers)
        try:
            try:
                with self.opener.open(request, timeout=self.config.timeout_seconds) as response:
                    answer = response.read(MAX_REPLY_BYTES)
                    if response.length:  # of the announced bytes; a read that names a number does not mind
                        raise http.client.IncompleteRead(answer, response.length)
                    return response.status, dict(response.headers), answer
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, dict(error.headers), error.read(MAX_REPLY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ConfigError(
                    f"{self.section}.base_url: the server's certificate is not trusted ({reason.verify_message}); "
                    "SSL_CERT_FILE names the certificates that are"
                ) from error
            raise PassingError(f"no answer from {self.host} ({reason or type(reason).__name__})") from error


def connected(name: str, config: ServerConfig, max_new_tokens: int | None = None) -> OpenAIChat:
    """The client of a server; asks nothing yet. `max_new_tokens`: of the other arms, their end token included.

    Raises:
        ConfigError: no model, no such address, a key that is missing or cannot be, or an option that is not one.
    """
    section = f"evaluation.servers.{name}"
    if odd := [field for field in config.options if field in OURS]:
        raise ConfigError(f"{section}.options: Expected none of {', '.join(OURS)}, got {odd[0]}; leave it out")
    if odd := [field for field in config.options if names_secret(field)]:
        raise ConfigError(f"{section}.options.{odd[0]}: Expected no secret in settings; key_variable says where it is")
    if config.answers is not None and not Path(config.answers).expanduser().is_file():
        raise ConfigError(f"{section}.answers: there is no file {config.answers!r}; check it")
    if config.max_new_tokens is None and max_new_tokens is not None:
        # transformers serve calls an answer cut whose end token is the last that was allowed: one more for that
        config = replace(config, max_new_tokens=max_new_tokens + 1)
    chat = OpenAIChat(config, section, config.key_variable, config.options)
    if not chat.key and (config.base_url is None or config.key_variable != OPENAI_KEY):
        raise ConfigError(f"{config.key_variable}: Expected the key for {chat.host} in this variable, got none; set it")
    return chat


def picture(image: bytes, form: str) -> dict[str, Any]:
    """The part of a message's content that shows an encoded image; `form`: jpeg or png."""
    return {"type": "image_url", "image_url": {"url": f"data:image/{form};base64,{base64.b64encode(image).decode()}"}}


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this computer itself, by its spelling alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def reply_of(data: bytes) -> Reply:
    """The body of a successful answer; what is no answer has a `problem`."""
    try:
        body = json.loads(data)
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        text, finish = message.get("content") or "", choice.get("finish_reason")
        spent, made = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        refusal, model = message.get("refusal"), str(body.get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Reply("", problem=f"junk instead of an answer: {shortened(data)}", fault="junk")
    return checked_reply(text, finish, refusal, Reply("", model, spent, made))


def checked_reply(text: Any, finish: str | None, refusal: str | None, reply: Reply) -> Reply:
    """`reply` with its text, or with the reason why that is no answer."""
    problem, fault = None, ""
    if refusal or finish in REFUSALS:
        problem, fault = f"refused: {shortened(refusal or finish)}", "refused"
    elif not isinstance(text, str) or not text.strip():
        problem, fault = "an empty answer", "empty"
    elif finish == "length":
        problem, fault = "an answer that was cut at max_new_tokens", "cut"
    answer = storable(text) if fault in ("", "cut") else ""
    return Reply(answer, storable(reply.model), reply.input_tokens, reply.output_tokens, problem, fault)  # type: ignore[arg-type]


def storable(text: str) -> str:
    """Without secrets, and without what JSON can say and no file can hold: half a surrogate pair."""
    return redacted_text(text.strip()).encode("utf-8", "replace").decode()


def failed(status: int, headers: Mapping[str, str], data: bytes, base_url: str, model: str, key: str) -> Reply:
    """What a status other than 200 means, in the names of the settings that could be wrong.

    Returns a reply where the fault lies in the question. Raises PassingError or ConfigError as `Annotator`.
    """
    message, code = error_in(data)
    refusal = f"the server answered {status}" + (f" ({message})" if message else "")
    if status == 413 or code in REFUSALS:
        return Reply("", problem=f"refused: {message or status}", fault="refused")
    if code != "insufficient_quota" and (status in (408, 409, 425, 429) or status >= 500):
        raise PassingError(refusal, retry_after(headers))
    if status in (401, 403):
        there = "is set" if os.environ.get(key) else "is not set"
        raise ConfigError(f"{key}: {refusal}, and this variable of the environment {there}; put a valid key there")
    if status == 404:
        raise ConfigError(f"{base_url}: {refusal}; check this address and {model}")
    if status in (400, 422):  # a prompt that is too long, an image that it does not read; or a wrong setting
        raise UnaskableError(f"{base_url}: {refusal}")
    raise ConfigError(f"{base_url}: {refusal}")


def error_in(data: bytes) -> tuple[str, str]:
    """Message and code of an error's body, on one line and without secrets."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return shortened(data), ""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return shortened(error), ""
    message = next((error[name] for name in ("message", "detail") if error.get(name)), data)
    return shortened(message), str(error.get("code") or "")


def shortened(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return storable(" ".join(text.split()))[:200]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, be it a number or a date; None for neither."""
    wanted = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    if wanted is None:
        return None
    try:
        return max(0.0, float(wanted)) if wanted.strip().isdigit() else max(0.0, _seconds_until(wanted))
    except ValueError:
        return None


def _seconds_until(date: str) -> float:
    then = parsedate_to_datetime(date)
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
