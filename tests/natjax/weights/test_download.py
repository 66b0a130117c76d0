"""The downloader against a server on this machine that does all that servers do wrong."""

import contextlib
import errno
import http.server
import io
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from natjax.weights import download as module
from natjax.weights.cache import cache_folder, cached_path
from natjax.weights.download import check_url, download, redirected
from natjax.weights.untrusted import WeightsError

CONTENT = bytes(range(256)) * 400  # 102,400 bytes


@dataclass
class Server:
    """What the server does, and what it was asked.

    `breaks` are the bytes after which each response breaks off; those after the last are whole.
    `statuses` are the first responses, errors.
    """

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    chunked: bool = False
    redirect: str | None = None
    redirects: int = 100
    redirect_status: int = 302
    delay: float = 0.0
    silent: bool = False
    requests: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def url(self, name="nat_tiny.pth"):
        return f"http://127.0.0.1:{self.port}/models/{name}"


def handler_of(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            server.requests.append(dict(self.headers))
            self.close_connection = True
            with contextlib.suppress(ConnectionError):
                self.answer()

        def answer(self):
            if server.silent:
                time.sleep(5)
            elif server.statuses:
                self.send_error(server.statuses.pop(0))
            elif server.redirect is not None and server.redirects:
                server.redirects -= 1
                self.send_response(server.redirect_status)
                self.send_header("Location", server.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_file()

        def send_file(self):
            start = self.start()
            if start is None:
                self.send_response(416)
                self.end_headers()
                return
            body = server.content[start:]
            self.send_response(206 if start else 200)
            if start:
                end = len(server.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(server.content)}")
            if server.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif server.length != -1:
                self.send_header("Content-Length", str(server.length or len(body)))
            if server.etag:
                self.send_header("ETag", server.etag)
            if server.modified:
                self.send_header("Last-Modified", server.modified)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.send_body(body)

        def start(self):
            """First byte to send; None where there is none."""
            wanted = self.headers.get("Range")
            if not server.ranges or wanted is None:
                return 0
            condition = self.headers.get("If-Range", server.etag)
            if server.heeds_if_range and condition not in (server.etag, server.modified):
                return 0
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            return start if start < len(server.content) else None

        def send_body(self, body):
            if server.breaks:
                body = body[: server.breaks.pop(0)]
                whole = False
            else:
                whole = True
            for place in range(0, len(body), 10_000):
                part = body[place : place + 10_000]
                if server.chunked:
                    part = b"%x\r\n%s\r\n" % (len(part), part)
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(server.delay)
            if server.chunked and whole:
                self.wfile.write(b"0\r\n\r\n")

    return Handler


@pytest.fixture
def server(monkeypatch):
    """A running server; what it does can be changed at any time."""
    monkeypatch.setenv("NO_PROXY", "*")
    state = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state)) as running:
        running.daemon_threads = True
        state.port = running.server_address[1]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def get(server, folder, **options):
    return download(server.url(), folder, **{"pause": 0.01, "timeout": 10.0, **options})


def assert_fails(server, folder, message, **options):
    """The download fails, names its address, and leaves no file that looks whole."""
    with pytest.raises(WeightsError, match=message) as caught:
        get(server, folder, **options)
    assert not cached_path(server.url(), folder).exists()
    return str(caught.value)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# What goes well


def test_download_once(server, tmp_path):
    folder = tmp_path / "new" / "cache"
    path = get(server, folder)
    assert path == cached_path(server.url(), folder)
    assert path.read_bytes() == CONTENT
    assert files(folder) == [path.name]
    assert get(server, folder) == path
    assert len(server.requests) == 1
    assert "Range" not in server.requests[0]
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_addresses_do_not_share_a_file(tmp_path):
    addresses = [
        "https://a.org/x/model.safetensors",
        "https://a.org/y/model.safetensors",
        "https://b.org/x/model.safetensors",
        "https://a.org/x/model.safetensors?download=true",
    ]
    paths = [cached_path(address, tmp_path) for address in addresses]
    assert len(set(paths)) == 4
    assert all(path.parent == tmp_path for path in paths)
    assert all(path.name.endswith("-model.safetensors") for path in paths)
    assert cached_path(f"{addresses[0]}#part", tmp_path) == paths[0]


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "..", "", "%00", "a%0ab", "%1b[2J", "x" * 500, "CON:"]
)
def test_names_from_addresses_stay_in_the_folder(tmp_path, name):
    path = cached_path(f"https://a.org/{name}", tmp_path)
    assert path.parent == tmp_path
    assert path.name.isascii()
    assert path.name.isprintable()
    assert len(path.name) < 100
    path.write_bytes(b"")


