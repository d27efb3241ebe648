"""Fetching and telling a URL that a stranger wrote, without becoming the stranger's hand inside the network.

Theory: what is checked is what is used. A host is resolved once per hop, every answer must be allowed, the connection
is made to one of exactly those addresses, and the name serves only for the Host header, SNI and the certificate. A
redirect is a new URL and passes the same gate. Time is one total budget: a socket's timeout starts anew with each byte,
so a peer that drips never meets it, and a watchdog shuts the connection down from another thread. Bytes are counted
where they leave the socket, below every parser that a peer's length fields could talk into reading more.

Proxies of the environment are not used: a proxy would connect to an address nobody here has checked.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin

from utils.file_handler import TooLarge, readable_bytes, save_stream
from utils.urls import Address, FetchError, FetchPolicy, Target, admit, check_url, is_public, literal, parse_url

__all__ = ["FetchError", "FetchPolicy", "Reply", "check_url", "fetch", "is_public", "post"]

Resolver = Callable[..., Sequence[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or a stand-in for it."""

MAX_ADDRESSES_TRIED = 3
MAX_OVERHEAD_BYTES = 1 << 20
"""Room for the head of an answer; its chunk frames may take as much as the body again."""

USER_AGENT = "live-avatar-service"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _PeerFault(Exception):
    """The connection or the protocol failed; the text is for the user."""


class _TooMuch(Exception):
    """More bytes came than can belong to an answer within the limit. No ValueError, which http.client would swallow."""


def fetch(
    url: str,
    destination: Path,
    policy: FetchPolicy,
    *,
    resolver: Resolver = socket.getaddrinfo,
    tls: ssl.SSLContext | None = None,
) -> int:
    """Write what `url` answers to the new file `destination` and return its number of bytes.

    Raises FetchError for all that is the URL's or its server's fault, StorageFull, FileExistsError. On failure nothing
    is left on disk. `tls` replaces the system's trusted authorities.
    """
    with _in_time(policy) as watchdog, _final_answer(url, policy, watchdog, resolver, tls) as answer:
        return save_stream(_Body(answer, watchdog), destination, policy.max_bytes).size_bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered to a post: the status, and the header `Retry-After` or nothing."""

    status: int
    retry_after: str


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: FetchPolicy,
    *,
    resolver: Resolver = socket.getaddrinfo,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """Send `body` to `url`. A redirect is an answer like any other, and what comes behind the head is not read.

    `headers` are this service's own, never a stranger's. Raises FetchError like `fetch`, but for no status.
    """
    request = _Request("POST", {**headers, "Content-Length": str(len(body))}, body)
    with _in_time(policy) as watchdog, _answer(url, request, policy, watchdog, resolver, tls) as answer:
        if watchdog.barked:  # its shutdown reads as the end of the head
            raise _PeerFault("the URL's answer broke off")
        return Reply(answer.status, answer.getheader("Retry-After", ""))


@contextlib.contextmanager
def _in_time(policy: FetchPolicy) -> Iterator[_Watchdog]:
    """Let the policy's time run, and make all that is the URL's or its server's fault a FetchError."""
    watchdog = _Watchdog(policy.deadline_seconds)
    try:
        yield watchdog
    except (FetchError, TooLarge, _PeerFault, _TooMuch) as error:
        if watchdog.is_over:
            raise FetchError(f"the URL's server took longer than {policy.deadline_seconds:g} s in all") from None
        if isinstance(error, TooLarge | _TooMuch):
            raise FetchError(_too_large(policy)) from None
        raise FetchError(str(error)) from None
    finally:
        watchdog.cancel()


def _too_large(policy: FetchPolicy) -> str:
    return f"the URL's answer is larger than {readable_bytes(policy.max_bytes)}"


