"""The page kit: who is answered, who is not, and how the serving ends."""

from __future__ import annotations

import dataclasses
import http.client
import json
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.pages.local_page import DONE, HOST, MAX_BODY_BYTES, LocalServer, Page, html_page, picture_bytes

JSON = {"Content-Type": "application/json"}
PICTURE = picture_bytes(PIL.Image.new("RGB", (2000, 10)))


def fails(value: Any) -> None:
    raise ValueError(f"Expected a cat, got {value!r}")


@pytest.fixture
def seen() -> list[Any]:
    return []


class Served(LocalServer):
    thread: threading.Thread


@pytest.fixture
def server(seen: list[Any]) -> Iterator[Served]:
    actions = {"keep": lambda value: seen.append(value) or len(seen), "fail": fails}
    page = Page(html_page("A title", "<p>the body</p>", "act('keep', 1);"), actions, {"a": PICTURE}.__getitem__)
    with Served(page) as found:
        found.thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
        found.thread.start()
        yield found
        found.shutdown()


def ask(server: LocalServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
    """Status and content; JSON as its value."""
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "DENY"
    return answer.status, json.loads(content) if answer.headers["Content-Type"] == JSON["Content-Type"] else content


def post(server: LocalServer, name: str, value: Any, **headers: str) -> tuple[int, Any]:
    return ask(
        server, "POST", f"/{server.token}/{name}", json.dumps(value), **{"Content_Type": "application/json", **headers}
    )


def test_page_picture_and_action(server: LocalServer, seen: list[Any]) -> None:
    status, html = ask(server, "GET", f"/{server.token}/")
    assert status == 200 and b"<p>the body</p>" in html and b"unsafe" not in html and b"connect-src 'self'" in html
    assert ask(server, "GET", f"/{server.token}/image/a") == (200, PICTURE)
    assert post(server, "keep", {"text": "да"}) == (200, 1) and seen == [{"text": "да"}]
    assert ask(server, "GET", f"/{server.token}/", Host=f"localhost:{server.server_address[1]}")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.2:{port}"]
)
def test_a_foreign_host_is_refused(server: LocalServer, seen: list[Any], host: str) -> None:
    """DNS rebinding: evil.example has been made to mean 127.0.0.1, so its page may read what comes back."""
    host = host.format(port=server.server_address[1])
    assert ask(server, "GET", f"/{server.token}/", Host=host)[0] == 403
    assert post(server, "keep", 1, Host=host)[0] == 403 and not seen


def test_without_the_token_there_is_nothing(server: LocalServer, seen: list[Any]) -> None:
    token = server.token
    assert len(token) >= 32
    for path in ("/", "/image/a", f"/{token}", f"/{token[:-1]}/", f"/{token}x/", f"/{token.lower()}/"):
        assert ask(server, "GET", path)[0] == 404, path
        assert ask(server, "POST", f"{path}keep", "1", Content_Type="application/json")[0] == 404
    with socket.create_connection((HOST, server.server_address[1]), timeout=10) as raw:
        raw.sendall(f"GET /\u00e9/ HTTP/1.0\r\nHost: {server.hosts[0]}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.0 404 ")
    assert not seen


@pytest.mark.parametrize(
    "path", ["image/b", "image/", "image/../a", "image/%61", "../", "etc/passwd", "keep", "?", "image/a?x"]
)
def test_what_is_not_named_is_not_there(server: LocalServer, path: str) -> None:
    assert ask(server, "GET", f"/{server.token}/{path}")[0] == 404


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_foreign_page_may_send_unasked_is_refused(server: LocalServer, seen: list[Any], kind: str) -> None:
    """These three a browser sends to any address without asking; JSON it does not, and the question is refused."""
    assert post(server, "keep", 1, Content_Type=kind)[0] == 415 and not seen
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=10)
    connection.request("OPTIONS", f"/{server.token}/keep", headers={"Origin": "https://evil.example"})
    answer = connection.getresponse()
    assert answer.status == 501 and answer.headers["Access-Control-Allow-Origin"] is None


def test_mistakes_are_told_to_the_page(server: LocalServer, seen: list[Any]) -> None:
    assert post(server, "fail", 1) == (400, {"error": "Expected a cat, got 1"})
    assert post(server, "no_such", 1)[0] == 404
    assert ask(server, "POST", f"/{server.token}/keep", "{", Content_Type="application/json")[0] == 400
    assert post(server, "keep", "x" * MAX_BODY_BYTES)[0] == 413
    assert not seen


def test_a_page_may_take_larger_actions_than_others(server: LocalServer, seen: list[Any]) -> None:
    """Such as pictures; whoever does not know the token is not listened to for longer than before."""
    server.page = dataclasses.replace(server.page, max_body_bytes=3 * MAX_BODY_BYTES)
    text = "x" * (2 * MAX_BODY_BYTES)
    assert post(server, "keep", text) == (200, 1) and seen == [text]
    assert post(server, "keep", "x" * 3 * MAX_BODY_BYTES)[0] == 413 and seen == [text]
    with socket.create_connection((HOST, server.server_address[1]), timeout=10) as raw:
        head = f"POST /no-token/keep HTTP/1.0\r\nHost: {server.hosts[0]}\r\nContent-Length: {len(text)}\r\n\r\n"
        raw.sendall(head.encode() + text[: MAX_BODY_BYTES + 1].encode())
        assert raw.recv(100).startswith(b"HTTP/1.0 404 "), "answered before the rest has come"


def reaches_another_address(server: socketserver.TCPServer) -> bool:
    """Whether the server is met under 127.0.0.2, which stands for every other address of this machine."""
    try:
        socket.create_connection(("127.0.0.2", server.server_address[1]), timeout=5).close()  # type: ignore[index]
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address without setting it up on Linux alone")
def test_it_listens_on_loopback_alone(server: LocalServer) -> None:
    assert server.server_address[0] == "127.0.0.1" and not reaches_another_address(server)
    with socketserver.TCPServer(("0.0.0.0", 0), socketserver.BaseRequestHandler) as defect:
        assert reaches_another_address(defect)


def test_the_page_says_that_it_is_done(server: Served) -> None:
    assert post(server, DONE, None) == (200, None)
    server.thread.join(timeout=5)
    assert not server.thread.is_alive()


def test_a_taken_port_is_one_line(server: LocalServer) -> None:
    with pytest.raises(ConfigError, match=r"port: Expected a free port, got \d+ \(Address already in use\)"):
        LocalServer(server.page, server.server_address[1])


def test_pictures_are_made_small(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert PIL.Image.open(tmp_path / "a.png").size == (1600, 8)


SERVE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from vlmft.pages.local_page import Page, serve
serve(Page("", {}, {}.__getitem__), open_browser=False)
print("after it")
"""


def test_ctrl_c_ends_the_serving_and_not_the_program() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline().startswith("open http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "after it\n", "")