def test_chunked_response_without_a_length(server, tmp_path):
    server.chunked = True
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_empty_file(server, tmp_path):
    server.content = b""
    server.length = 0
    server.headers = {"X": "y"}
    assert get(server, tmp_path).read_bytes() == b""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_place(server, tmp_path, status):
    server.redirect, server.redirects, server.redirect_status = "/elsewhere.pth", 1, status
    path = get(server, tmp_path)
    assert path == cached_path(server.url(), tmp_path)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2


# Broken off and resumed


def test_resumes_what_broke_off(server, tmp_path):
    server.breaks = [30_000, 20_000]
    path = get(server, tmp_path, attempts=1)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [path.name]
    assert [request.get("Range") for request in server.requests] == [
        None,
        "bytes=30000-",
        "bytes=50000-",
    ]
    assert server.requests[1]["If-Range"] == '"one"'


def test_a_later_call_resumes(server, tmp_path):
    server.breaks = [30_000]

    def interrupt(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path)
    part = cached_path(server.url(), tmp_path).name + ".part"
    assert files(tmp_path) == [part, f"{part}.json"]
    path = get(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [path.name]
    assert server.requests[-1]["Range"] == "bytes=30000-"


def test_resumes_a_chunked_response(server, tmp_path):
    server.chunked = True
    server.breaks = [30_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=30000-"


def test_resumes_by_date(server, tmp_path):
    server.etag, server.modified = None, "Mon, 01 Jan 2024 00:00:00 GMT"
    server.breaks = [30_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1]["If-Range"] == server.modified


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_resumes_without_a_validator_if_the_size_is_the_same(server, tmp_path, etag):
    server.etag = etag
    server.breaks = [30_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=30000-"
    assert "If-Range" not in server.requests[1]


def test_begins_again_where_the_server_ignores_ranges(server, tmp_path):
    server.ranges = False
    server.breaks = [30_000, 50_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 3


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_begins_again_where_the_file_has_changed(server, tmp_path, heeds_if_range):
    server.heeds_if_range = heeds_if_range
    server.breaks = [30_000]
    sleep = time.sleep

    def change(seconds):
        server.content, server.etag = CONTENT[::-1], '"two"'
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sleep", change)
        assert get(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_begins_again_where_the_file_has_shrunk(server, tmp_path):
    server.etag = None
    server.breaks = [30_000]
    sleep = time.sleep

    def change(seconds):
        server.content = CONTENT[:100]
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sleep", change)
        assert get(server, tmp_path).read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("note", ["", "{}", "[1]", '{"validator": "x", "total": 3}', "\xff"])
def test_a_part_without_a_good_note_is_dropped(server, tmp_path, note):
    part = cached_path(server.url(), tmp_path).name + ".part"
    (tmp_path / part).write_bytes(b"not of this file")
    (tmp_path / f"{part}.json").write_text(note, encoding="latin1")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_part_that_was_complete_is_taken(server, tmp_path):
    part = cached_path(server.url(), tmp_path).name + ".part"
    (tmp_path / part).write_bytes(CONTENT)
    (tmp_path / f"{part}.json").write_text(f'{{"validator": "", "total": {len(CONTENT)}}}')
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


# What goes wrong


def test_always_breaking_off_ends(server, tmp_path):
    server.ranges = False
    server.breaks = [30_000] * 10
    message = assert_fails(server, tmp_path, "the connection ended after 30000 of 102400 bytes")
    assert server.url() in message
    assert "give the path of the file" in message
    assert 4 <= len(server.requests) <= 5


@pytest.mark.parametrize(("status", "meaning"), [(404, "no such file"), (403, "not allow")])
def test_errors_that_stay_are_not_repeated(server, tmp_path, status, meaning):
    server.statuses = [status]
    message = assert_fails(server, tmp_path, f"status {status}: .*{meaning}")
    assert message.startswith(f"{server.url()}: ")
    assert len(server.requests) == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_errors_that_pass_are_repeated(server, tmp_path, status):
    server.statuses = [status, status]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_errors_that_do_not_pass(server, tmp_path):
    server.statuses = [500] * 9
    assert_fails(server, tmp_path, "the download has failed: .* status 500", attempts=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("asked", "waited"),
    [("7", 7), ("9" * 5000, 60), ("x", 0.02), ("", 0.02)],
    ids=["seven", "for ever", "text", "nothing"],
)
def test_waits_as_the_server_asks(server, tmp_path, asked, waited):
    server.statuses = [503]
    waits = []
    original = http.server.BaseHTTPRequestHandler.end_headers

    def end_headers(handler):
        handler.send_header("Retry-After", asked)
        original(handler)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.server.BaseHTTPRequestHandler, "end_headers", end_headers)
        patch.setattr(module, "sleep", waits.append)
        get(server, tmp_path, pause=0.02)
    assert waits == [waited]


def test_pauses_grow(server, tmp_path):
    server.statuses = [500] * 4
    waits = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sleep", waits.append)
        get(server, tmp_path, pause=0.5, attempts=5)
    assert waits == [0.5, 1, 2, 4]


def test_longer_than_promised(server, tmp_path):
    """More bytes than the length are not read as part of the file."""
    server.length = 1000
    assert get(server, tmp_path).read_bytes() == CONTENT[:1000]


def test_shorter_than_promised(server, tmp_path):
    server.length = 200_000
    server.ranges = False
    message = "the connection ended after 102400 of 200000 bytes"
    assert_fails(server, tmp_path, message, attempts=2)


@pytest.mark.parametrize("range_", ["bytes 5-102399/102400", "bytes 30000-102399/*", "x", ""])
def test_other_ranges_than_asked_for(server, tmp_path, range_):
    """Nothing is put together from parts that do not fit; the file is fetched whole."""
    server.breaks = [30_000]
    original = http.server.BaseHTTPRequestHandler.send_header

    def send_header(handler, name, value):
        original(handler, name, range_ if name == "Content-Range" else value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.server.BaseHTTPRequestHandler, "send_header", send_header)
        assert get(server, tmp_path).read_bytes() == CONTENT


def test_no_length_at_all(server, tmp_path):
    server.length = -1
    assert_fails(server, tmp_path, "must tell the file's size")


def test_vast_length(server, tmp_path):
    server.length = 2**50
    assert_fails(server, tmp_path, "must have at most")
    server.length = 2**35
    with pytest.MonkeyPatch.context() as patch:
        usage = type("Usage", (), {"free": 1000})
        patch.setattr(module.shutil, "disk_usage", lambda folder: usage)
        assert_fails(server, tmp_path, f"room for {2**35} bytes, got 1000")
    assert files(tmp_path) == []


def test_web_page_and_compressed_responses(server, tmp_path):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    assert_fails(server, tmp_path, "got a web page")
    server.headers = {"Content-Encoding": "gzip"}
    assert_fails(server, tmp_path, "got 'gzip' encoding")


def test_slow_but_steady(server, tmp_path):
    server.delay = 0.05
    assert get(server, tmp_path, timeout=2.0).read_bytes() == CONTENT


def test_silent_server(server, tmp_path):
    server.silent = True
    message = "the server does not answer"
    assert_fails(server, tmp_path, message, timeout=0.1, attempts=2)
    assert len(server.requests) == 2


def test_silence_on_the_way(server, tmp_path):
    """What came before it is kept."""
    server.content = CONTENT[:40_000]
    server.delay = 1.5
    path = get(server, tmp_path, timeout=0.5)
    assert path.read_bytes() == CONTENT[:40_000]
    ranges = {request.get("Range") for request in server.requests}
    assert ranges == {None, "bytes=10000-", "bytes=20000-", "bytes=30000-"}


def test_refused_connection(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/nat_tiny.pth"
        with pytest.raises(WeightsError, match="Connection refused") as caught:
            download(url, tmp_path, attempts=2, pause=0.01)
    assert url in str(caught.value)
    assert "without a network, download it elsewhere" in str(caught.value)


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")

    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    url = "https://shi-labs.com/projects/nat/checkpoints/CLS/nat_tiny.pth"
    with pytest.raises(WeightsError, match=r"name resolution; without a network") as caught:
        download(url, tmp_path, attempts=2, pause=0.01)
    assert str(caught.value).startswith(f"{url}: ")
    assert files(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 70_000])
def test_a_server_that_speaks_something_else(tmp_path, monkeypatch, data):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.pth"

        def serve():
            for _ in range(2):
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(10_000)
                    connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(WeightsError, match=r"the download has failed: \w"):
            download(url, tmp_path, attempts=2, pause=0.01)
        thread.join()
    assert files(tmp_path) == []


def test_a_deadline_ends_a_server_that_is_never_silent(server, tmp_path):
    server.delay = 0.3
    server.content = CONTENT * 3
    began = time.monotonic()
    message = "must end within 1 seconds"
    assert_fails(server, tmp_path, message, deadline=1.0)
    assert time.monotonic() - began < 10
    server.delay = 0
    assert get(server, tmp_path).read_bytes() == CONTENT * 3  # what came was kept
    assert "Range" in server.requests[-1]


def test_a_deadline_ends_headers_that_drip(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while True:
                    connection.sendall(b"X")
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.pth"
        with pytest.raises(WeightsError, match="must end within 1 seconds"):
            download(url, tmp_path, pause=0.01, deadline=1.0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("suffix", ["", ".part", ".part.json"])
def test_pipes_in_the_cache_are_not_waited_for(server, tmp_path, suffix):
    target = cached_path(server.url(), tmp_path)
    os.mkfifo(target.with_name(target.name + suffix))
    results = []

    def run():
        try:
            results.append(get(server, tmp_path).read_bytes())
        except WeightsError as error:
            results.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert results
    assert results[0] == CONTENT if not suffix else "must be a plain one" in results[0]


# Addresses


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file:///etc/passwd", "must begin with https://"),
        ("ftp://127.0.0.1/x", "must begin with https://"),
        ("data:text/plain,x", "must begin with https://"),
        ("gopher://a/x", "must begin with https://"),
        ("http://example.org/x", "must begin with https://, or others on the way"),
        ("http://u:p@127.0.0.1/x", "must hold no password"),
        ("http://[::1/x", "Invalid IPv6 URL"),
    ],
)
def test_redirects_that_are_not_followed(server, tmp_path, target, message):
    server.redirect = target
    text = assert_fails(server, tmp_path, f"redirect cannot be followed: .*{message}")
    assert text.startswith(f"{server.url()}: ")
    assert len(server.requests) == 1


def test_redirect_loop(server, tmp_path):
    server.redirect = server.url()
    assert server.url() in assert_fails(server, tmp_path, "cannot be followed: .*more than 10")
    assert len(server.requests) < 20


def test_redirect_from_https_down_to_http():
    with pytest.raises(WeightsError, match="must not redirect to http://localhost/x"):
        redirected("https://a.org/x", "http://localhost/x")
    assert redirected("https://a.org/x", "y") == "https://a.org/y"
    assert redirected("http://localhost/x", "//localhost/y") == "http://localhost/y"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "",
        "ftp://a.org/x",
        "data:,x",
        "https:///x",
        "https://a.org:x/",
        "https://[::1/x",
        "https://a.org/a b",
        "https://a.org/\n",
        "https://a.org/\u00fc",
        "https://user:secret@a.org/x",
        "http://a.org/x",
        "http://127.0.0.1.a.org/x",
        "http://localhost.a.org/x",
    ],
)
def test_addresses_that_are_not_taken(tmp_path, url):
    with pytest.raises(WeightsError) as caught:
        download(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_addresses_that_are_taken():
    for url in ("https://a.org/x", "http://localhost/x", "http://127.0.0.1:80/", "http://[::1]/"):
        check_url(url)


# Several at once


def test_threads_download_one_address_once(server, tmp_path, capfd):
    server.delay = 0.02
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(get(server, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [cached_path(server.url(), tmp_path)] * 4
    assert paths[0].read_bytes() == CONTENT
    assert files(tmp_path) == [paths[0].name]
    assert len(server.requests) == 1
    assert "waiting for another process that downloads" in capfd.readouterr().err


CHILD = """
import pathlib, sys
from natjax.weights.download import download
print(download(sys.argv[1], pathlib.Path(sys.argv[2]), pause=0.01))
"""


def test_processes_download_one_address_once(server, tmp_path):
    server.delay = 0.1
    command = [sys.executable, "-c", CHILD, server.url(), str(tmp_path)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(3)
    ]
    outputs = [child.communicate()[0].strip() for child in children]
    assert outputs == [str(cached_path(server.url(), tmp_path))] * 3
    assert len(server.requests) == 1
    assert pathlib.Path(outputs[0]).read_bytes() == CONTENT


def test_a_killed_process_leaves_a_part_that_the_next_resumes(server, tmp_path):
    server.delay = 0.1
    command = [sys.executable, "-c", CHILD, server.url(), str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    part = cached_path(server.url(), tmp_path).with_name(
        cached_path(server.url(), tmp_path).name + ".part"
    )
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 10_000) and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    child.wait()
    server.delay = 0
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert int(server.requests[-1]["Range"].removeprefix("bytes=").removesuffix("-")) > 10_000


@pytest.mark.parametrize("reason", ["no such call", "no fcntl"])
def test_without_locks_every_process_has_its_own_part(server, tmp_path, monkeypatch, reason):
    fcntl = pytest.importorskip("fcntl", reason="no file locks here")

    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    if reason == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", fail)
    server.breaks = [30_000]
    path = get(server, tmp_path)
    assert path.read_bytes() == CONTENT
    server.content, server.etag = b"", None
    server.statuses = [404]
    with pytest.raises(WeightsError, match="404"):
        download(server.url("other"), tmp_path)
    assert [name for name in files(tmp_path) if not name.endswith(".part")] == [path.name]


# Folders


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"cannot be written .* set NATJAX_CACHE to another"):
        get(server, tmp_path / "file" / "cache")
    if os.path.isdir("/proc/self"):  # read-only for root too
        with pytest.raises(WeightsError, match=r"/proc/self/cache: .* cannot be written"):
            get(server, pathlib.Path("/proc/self/cache"))
    assert server.requests == []


def test_read_only_file_system(server, tmp_path, monkeypatch):
    path = get(server, tmp_path)

    def fail(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", fail)
    assert get(server, tmp_path) == path  # what is there can be used
    with pytest.raises(WeightsError, match=r"cannot be written \(Read-only file system\)"):
        download(server.url("other"), tmp_path)


FULL_DISK = """
import pathlib, resource, sys
from natjax.weights.download import download
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    download(sys.argv[1], pathlib.Path(sys.argv[2]), pause=0.01)
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file size here")
def test_full_disk(server, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, server.url(), str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.startswith(f"WeightsError {tmp_path}: the disk is full")
    assert not cached_path(server.url(), tmp_path).exists()
    assert get(server, tmp_path).read_bytes() == CONTENT  # goes on once there is room
    assert "Range" in server.requests[-1]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NATJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "natjax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "natjax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == pathlib.Path("/xdg/natjax")
    monkeypatch.setenv("NATJAX_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("NATJAX_CACHE", "")
    assert cache_folder() == pathlib.Path("/xdg/natjax")


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(server, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    get(server, tmp_path)
    text = terminal.getvalue()
    assert "nat_tiny.pth" in text
    assert "102.4/102.4 kB" in text
    assert text.endswith(("\n", "\x1b[?25h"))


def test_no_progress_unless_seen(server, tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    get(server, tmp_path)
    assert stream.getvalue() == ""


def test_reading_and_downloading_need_no_other_library():
    code = "import natjax.weights.download, natjax.weights.formats, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not {"jax", "flax", "safetensors", "rich", "urllib3"} & set(loaded)
