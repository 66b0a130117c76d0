"""Download of published weights: once, whole or not at all, and resumed where it broke off."""

import hashlib
import http.client
import os
import re
import shutil
import sys
import urllib.parse
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from time import sleep

from natjax.weights.errors import WeightsError, show
from natjax.weights.partial import Origin, PartialFile, partial_file
from natjax.weights.progress import ProgressBar
from natjax.weights.transport import (
    PassingError,
    RangeRefusedError,
    check_url,
    describe_failure,
    open_url,
)

_LARGEST = 2**36  # bytes; a server without end must not fill the disk
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
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-80:] or "weights"
    return folder / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"


def download(
    url: str,
    folder: Path,
    *,
    progress: bool = True,
    timeout: float = 30.0,
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
      sha256: What the file's SHA-256 must be, in hexadecimal.
      allow_http: Take unencrypted addresses of other machines too.
      attempts: How many times in a row to try without receiving anything.
      pause: Seconds to wait before the second attempt; doubled for each one after.
      chunk: Most bytes read at a time.

    Returns:
      The path of the whole file.

    Raises:
      WeightsError: it cannot be had, is not of the promised size or checksum, or cannot be written.
    """
    request = _Request(url, timeout, allow_http, chunk)
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
            name = target.name.partition("-")[2]
            with ProgressBar(name, progress) as bar:
                _fetch(request, part, bar, sha256 is not None, attempts, pause)
            _check_sum(part, url, sha256)
            part.finish(target)
    return target


@dataclass(frozen=True)
class _Request:
    url: str
    timeout: float
    allow_http: bool
    chunk: int

    def error(self, text: str) -> WeightsError:
        return WeightsError(f"{self.url}: {text}")


def _fetch(
    request: _Request,
    part: PartialFile,
    bar: ProgressBar,
    checked: bool,
    attempts: int,
    pause: float,
) -> None:
    """Try until the file is whole, or nothing has come several times in a row."""
    failures = 0
    while True:
        before = part.size
        try:
            return _attempt(request, part, bar, checked)
        except PassingError as error:
            failures = 0 if part.size > before else failures + 1
            if failures >= attempts:
                raise request.error(f"the download has failed: {error}; {_BY_HAND}") from error
            sleep(max(pause * 2 ** max(failures - 1, 0), error.wait))


def _attempt(request: _Request, part: PartialFile, bar: ProgressBar, checked: bool) -> None:
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
            request.url, headers, timeout=request.timeout, allow_http=request.allow_http
        ) as response:
            _receive(request, response, part, bar, checked)
    except RangeRefusedError as error:
        part.discard_bytes()
        raise PassingError("the server has no such part of the file") from error


def _receive(
    request: _Request,
    response: http.client.HTTPResponse,
    part: PartialFile,
    bar: ProgressBar,
    checked: bool,
) -> None:
    _check_headers(request, response)
    if response.status == 206:
        total = _continue(response, part)
    else:
        total = response.length
        if total is None and not response.chunked and not checked:
            raise request.error("the server must tell the file's size, or sha256 must be given")
        part.begin(Origin(_validator(response), total))
    if total is not None:
        _check_room(request, part, total)
    bar.show(part.size, total)
    while data := _read(response, request.chunk):
        part.append(data)
        bar.show(part.size, total)
        if part.size > (_LARGEST if total is None else total):
            part.discard_bytes()
            raise request.error(
                f"the server sends more than the {total or _LARGEST} bytes expected"
            )
    if total is not None and part.size < total:
        raise PassingError(f"the connection ended after {part.size} of {total} bytes")


def _check_headers(request: _Request, response: http.client.HTTPResponse) -> None:
    if response.status not in (200, 206):
        raise request.error(f"the server must answer with the file, got status {response.status}")
    if response.headers.get_content_type() == "text/html" and "Content-Type" in response.headers:
        raise request.error("the address must be that of a file, got a web page")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise request.error(f"the file must come as it is, got {show(encoding)} encoding")


def _continue(response: http.client.HTTPResponse, part: PartialFile) -> int:
    """Check that a part follows the bytes that are there; return the size of the whole file."""
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range)
    origin = part.origin
    first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
    same = origin and origin.total in (None, total) and _same_file(response, origin)
    if not same or first != part.size or last + 1 != total:
        part.discard_bytes()
        raise PassingError(f"the server continues with another part: {show(content_range)}")
    return total


def _same_file(response: http.client.HTTPResponse, origin: Origin) -> bool:
    """Some servers heed Range but not If-Range."""
    return _validator(response) in ("", origin.validator)


def _validator(response: http.client.HTTPResponse) -> str:
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


def _read(response: http.client.HTTPResponse, chunk: int) -> bytes:
    try:
        return response.read1(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(describe_failure(error)) from error


def _is_cached(target: Path, sha256: str | None) -> bool:
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


def _digest(file: BufferedReader | FileIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
