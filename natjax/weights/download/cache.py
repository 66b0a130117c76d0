"""Download of weights: once, whole or not at all, and resumed where it broke off."""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from time import sleep
from typing import Any

from natjax.weights.download.partial import Origin, PartialFile, partial_file
from natjax.weights.download.transport import (
    PassingError,
    RangeRefusedError,
    check_url,
    open_url,
    read_some,
)
from natjax.weights.errors import WeightsError, show

_LARGEST = 2**36  # bytes; a server without end must not fill the disk
_LEAST = 2**14  # bytes; an attempt that brings fewer counts as failed
_BY_HAND = (
    "without a network, download it elsewhere and give the path of the file instead of its address"
)


def cache_folder() -> Path:
    """Return the folder where downloads are kept; it need not exist.

    It is ``$NATJAX_CACHE``, else ``$XDG_CACHE_HOME/natjax``, else ``~/.cache/natjax``.

    Raises:
      WeightsError: nothing is set and there is no home folder.
    """
    try:
        if own := os.environ.get("NATJAX_CACHE"):
            return Path(own).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification: a relative path is invalid and to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "natjax"
    except RuntimeError as error:
        raise WeightsError("NATJAX_CACHE must name a folder, as there is no home folder") from error


def cached_path(url: str, folder: Path) -> Path:
    """Return where `download` keeps the file of an address: two addresses never share one.

    Args:
      url: The address.
      folder: The folder for downloads.
    """
    address = urllib.parse.urldefrag(url).url
    name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-32:] or "weights"
    return folder / f"{hashlib.sha256(address.encode()).hexdigest()}-{name}"


def download(
    url: str,
    folder: Path,
    *,
    progress: bool = True,
    timeout: float = 30.0,
    deadline: float = 6 * 3600.0,
    sha256: str | None = None,
    allow_http: bool = False,
    attempts: int = 4,
    pause: float = 0.5,
    chunk: int = 2**20,
) -> Path:
    """Download a file, unless it is there already.

    Several processes may ask for the same file: one downloads it, the others wait. A download that
    breaks off is resumed, within this call and by later ones, if the server still has the file.

    Args:
      url: Address that begins with ``https://`` (or ``http://localhost``).
      folder: Where the file goes, such as `cache_folder`.
      progress: Show a bar on the standard error stream, if that is a terminal.
      timeout: Longest silence of the server, in seconds.
      deadline: Longest time in all, in seconds, waiting for other processes not counted.
      sha256: What the file's SHA-256 must be, in hexadecimal.
      allow_http: Take unencrypted addresses of other machines too.
      attempts: How many times in a row to try with next to nothing received.
      pause: Seconds to wait before the second attempt; doubled for each one after.
      chunk: Most bytes read at a time.

    Returns:
      The path of the whole file.

    Raises:
      WeightsError: it cannot be had, is not of the promised size or checksum, or cannot be written.
    """
    check_url(url, allow_http)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise WeightsError(f"{url}: sha256 must be 64 hexadecimal digits, got {show(sha256)}")
    target = cached_path(url, folder)
    if _is_cached(target, sha256):
        return target

    def waiting() -> None:
        sys.stderr.write(f"natjax: waiting for another process that downloads {target.name}\n")

    with partial_file(target, waiting) as part:
        if not _is_cached(target, sha256):
            end = time.monotonic() + deadline
            request = _Request(url, timeout, end, deadline, allow_http, chunk, sha256 is not None)
            with _progress(target.name.partition("-")[2], progress) as show_progress:
                _fetch(request, part, show_progress, attempts, pause)
            _check_sum(part, url, sha256)
            part.finish(target)
    return target


@dataclass(frozen=True)
class _Request:
    url: str
    timeout: float
    end: float
    deadline: float
    allow_http: bool
    chunk: int
    checked: bool

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


_Show = Callable[[int, int | None], None]


