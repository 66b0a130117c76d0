"""Download of weights: once, whole or not at all, and resumed where it broke off.

urllib3 speaks HTTP. What is here is policy, which no library has all of: nothing but HTTPS, also
behind redirects; an end even where a server has none; one process downloads and the others wait
(`natjax.weights.cache`); a part that was interrupted is gone on with if the server still has the
same file.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shutil
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from natjax.weights.cache import Origin, PartialFile, cached_path, partial_file
from natjax.weights.untrusted import WeightsError, show

if TYPE_CHECKING:
    import urllib3

_LARGEST = 2**36  # bytes; a server without end must not fill the disk
_LEAST = 2**14  # bytes; an attempt that brings fewer counts as failed
_CHUNK = 2**20  # bytes read at a time, at most
_LONGEST_WAIT = 60  # seconds that a server may ask for
_MOST_REDIRECTS = 10
# Timeout, too early, too many requests, and what servers and gateways say when overloaded.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MEANING = {
    401: "the address needs a login",
    403: "the server does not allow it",
    404: "there is no such file",
    410: "the file is no longer there",
}
_BY_HAND = (
    "without a network, download it elsewhere and give the path of the file instead of its address"
)

_Show = Callable[[int, int | None], None]


class _PassingError(Exception):
    """A failure that may not be there the next time.

    Attributes:
      wait: Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait: int = 0):
        super().__init__(reason)
        self.wait = wait


def download(
    url: str,
    folder: Path,
    *,
    timeout: float = 30.0,
    deadline: float = 6 * 3600.0,
    attempts: int = 4,
    pause: float = 0.5,
) -> Path:
    """Download a file, unless it is there already.

    Several processes may ask for the same file: one downloads it, the others wait. A download that
    breaks off is resumed, within this call and by later ones, if the server still has the file. A
    terminal is shown a bar.

    Args:
      url: Address that begins with ``https://`` (or ``http://localhost``).
      folder: Where the file goes, such as `cache_folder`.
      timeout: Longest silence of the server, in seconds.
      deadline: Longest time in all, in seconds, waiting for other processes not counted.
      attempts: How many times in a row to try with next to nothing received.
      pause: Seconds to wait before the second attempt; doubled for each one after.

    Returns:
      The path of the whole file.

    Raises:
      WeightsError: it cannot be had, is not of the promised size, or cannot be written.
    """
    check_url(url)
    target = cached_path(url, folder)
    if target.is_file():
        return target
    with partial_file(target) as part:
        if not target.is_file():
            end = time.monotonic() + deadline
            with _progress(target.name.partition("-")[2]) as show_progress:
                request = _Request(url, timeout, deadline, end, show_progress)
                _fetch(request, part, attempts, pause)
            part.finish(target)
    return target


def check_url(url: str) -> None:
    """Refuse an address that cannot be downloaded from.

    Args:
      url: The address.

    Raises:
      WeightsError: it is none, or of another scheme; HTTP is for this machine alone.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # read only when asked for
    except ValueError as error:
        raise WeightsError(f"{show(url)}: the address is not valid: {error}") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise WeightsError(f"{show(url)}: an address must begin with https:// and a host's name")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise WeightsError(f"{show(url)}: an address must be written in ASCII, with %-escapes")
    if "@" in parts.netloc:
        raise WeightsError(f"an address must hold no password (host {parts.hostname})")
    if parts.scheme == "http" and not _is_local(parts.hostname):
        raise WeightsError(
            f"{url}: an address must begin with https://, or others on the way could change the"
            " file; or download it by hand and give its path"
        )


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redirected(url: str, location: str) -> str:
    """Return where a redirect leads.

    Args:
      url: Address that redirects.
      location: Where to, as the server says.

    Raises:
      WeightsError: to where nothing is downloaded from, or down from HTTPS to HTTP.
    """
    try:
        target = urllib.parse.urljoin(url, location)
        check_url(target)
    except ValueError as error:
        raise WeightsError(f"{url}: the server's redirect cannot be followed: {error}") from None
    if url.startswith("https:") and not target.startswith("https:"):
        raise WeightsError(f"{url} must not redirect to {target}, unencrypted")
    return target


@dataclass(frozen=True)
class _Request:
    """What is asked for, and how long that may take."""

    url: str
    timeout: float
    deadline: float
    end: float
    show_progress: _Show

    def error(self, text: str) -> WeightsError:
        return WeightsError(f"{self.url}: {text}")

    def left(self) -> float:
        """Seconds up to the deadline."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise self.error(
                f"the download must end within {self.deadline:g} seconds, as it has not; what came"
                f" is kept, and the next call goes on; or {_BY_HAND}"
            )
        return left