@contextlib.contextmanager
def _peer() -> Iterator[None]:
    """Mark errors of the network as the peer's, so that an OSError of the disk is never taken for one."""
    try:
        yield
    except ssl.SSLCertVerificationError:
        raise _PeerFault("the URL's server has no valid certificate") from None
    except (OSError, http.client.HTTPException, ValueError):
        raise _PeerFault("the connection to the URL's server failed") from None


# -- one hop after another -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _final_answer(
    url: str, policy: FetchPolicy, watchdog: _Watchdog, resolver: Resolver, tls: ssl.SSLContext | None
) -> Iterator[http.client.HTTPResponse]:
    """Follow redirects, each checked as if it were the first URL, and yield the answer with status 200."""
    for _ in range(policy.max_redirects + 1):
        with _answer(url, _GET, policy, watchdog, resolver, tls) as answer:
            if answer.status not in _REDIRECTS:
                _check_head(answer, policy)
                yield answer
                return
            url = _redirect(url, answer)
    raise FetchError(f"the URL redirects more than {policy.max_redirects} times")


@contextlib.contextmanager
def _answer(
    url: str,
    request: _Request,
    policy: FetchPolicy,
    watchdog: _Watchdog,
    resolver: Resolver,
    tls: ssl.SSLContext | None,
) -> Iterator[http.client.HTTPResponse]:
    """Check one URL, connect to an address that was admitted, and yield the head of what it answers."""
    check_url(url, policy)
    target = parse_url(url)
    addresses = _resolve(target, policy, watchdog, resolver)
    with contextlib.ExitStack() as open_now:
        connection = open_now.enter_context(_connect(target, addresses, policy, watchdog))
        if target.scheme == "https":
            connection = open_now.enter_context(_encrypt(connection, target, tls))
        yield open_now.enter_context(contextlib.closing(_ask(connection, target, request, policy)))


def _redirect(url: str, answer: http.client.HTTPResponse) -> str:
    location = answer.getheader("Location", "")
    try:
        following = urljoin(url, location)
    except ValueError:
        location = ""
    if not location:
        raise FetchError("the URL redirects to nowhere")
    if url.startswith("https:") and following.startswith("http:"):
        raise FetchError("the URL redirects from https to http")
    return following


def _resolve(target: Target, policy: FetchPolicy, watchdog: _Watchdog, resolver: Resolver) -> list[Address]:
    """Return the addresses of the host, every one of them admitted."""
    address = literal(target.host)
    found = [address] if address else _look_up(target, watchdog, resolver)
    for address in found:
        admit(address, target.port, policy)
    return list(dict.fromkeys(found))


