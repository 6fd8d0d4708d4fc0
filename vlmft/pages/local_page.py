"""A page for one person at this machine: HTML, pictures and actions, served on 127.0.0.1 and nowhere else.

Other pages of the same browser can send requests here, too. So the address holds a secret token, the Host header must
be this machine's (a foreign name that was made to point here is refused), and an action takes JSON alone, which a
foreign page cannot send without asking first.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import os
import secrets
import socketserver
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import PIL.Image
from markupsafe import Markup

from vlmft.config.check import ConfigError
from vlmft.pages import packaged, whole_page

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 20
MAX_PICTURE_PIXELS = 1600
"""Longer side of a picture on a page."""
DONE = "done"
"""The action by which a page ends the serving."""


@dataclass(frozen=True)
class Page:
    """What is served. Actions and pictures are asked for one at a time, whatever the browser does."""

    html: str
    """The whole page, made by `html_page`."""
    actions: Mapping[str, Callable[[Any], Any]]
    """Name -> what it does with the JSON value that the page sends; returns a JSON value. A ValueError, ConfigError or
    OSError is shown on the page in its own words."""
    image: Callable[[str], bytes]
    """The PNG file under a name; KeyError where there is none."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Of what an action takes."""


class Refused(Exception):  # noqa: N818 - an answer
    """A request that is not carried out."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def html_page(title: str, body: str, script: str, styles: Sequence[str] = ()) -> str:
    """A tool's own HTML (markup), script and styles (files of this folder) inside what its pages share.

    The page loads nothing but its pictures, runs this script alone, and talks to its own server alone. The script may
    use what make.js and local_page.js have: `make`, `act`, `byId`, `onKeys`.
    """
    return whole_page(
        "local_page.html",
        title,
        {"body": Markup(body)},
        styles=("page.css", "local_page.css", *styles),
        script=packaged("make.js") + packaged("local_page.js") + script,
        served=True,
    )


def picture_bytes(picture: PIL.Image.Image) -> bytes:
    """A PNG file, not larger than a screen needs."""
    picture = picture.copy()
    picture.thumbnail((MAX_PICTURE_PIXELS, MAX_PICTURE_PIXELS))
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()


def serve(page: Page, port: int = 0, open_browser: bool = True) -> None:
    """Serves the page until it says that it is done, or until Ctrl-C; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken.
    """
    with contextlib.suppress(KeyboardInterrupt), LocalServer(page, port) as server:
        print(f"open {server.url} (Ctrl-C ends it; what was saved stays)", file=sys.stderr, flush=True)
        # without a display, a browser of the terminal would take the terminal over
        if open_browser and (
            os.name == "nt" or sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
        ):
            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.1)
        finally:
            server.one_at_a_time.acquire()  # what is being carried out ends first, and nothing comes after it


class LocalServer(socketserver.ThreadingTCPServer):
    """On 127.0.0.1 alone. Not http.server's, which asks the network for this machine's name."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(self, page: Page, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(f"port: Expected a free port, got {port} ({error.strerror}); port=0 takes any") from error
        self.page, self.token, self.one_at_a_time = page, secrets.token_urlsafe(24), threading.Lock()
        self.hosts = tuple(f"{name}:{self.server_address[1]}" for name in (HOST, "localhost"))

    @property
    def url(self) -> str:
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a page that was closed while it loaded is no error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._file)

    def do_POST(self) -> None:
        length = self.headers["Content-Length"] or ""
        most = self.server.page.max_body_bytes if self._is_ours() else MAX_BODY_BYTES  # more is read for our page alone
        self.body = self.rfile.read(min(int(length), most + 1)) if length.isdecimal() else b""
        if self._answer(self._action) == DONE:
            self.server.shutdown()

    def _answer(self, respond: Callable[[str], tuple[str, bytes]]) -> str | None:
        """Sends what `respond` makes of the path below the token; returns that path where all went well."""
        status, kind, below = HTTPStatus.OK, "application/json", None
        try:
            below = self._below_token()
            with self.server.one_at_a_time:
                kind, content = respond(below)
        except Refused as error:
            status, content, below = error.status, _json({"error": str(error)}), None
        except (ValueError, ConfigError, OSError) as error:
            status, content, below = HTTPStatus.BAD_REQUEST, _json({"error": str(error)}), None
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        safety = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
        for name, value in {**headers, **safety}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        return below

    def _is_ours(self) -> bool:
        with contextlib.suppress(Refused):
            return self._below_token() in self.server.page.actions
        return False

    def _below_token(self) -> str:
        start = f"/{self.server.token}/"
        if self.headers["Host"] not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN)
        if not hmac.compare_digest(self.path[: len(start)].encode(), start.encode()):
            raise Refused(HTTPStatus.NOT_FOUND)
        return self.path[len(start) :]

    def _file(self, below: str) -> tuple[str, bytes]:
        if not below:
            return "text/html; charset=utf-8", self.server.page.html.encode("utf-8", "replace")
        folder, _, name = below.partition("/")
        try:
            if folder == "image":
                return "image/png", self.server.page.image(name)
        except KeyError as error:
            raise Refused(HTTPStatus.NOT_FOUND) from error
        raise Refused(HTTPStatus.NOT_FOUND)

    def _action(self, below: str) -> tuple[str, bytes]:
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        if len(self.body) > self.server.page.max_body_bytes:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        actions = {DONE: lambda value: None, **self.server.page.actions}
        if below not in actions:
            raise Refused(HTTPStatus.NOT_FOUND)
        return "application/json", _json(actions[below](json.loads(self.body)))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Says nothing: the page is used in the terminal's background."""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