def _fetch(request: _Request, part: PartialFile, attempts: int, pause: float) -> None:
    """Try until the file is whole, or next to nothing has come several times in a row."""
    failures = 0
    while True:
        before = part.size
        try:
            return _attempt(request, part)
        except _PassingError as error:
            failures = 0 if part.size - before >= _LEAST else failures + 1
            if failures >= attempts:
                raise request.error(f"the download has failed: {error}; {_BY_HAND}") from error
            sleep(min(max(pause * 2 ** max(failures - 1, 0), error.wait), request.left()))


def _attempt(request: _Request, part: PartialFile) -> None:
    origin = part.origin
    if origin and origin.total == part.size:
        return  # complete, but never renamed
    # A server may compress on the way, which would make sizes and offsets mean something else.
    headers = {"User-Agent": "natjax", "Accept-Encoding": "identity"}
    if origin:
        headers["Range"] = f"bytes={part.size}-"
        if origin.validator:
            headers["If-Range"] = origin.validator
    with (
        _network_errors(request),
        _connections(request) as manager,
        _open(request, manager, headers) as response,
    ):
        request.left()  # headers that were ended by us look whole
        _check_status(request, response, part)
        _receive(request, response, part, _begin(request, response, part))


@contextlib.contextmanager
def _connections(request: _Request) -> Iterator[urllib3.PoolManager]:
    """Connections that are shut down at the deadline, wherever they are: a server can send a byte a
    minute for ever, which no timeout of a socket ends.
    """
    sockets: list[socket.socket] = []

    def watched(pool: type[urllib3.HTTPConnectionPool]) -> type[urllib3.HTTPConnectionPool]:
        class Connection(pool.ConnectionCls):
            def _new_conn(self) -> socket.socket:
                made = super()._new_conn()
                sockets.append(made.dup())  # encryption takes the first one away
                return made

        return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

    def end() -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    manager = _manager(request.url)
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: watched(pool) for scheme, pool in pools.items()}
    timer = threading.Timer(request.left(), end)
    timer.daemon = True
    timer.start()
    try:
        with manager:
            yield manager
    finally:
        timer.cancel()
        for each in sockets:
            each.close()


def _manager(url: str) -> urllib3.PoolManager:
    """A pool of connections, by the proxy that the environment names, if it does."""
    import urllib3

    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return urllib3.PoolManager()
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    login = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(login)) if login else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers)


def _open(
    request: _Request, manager: urllib3.PoolManager, headers: dict[str, str]
) -> urllib3.BaseHTTPResponse:
    """The answer at the end of all redirects."""
    url = request.url
    for _ in range(_MOST_REDIRECTS):
        response = manager.request(
            "GET",
            url,
            headers=headers,
            redirect=False,
            retries=False,
            timeout=min(request.timeout, request.left()),
            preload_content=False,
            decode_content=False,
            enforce_content_length=False,
        )
        location = response.get_redirect_location()
        if not location:
            return response
        response.close()  # its body is not read, however long it is
        url = redirected(url, location)
    raise request.error(
        f"the server's redirect cannot be followed: there are more than {_MOST_REDIRECTS} of them"
    )