def _look_up(target: Target, watchdog: _Watchdog, resolver: Resolver) -> list[Address]:
    # In a thread of its own, for getaddrinfo knows no timeout; the box keeps a late answer from anyone.
    box: queue.SimpleQueue[Sequence[tuple[Any, ...]]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            box.put(resolver(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, ValueError):
            box.put(())

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        addresses = [ipaddress.ip_address(answer[4][0]) for answer in box.get(timeout=watchdog.left)]
    except (queue.Empty, ValueError):
        raise FetchError("the URL's host could not be resolved") from None
    if not addresses:
        raise FetchError("the URL's host has no address")
    return addresses


def _connect(target: Target, addresses: Sequence[Address], policy: FetchPolicy, watchdog: _Watchdog) -> socket.socket:
    for address in addresses[:MAX_ADDRESSES_TRIED]:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(min(policy.connect_timeout, watchdog.left))
            connection.connect((str(address), target.port))
            connection.settimeout(watchdog.left + 1)  # never before the watchdog, which knows the reason
            watchdog.watch(connection)
        except OSError:
            connection.close()
        else:
            return connection
    raise FetchError("the URL's server cannot be reached")


def _encrypt(connection: socket.socket, target: Target, tls: ssl.SSLContext | None) -> ssl.SSLSocket:
    with _peer():
        return (tls or ssl.create_default_context()).wrap_socket(connection, server_hostname=target.host)


# -- one request ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of a server, but for its name and the path."""

    method: str
    headers: Mapping[str, str]
    body: bytes = b""

    def to(self, target: Target) -> bytes:
        """Return the bytes that are sent."""
        # Built by hand from checked parts: http.client.HTTPConnection would connect by name.
        lines = (
            f"{self.method} {target.path} HTTP/1.1",
            f"Host: {target.host_header}",
            f"User-Agent: {USER_AGENT}",
            "Accept: */*",
            "Accept-Encoding: identity",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii") + self.body


_GET = _Request("GET", {})


def _ask(connection: socket.socket, target: Target, request: _Request, policy: FetchPolicy) -> http.client.HTTPResponse:
    """Send the request and read the head of the answer."""
    with _peer():
        connection.sendall(request.to(target))
        metered = _Metered(connection, 2 * policy.max_bytes + MAX_OVERHEAD_BYTES)
        answer = http.client.HTTPResponse(cast(socket.socket, metered), method=request.method)
        answer.begin()
        return answer


def _check_head(answer: http.client.HTTPResponse, policy: FetchPolicy) -> None:
    if answer.status != 200:
        raise FetchError(f"the URL's server answered {answer.status}")
    # Nothing is ever unpacked: what is counted is what arrives.
    content = answer.getheader("Content-Encoding", "identity").strip().lower()
    transfer = answer.getheader("Transfer-Encoding", "chunked").strip().lower()
    if content != "identity" or transfer != "chunked":
        raise FetchError("the URL's answer is compressed, though it was asked not to be")
    if answer.length is not None and answer.length > policy.max_bytes:
        raise FetchError(_too_large(policy))


class _Body:
    """The answer's body as `save_stream` reads it; an error, not an end, where the peer promised more."""

    def __init__(self, answer: http.client.HTTPResponse, watchdog: _Watchdog) -> None:
        self._answer = answer
        self._watchdog = watchdog
        self._promised = answer.length

    def read(self, size: int) -> bytes:
        with _peer():
            data = self._answer.read(size)
        if self._promised is not None:
            self._promised -= len(data)
        # The watchdog's own shutdown reads as the end of an answer that has no length.
        if not data and (self._promised or self._watchdog.barked):
            raise _PeerFault("the URL's answer broke off")
        return data


class _Metered(io.RawIOBase):
    """What http.client reads in place of the socket: the same bytes, up to a limit.

    A chunk of size -1 makes http.client read to the end of the stream into memory, and heads and trailers have no
    common limit: so the bytes are counted below it.
    """

    def __init__(self, connection: socket.socket, most: int) -> None:
        self._connection = connection
        self._left = most

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._connection.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise _TooMuch
        return count


# -- time ----------------------------------------------------------------------------------------------------------


class _Watchdog:
    """Ends whatever connection is being used when the fetch's time is up."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._guard: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._bark)
        self._timer.daemon, self._timer.name = True, "fetch-deadline"
        self.barked = False
        self._timer.start()

    @property
    def left(self) -> float:
        """Seconds left, never under 1 ms, for a timeout of 0 would mean non-blocking."""
        return max(self._ends - time.monotonic(), 0.001)

    @property
    def is_over(self) -> bool:
        """Whether the time is up, by the clock: the thread that is to bark may come late to it."""
        return self.barked or time.monotonic() >= self._ends

    def watch(self, connection: socket.socket) -> None:
        # A duplicate of the descriptor: TLS moves the original into another object, and a shutdown through any
        # duplicate ends the connection for all, without touching an SSL object that another thread is using.
        guard = connection.dup()
        with self._lock:
            self._release()
            self._guard = guard
            if self.barked:
                self._shut()

    def cancel(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._release()

    def _bark(self) -> None:
        with self._lock:
            self.barked = True
            self._shut()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            if self._guard is not None:
                self._guard.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        if self._guard is not None:
            self._guard.close()
            self._guard = None
