"""HTTP and HTTPS requests with the standard library, and nothing but HTTP and HTTPS.

A server can redirect to any address; a file of this machine, another scheme, or a step from HTTPS
down to HTTP are refused.
"""

import http.client
import ipaddress
import ssl
import urllib.error
import urllib.parse
import urllib.request
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
    416: "the server does not have the part that was asked for",
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


def open_url(
    url: str, headers: dict[str, str], *, timeout: float, allow_http: bool
) -> http.client.HTTPResponse:
    """Send a GET request and return the response with status 200 or 206; to be closed.

    Args:
      url: The address.
      headers: Of the request.
      timeout: Longest silence of the server, in seconds.
      allow_http: As for `check_url`.

    Raises:
      PassingError: it may work later.
      RangeRefusedError: status 416.
      WeightsError: it will not work.
    """
    check_url(url, allow_http)
    request = urllib.request.Request(url, headers=headers)
    try:
        return _opener(allow_http).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(url, error) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise WeightsError(
                f"{url}: the server's certificate is not valid: {error.reason.verify_message}"
            ) from error
        raise PassingError(describe_failure(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(describe_failure(error)) from error
    except ValueError as error:  # ours, or what urllib raises for an address it cannot parse
        raise WeightsError(f"{url}: the server's redirect cannot be followed: {error}") from error


def describe_failure(error: object) -> str:
    """Return what a network error means, in words.

    Args:
      error: An exception or a text.
    """
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the server has closed the connection"
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    return str(text) or type(error).__name__


def _opener(allow_http: bool) -> urllib.request.OpenerDirector:
    """Build an opener without the handlers of ``file:``, ``ftp:`` and ``data:``."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
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
    if 300 <= error.code < 400:
        return WeightsError(
            f"{url}: the server's redirect cannot be followed: {show(error.reason)}"
        )
    return WeightsError(f"{url}: {text}: {_MEANING.get(error.code) or show(error.reason)}")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