@contextlib.contextmanager
def _network_errors(request: _Request) -> Iterator[None]:
    """Turn what the library raises into our errors; texts of servers go no further."""
    from urllib3.exceptions import HTTPError

    try:
        yield
    except HTTPError as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message
            raise request.error(f"the server's certificate is not valid: {reason}") from error
        if isinstance(cause, TimeoutError):
            raise _PassingError("the server does not answer") from None
        text = (isinstance(cause, OSError) and cause.strerror) or str(cause).strip()
        raise _PassingError(show(text, bare=True) if text else type(cause).__name__) from None


def _check_status(request: _Request, response: urllib3.BaseHTTPResponse, part: PartialFile) -> None:
    status = response.status
    if status == 416:
        part.discard_bytes()
        raise _PassingError("the server has no such part of the file")
    text = f"the server answers with status {status}"
    if status in _PASSING:
        wait = response.headers.get("Retry-After", "")
        raise _PassingError(text, min(int(wait[:9]), _LONGEST_WAIT) if wait.isdecimal() else 0)
    if status not in (200, 206):
        raise request.error(f"{text}: {_MEANING.get(status) or show(response.reason or '')}")
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise request.error("the address must be that of a file, got a web page")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise request.error(f"the file must come as it is, got {show(encoding)} encoding")


def _begin(request: _Request, response: urllib3.BaseHTTPResponse, part: PartialFile) -> int | None:
    """Get the part ready for what is to come; return the size of the whole file."""
    if response.status == 206:
        return _continue(response, part)
    total = response.length_remaining
    is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    if total is None and not is_chunked:
        raise request.error("the server must tell the file's size")
    part.begin(Origin(_validator(response), total))
    return total


def _continue(response: urllib3.BaseHTTPResponse, part: PartialFile) -> int:
    """Check that a part follows the bytes that are there; return the size of the whole file."""
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range)
    origin = part.origin
    first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
    # Some servers heed Range but not If-Range.
    same_file = origin and _validator(response) in ("", origin.validator)
    same = same_file and origin.total in (None, total)
    if not same or first != part.size or last + 1 != total:
        part.discard_bytes()
        raise _PassingError(f"the server continues with another part: {show(content_range)}")
    return total


def _validator(response: urllib3.BaseHTTPResponse) -> str:
    """What tells two versions of a file apart; a weak ETag does not to the byte."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _receive(
    request: _Request, response: urllib3.BaseHTTPResponse, part: PartialFile, total: int | None
) -> None:
    _check_room(request, part, total or 0)
    request.show_progress(part.size, total)
    while data := response.read1(_CHUNK):
        part.append(data)
        request.show_progress(part.size, total)
        request.left()
        if part.size > (_LARGEST if total is None else total):
            part.discard_bytes()
            raise request.error(
                f"the server sends more than the {total or _LARGEST} bytes expected"
            )
    if total is not None and part.size < total:
        request.left()
        raise _PassingError(f"the connection ended after {part.size} of {total} bytes")


def _check_room(request: _Request, part: PartialFile, total: int) -> None:
    if total > _LARGEST:
        raise request.error(f"a file of weights must have at most {_LARGEST} bytes, got {total}")
    free = shutil.disk_usage(part.folder).free
    if total - part.size > free:
        raise WeightsError(
            f"{part.folder}: the disk must have room for {total - part.size} bytes, got {free};"
            " make room, or set NATJAX_CACHE to another folder"
        )


@contextlib.contextmanager
def _progress(name: str) -> Iterator[_Show]:
    """A bar on the standard error stream, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn())
    times = (progress.TransferSpeedColumn(), progress.TimeRemainingColumn())
    with progress.Progress(*columns, *times, console=Console(stderr=True)) as bar:
        task = bar.add_task(name)
        yield lambda done, total: bar.update(task, completed=done, total=total)