def _fetch(
    request: _Request, part: PartialFile, show_progress: _Show, attempts: int, pause: float
) -> None:
    """Try until the file is whole, or next to nothing has come several times in a row."""
    failures = 0
    while True:
        before = part.size
        try:
            return _attempt(request, part, show_progress)
        except PassingError as error:
            failures = 0 if part.size - before >= _LEAST else failures + 1
            if failures >= attempts:
                raise request.error(f"the download has failed: {error}; {_BY_HAND}") from error
            sleep(min(max(pause * 2 ** max(failures - 1, 0), error.wait), request.left()))


def _attempt(request: _Request, part: PartialFile, show_progress: _Show) -> None:
    origin = part.origin
    if origin and origin.total == part.size:
        return  # complete, but never renamed
    # A server may compress on the way, which would make sizes and offsets mean something else.
    headers = {"User-Agent": "natjax", "Accept-Encoding": "identity"}
    if origin:
        headers["Range"] = f"bytes={part.size}-"
        if origin.validator:
            headers["If-Range"] = origin.validator
    try:
        with open_url(
            request.url,
            headers,
            timeout=request.timeout,
            seconds=request.left(),
            allow_http=request.allow_http,
        ) as response:
            _receive(request, response, part, show_progress)
    except RangeRefusedError:
        part.discard_bytes()
        raise PassingError("the server has no such part of the file") from None


def _receive(
    request: _Request, response: HTTPResponse, part: PartialFile, show_progress: _Show
) -> None:
    request.left()  # headers that were ended by us look whole
    _check_headers(request, response)
    if response.status == 206:
        total = _continue(response, part)
    else:
        total = response.length
        if total is None and not response.chunked and not request.checked:
            raise request.error("the server must tell the file's size, or sha256 must be given")
        part.begin(Origin(_validator(response), total))
    if total is not None:
        _check_room(request, part, total)
    show_progress(part.size, total)
    while data := read_some(response, request.chunk):
        part.append(data)
        show_progress(part.size, total)
        request.left()
        if part.size > (_LARGEST if total is None else total):
            part.discard_bytes()
            raise request.error(
                f"the server sends more than the {total or _LARGEST} bytes expected"
            )
    if total is not None and part.size < total:
        request.left()
        raise PassingError(f"the connection ended after {part.size} of {total} bytes")


def _check_headers(request: _Request, response: HTTPResponse) -> None:
    if response.status not in (200, 206):
        raise request.error(f"the server must answer with the file, got status {response.status}")
    if response.headers.get_content_type() == "text/html" and "Content-Type" in response.headers:
        raise request.error("the address must be that of a file, got a web page")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise request.error(f"the file must come as it is, got {show(encoding)} encoding")


def _continue(response: HTTPResponse, part: PartialFile) -> int:
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
        raise PassingError(f"the server continues with another part: {show(content_range)}")
    return total


def _validator(response: HTTPResponse) -> str:
    """What tells two versions of a file apart; a weak ETag does not to the byte."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check_room(request: _Request, part: PartialFile, total: int) -> None:
    if total > _LARGEST:
        raise request.error(f"a file of weights must have at most {_LARGEST} bytes, got {total}")
    free = shutil.disk_usage(part.folder).free
    if total - part.size > free:
        raise WeightsError(
            f"{part.folder}: the disk must have room for {total - part.size} bytes, got {free};"
            " make room, or set NATJAX_CACHE to another folder"
        )


def _is_cached(target: Path, sha256: str | None) -> bool:
    if not target.is_file():  # a pipe would be waited for
        return False
    try:
        with target.open("rb") as file:
            return sha256 is None or _digest(file) == sha256.lower()
    except OSError:
        return False


def _check_sum(part: PartialFile, url: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = _digest(part.content())
    if digest != sha256.lower():
        part.discard()
        raise WeightsError(f"{url}: the file's SHA-256 must be {sha256}, got {digest}")


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _progress(name: str, enabled: bool) -> Iterator[_Show]:
    """A bar on the standard error stream, where that is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, BarColumn(), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name)
        yield lambda done, total: bar.update(task, completed=done, total=total)
