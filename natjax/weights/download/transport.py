"""HTTP and HTTPS requests with the standard library, and nothing but HTTP and HTTPS.

A server can redirect to any address; a file of this machine, another scheme, or a step from HTTPS
down to HTTP are refused. It can also send a byte a minute, for ever: the time of each request is
bounded as a whole, which no timeout of a socket does.
"""

import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from typing import Any

from natjax.weights.errors import WeightsError, show

# Timeout, too early, too many requests, and what servers and gateways say when overloaded.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60  # seconds that a server may ask for
_MEANING = {
    401: "the address needs a login",
    403: "the server does not allow it",
    404: "there is no such file",
    410: "the file is no longer there",
}


class PassingError(Exception):
    """A failure that may not be there the next time.

    Attributes:
      wait: Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait: int = 0):
        super().__init__(reason)
        self.wait = wait


class RangeRefusedError(Exception):
    """The server does not have the part of the file that was asked for."""


def check_url(url: str, allow_http: bool) -> None:
    """Refuse an address that cannot be downloaded from.

    Args:
      url: The address.
      allow_http: Whether unencrypted addresses of other machines will do.
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
    if parts.scheme == "http" and not (allow_http or _is_local(parts.hostname)):
        raise WeightsError(
            f"{url}: an address must begin with https://, or others on the way could change the"
            " file; allow_http=True takes it anyway"
        )


@contextlib.contextmanager
def open_url(
    url: str, headers: dict[str, str], *, timeout: float, seconds: float, allow_http: bool
) -> Iterator[http.client.HTTPResponse]:
    """Send a GET request and give the response, with a status of success.

    Args:
      url: The address.
      headers: Of the request.
      timeout: Longest silence of the server, in seconds.
      seconds: Time for all of it; then the connection is closed, wherever it is.
      allow_http: As for `check_url`.

    Raises:
      PassingError: it may work later.
      RangeRefusedError: status 416.
      WeightsError: it will not work.
    """
    check_url(url, allow_http)
    request = urllib.request.Request(url, headers=headers)
    with _ended_after(seconds) as sockets:
        with _translated(url):
            response = _opener(allow_http, sockets).open(request, timeout=min(timeout, seconds))
        with response:
            yield response


def read_some(response: http.client.HTTPResponse, most: int) -> bytes:
    """Return the next bytes of a response, at most so many; none at its end.

    Raises:
      PassingError: the connection has broken off.
    """
    try:
        return response.read1(most)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last: ended by us
        raise PassingError(_describe(error)) from error


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what urllib raises into our errors; texts of servers go no further."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(url, error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise WeightsError(
                f"{url}: the server's certificate is not valid: {error.reason.verify_message}"
            ) from error
        raise PassingError(_describe(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(_describe(error)) from None
    except ValueError as error:  # ours, or what urllib raises for an address it cannot parse
        raise WeightsError(f"{url}: the server's redirect cannot be followed: {error}") from None


def _describe(error: object) -> str:
    """What a network error means, in words."""
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the server has closed the connection"
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    return show(str(text).strip(), bare=True) if str(text).strip() else type(error).__name__


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[list[socket.socket]]:
    """Close the sockets that are put into the list once the time is over."""
    sockets: list[socket.socket] = []

    def end() -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield sockets
    finally:
        timer.cancel()


def _connection(
    kind: type[http.client.HTTPConnection], sockets: list[socket.socket], *args: Any, **options: Any
) -> http.client.HTTPConnection:
    """A connection whose socket is put into a list."""
    connection = kind(*args, **options)
    connect = connection.connect

    def connect_and_tell() -> None:
        connect()
        sockets.append(connection.sock)

    connection.connect = connect_and_tell
    return connection


class _HTTP(urllib.request.HTTPHandler):
    def __init__(self, sockets: list[socket.socket]):
        super().__init__()
        self._connection = functools.partial(_connection, http.client.HTTPConnection, sockets)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _HTTPS(urllib.request.HTTPSHandler):
    def __init__(self, sockets: list[socket.socket]):
        super().__init__()
        self._connection = functools.partial(_connection, http.client.HTTPSConnection, sockets)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req, context=ssl.create_default_context())


def _opener(allow_http: bool, sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Build an opener without the handlers of ``file:``, ``ftp:`` and ``data:``."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HTTP(sockets),
        _HTTPS(sockets),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(allow_http),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects that lead to HTTPS, or from HTTP to HTTP where that is allowed."""

    def __init__(self, allow_http: bool):
        self._allow_http = allow_http

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message
    ) -> Any:
        """Close the response first, whose body would be read otherwise, however long."""
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Check the new address."""
        check_url(newurl, self._allow_http)
        if urllib.parse.urlsplit(req.full_url).scheme == "https" != newurl[:5].lower():
            raise WeightsError(f"{req.full_url} must not redirect to {newurl}, unencrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _status_error(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:
        return RangeRefusedError()
    text = f"the server answers with status {error.code}"
    if error.code in _PASSING:
        wait = error.headers.get("Retry-After", "") if error.headers else ""
        return PassingError(text, min(int(wait[:9]), _LONGEST_WAIT) if wait.isdecimal() else 0)
    reason = show(str(error.reason))
    if 300 <= error.code < 400:
        reason = show(str(error.reason), longest=300)
        return WeightsError(f"{url}: the server's redirect cannot be followed: {reason}")
    return WeightsError(f"{url}: {text}: {_MEANING.get(error.code) or reason}")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
