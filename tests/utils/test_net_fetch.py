"""Fetching from real listeners on loopback: redirects, names, certificates, slow, endless and lying peers."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE
from utils.file_handler import StorageFull
from utils.net import FetchError, FetchPolicy, fetch

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
OK = b"HTTP/1.1 200 OK\r\n"
Handler = Callable[[socket.socket], None]

# For the name media.test only, trusted by nothing but these tests.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBZTCCAQqgAwIBAgIBATAKBggqhkjOPQQDAjAVMRMwEQYDVQQDDAptZWRpYS50
ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAVMRMwEQYDVQQD
DAptZWRpYS50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEL2iOBTL4DdFr
rl4taxZLxQVz5pAOgguBFto1FHY4IN9nth2lHaGrSeFtd4pKO1a3H0L9QTg2fmib
2obPunWYlKNJMEcwFQYDVR0RBA4wDIIKbWVkaWEudGVzdDAPBgNVHRMBAf8EBTAD
AQH/MB0GA1UdDgQWBBRPMZJdf1gJpKuV6TThMWiTXpJRdDAKBggqhkjOPQQDAgNJ
ADBGAiEAubatHQLOHG1vty23w1OcdA2X2Wc53SL+6HLDfY8gbgMCIQC/6sUkgqmt
JhvMUemF+6dxUn/0AnIZdir4d4imbew9zw==
-----END CERTIFICATE-----
"""
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQged4e+jUV63gWpue4
KbbR290rOtA5Otm3MT0wTuD+4m2hRANCAAQvaI4FMvgN0WuuXi1rFkvFBXPmkA6C
C4EW2jUUdjgg32e2HaUdoatJ4W13iko7VrcfQv1BODZ+aJvahs+6dZiU
-----END PRIVATE KEY-----
"""


class Peer:
    """A listener on loopback that answers each connection with `handler` and counts them."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.gone = threading.Event()
        self._handler, self._tls = handler, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    self._serve(connection)
                self.gone.set()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        if self._tls:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            self.requests.append(connection.recv(65536))
            self._handler(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    with contextlib.ExitStack() as stack:

        def start(handler: Handler | bytes, tls: ssl.SSLContext | None = None) -> Peer:
            answer = handler if callable(handler) else (lambda connection: connection.sendall(handler))
            started = Peer(answer, tls)
            stack.callback(started.close)
            return started

        yield start


def policy(**changes: Any) -> FetchPolicy:
    return FetchPolicy(**{"max_bytes": 1000, "deadline_seconds": PATIENCE, "allowed_networks": LOOPBACK, **changes})


def answers(*addresses: str) -> Callable[..., list[tuple[Any, ...]]]:
    """A resolver that gives `addresses` for any name, and counts how often it was asked."""

    def resolve(_host: str, port: int, **_kwargs: object) -> list[tuple[Any, ...]]:
        resolve.asked += 1  # type: ignore[attr-defined]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    resolve.asked = 0  # type: ignore[attr-defined]
    return resolve


def test_a_plain_answer_is_written_and_counted(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(OK + b"Content-Length: 5\r\n\r\nhello")
    assert fetch(f"http://127.0.0.1:{server.port}/a?b=ä#frag", tmp_path / "f", policy()) == 5
    assert (tmp_path / "f").read_bytes() == b"hello"
    lines = server.requests[0].decode("ascii").split("\r\n")
    assert lines[0] == "GET /a?b=%C3%A4 HTTP/1.1"
    assert f"Host: 127.0.0.1:{server.port}" in lines
    assert "Accept-Encoding: identity" in lines


def test_chunks_are_joined(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(OK + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n")
    assert fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy()) == 6
    assert (tmp_path / "f").read_bytes() == b"hello!"


BAD_ANSWERS = {
    "404": b"HTTP/1.1 404 Not Found\r\n\r\n",
    "500": b"HTTP/1.1 500 x\r\n\r\n",
    "204": b"HTTP/1.1 204 x\r\n\r\n",
    "206": b"HTTP/1.1 206 x\r\n\r\nabc",
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "HTTP/0.9": b"hello",
    "promises more": OK + b"Content-Length: 10\r\n\r\nhello",
    "promises more than allowed": OK + b"Content-Length: 1001\r\n\r\n",
    "more than allowed, no length": OK + b"\r\n" + bytes(1001),
    "more than allowed, chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + bytes(1001) + b"\r\n0\r\n\r\n",
    "broken chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "gzip": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10_000_000))[:900],
    "two encodings": OK + b"Content-Encoding: identity\r\nContent-Encoding: br\r\n\r\nx",
    "gzip as transfer": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "endless head": OK + b"".join(b"X-%d: y\r\n" % i for i in range(300)) + b"\r\nx",
    "long head line": OK + b"X: " + b"y" * 70_000 + b"\r\n\r\nx",
    "redirect to nowhere": b"HTTP/1.1 302 x\r\n\r\n",
    "redirect to junk": b"HTTP/1.1 302 x\r\nLocation: http://[::1/\r\n\r\n",
    "redirect to a file": b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n",
    "redirect with a space": b"HTTP/1.1 302 x\r\nLocation: /a HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_is_one_line_and_leaves_nothing(peer: Callable[..., Peer], tmp_path: Path, answer: bytes) -> None:
    server = peer(answer)
    with pytest.raises(FetchError) as refused:
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy())
    assert "\n" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    assert server.connections == 1


def test_a_body_exactly_at_the_limit_passes(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(OK + b"\r\n" + bytes(1000))
    assert fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy()) == 1000


def _endless(head: bytes, piece: bytes) -> Handler:
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return send


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"\r\n", bytes(65536)),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", bytes(65536)),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", bytes(65536)),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["body", "chunks", "chunk of size -1", "huge chunk", "trailers", "100 Continue"],
)
def test_an_endless_peer_is_left_soon_at_the_limit_of_received_bytes(
    peer: Callable[..., Peer], tmp_path: Path, head: bytes, piece: bytes
) -> None:
    server = peer(_endless(head, piece))
    with pytest.raises(FetchError, match="larger"):
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy())
    assert list(tmp_path.iterdir()) == []
    assert server.gone.wait(PATIENCE), "the connection was left open"


def _drip(head: bytes, piece: bytes) -> Handler:
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(0.1)  # the drip itself: 900 bytes take a minute and a half

    return send


DRIPS = {
    "silence": lambda connection: connection.recv(1),
    "status line": _drip(b"", b"H"),
    "head": _drip(OK, b"X: y\r\n"),
    "body": _drip(OK + b"Content-Length: 900\r\n\r\n", b"x"),
    "body without length": _drip(OK + b"\r\n", b"x"),
    "chunks": _drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "chunk size": _drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "body that stops": lambda connection: (connection.sendall(OK + b"\r\nabc"), connection.recv(1)),
}


@pytest.mark.parametrize("handler", DRIPS.values(), ids=DRIPS.keys())
def test_a_slow_peer_is_left_at_the_total_deadline(peer: Callable[..., Peer], tmp_path: Path, handler: Handler) -> None:
    server = peer(handler)
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"longer than 0\.4 s in all"):
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy(deadline_seconds=0.4))
    assert time.monotonic() - began < PATIENCE
    assert list(tmp_path.iterdir()) == []
    assert server.gone.wait(PATIENCE), "the connection was left open"


def test_a_fetch_whose_time_is_up_says_so_also_where_nobody_came_to_end_it(
    peer: Callable[..., Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.net._Watchdog._bark", lambda watchdog: None)  # as on a machine that stands still
    server = peer(DRIPS["silence"])
    with pytest.raises(FetchError, match=r"longer than 0\.4 s in all"):
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy(deadline_seconds=0.4))


def test_a_resolver_that_hangs_is_left_at_the_deadline(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(*_args: object, **_kwargs: object) -> list[tuple[Any, ...]]:
        release.wait(PATIENCE)
        return []

    with pytest.raises(FetchError, match=r"longer than 0\.3 s in all"):
        fetch("http://media.test/", tmp_path / "f", policy(deadline_seconds=0.3), resolver=hang)
    release.set()


def test_no_thread_or_descriptor_outlives_a_fetch(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(OK + b"\r\nx")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / str(number), policy())
    for thread in threading.enumerate():
        if thread.name == "fetch-deadline":
            thread.join(PATIENCE)
            assert not thread.is_alive()
    # One may be the server's own last connection, which it closes in its own time.
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1


# -- where it leads ------------------------------------------------------------------------------------------------


LOOPBACKS = [
    "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "017700000001", "0", "[::ffff:127.0.0.1]", "[::1]",
    "[64:ff9b::7f00:1]", "localhost.",
]  # fmt: skip
CLOSED_ANSWERS: list[tuple[str, ...]] = [
    ("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("8.8.8.8", "::1"), ("fe80::1%1",),
    ("not an address",), (),
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACKS)
def test_loopback_in_any_notation_gets_no_connection(peer: Callable[..., Peer], tmp_path: Path, host: str) -> None:
    server = peer(OK + b"\r\nx")
    closed = policy(allowed_networks=(), allowed_ports=(server.port,))
    with pytest.raises(FetchError):
        fetch(f"http://{host}:{server.port}/", tmp_path / "f", closed)
    assert server.connections == 0


@pytest.mark.parametrize("addresses", CLOSED_ANSWERS)
def test_one_closed_answer_of_the_resolver_refuses_the_name(
    peer: Callable[..., Peer], tmp_path: Path, addresses: tuple[str, ...]
) -> None:
    server = peer(OK + b"\r\nx")
    closed = policy(allowed_networks=(), allowed_ports=(server.port,))
    with pytest.raises(FetchError):
        fetch(f"http://media.test:{server.port}/", tmp_path / "f", closed, resolver=answers(*addresses))
    assert server.connections == 0


def test_a_name_that_does_not_resolve_is_the_users_fault(tmp_path: Path) -> None:
    def fail(*_args: object, **_kwargs: object) -> list[tuple[Any, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(FetchError, match="no address"):
        fetch("http://media.test/", tmp_path / "f", policy(), resolver=fail)


def test_a_name_is_resolved_once_and_that_answer_is_connected_to(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(OK + b"\r\nx")
    resolver = answers("127.0.0.1")
    fetch(f"http://media.test:{server.port}/", tmp_path / "f", policy(), resolver=resolver)
    assert resolver.asked == 1  # type: ignore[attr-defined]
    assert f"Host: media.test:{server.port}".encode() in server.requests[0]


def test_the_next_address_is_tried_when_one_does_not_answer(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(OK + b"\r\nx")
    resolver = answers("127.0.0.2", "127.0.0.1")
    assert fetch(f"http://media.test:{server.port}/", tmp_path / "f", policy(), resolver=resolver) == 1


@pytest.mark.parametrize("location", ["//127.1:{port}/", "http://0x7f000001:{port}/",
                                      "http://[::ffff:127.0.0.1]:{port}/", "http://169.254.169.254/latest/meta-data",
                                      "http://127.0.0.2:{port}/", "http://u:p@127.0.0.1:{port}/"])  # fmt: skip
def test_a_redirect_passes_the_same_gate_before_any_connection(
    peer: Callable[..., Peer], tmp_path: Path, location: str
) -> None:
    target = peer(OK + b"\r\nsecret")
    first = peer(f"HTTP/1.1 302 x\r\nLocation: {location.format(port=target.port)}\r\n\r\n".encode())
    only_first = policy(allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),), allowed_ports=(target.port,))
    with pytest.raises(FetchError):
        fetch(f"http://127.0.0.1:{first.port}/", tmp_path / "f", only_first)
    assert (first.connections, target.connections) == (1, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_changes_its_address_between_hops_is_caught(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(lambda connection: connection.sendall(b"HTTP/1.1 302 x\r\nLocation: /again\r\n\r\n"))
    given = iter(["127.0.0.1", "10.0.0.1"])

    def rebinding(host: str, port: int, **_kwargs: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(given), port))]

    with pytest.raises(FetchError, match="not public"):
        fetch(f"http://media.test:{server.port}/", tmp_path / "f", policy(), resolver=rebinding)
    assert server.connections == 1


def test_three_redirects_are_followed_and_a_fourth_is_not(peer: Callable[..., Peer], tmp_path: Path) -> None:
    def hops(connection: socket.socket) -> None:
        left = int(server.requests[-1].split()[1][1:])
        step = b"HTTP/1.1 307 x\r\nLocation: /%d\r\n\r\n" % (left - 1)
        connection.sendall(step if left else OK + b"\r\nx")

    server = peer(hops)
    assert fetch(f"http://127.0.0.1:{server.port}/3", tmp_path / "f", policy()) == 1
    with pytest.raises(FetchError, match="more than 3 times"):
        fetch(f"http://127.0.0.1:{server.port}/4", tmp_path / "g", policy())
    assert server.connections == 8


def test_proxies_of_the_environment_are_not_used(
    peer: Callable[..., Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, proxy = peer(OK + b"\r\nx"), peer(OK + b"\r\nproxied")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy())
    assert proxy.connections == 0


# -- certificates --------------------------------------------------------------------------------------------------


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's that trusts it)."""
    pem = tmp_path / "pem"
    pem.write_text(CERTIFICATE + KEY)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    pem.unlink()
    return server, ssl.create_default_context(cadata=CERTIFICATE)


def test_tls_names_the_host_though_it_connects_to_the_address(
    peer: Callable[..., Peer], tmp_path: Path, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    named: list[str | None] = []
    contexts[0].sni_callback = lambda _socket, name, _context: named.append(name)
    server = peer(OK + b"Content-Length: 1\r\n\r\nx", contexts[0])
    url = f"https://media.test:{server.port}/"
    assert fetch(url, tmp_path / "f", policy(), resolver=answers("127.0.0.1"), tls=contexts[1]) == 1
    assert named == ["media.test"]


@pytest.mark.parametrize(("host", "trusting"), [("media.test", False), ("other.test", True), ("127.0.0.1", True)])
def test_a_certificate_that_is_untrusted_or_anothers_is_refused(
    peer: Callable[..., Peer],
    tmp_path: Path,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    host: str,
    trusting: bool,
) -> None:
    server = peer(OK + b"\r\nx", contexts[0])
    with pytest.raises(FetchError, match="certificate"):
        fetch(f"https://{host}:{server.port}/", tmp_path / "f", policy(), resolver=answers("127.0.0.1"),
              tls=contexts[1] if trusting else None)  # fmt: skip
    assert server.requests == []


def test_a_handshake_that_drips_meets_the_deadline_too(peer: Callable[..., Peer], tmp_path: Path) -> None:
    server = peer(_drip(b"\x16\x03\x03\x40\x00", b"\x00"))
    with pytest.raises(FetchError, match="longer than"):
        fetch(f"https://127.0.0.1:{server.port}/", tmp_path / "f", policy(deadline_seconds=0.4))


def test_a_redirect_from_https_to_http_is_refused(
    peer: Callable[..., Peer], tmp_path: Path, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    plain = peer(OK + b"\r\nx")
    secure = peer(f"HTTP/1.1 301 x\r\nLocation: http://127.0.0.1:{plain.port}/\r\n\r\n".encode(), contexts[0])
    with pytest.raises(FetchError, match="https to http"):
        fetch(f"https://media.test:{secure.port}/", tmp_path / "f", policy(), resolver=answers("127.0.0.1"),
              tls=contexts[1])  # fmt: skip
    assert plain.connections == 0


# -- the disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_the_services_fault_not_the_peers(
    peer: Callable[..., Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    server = peer(OK + b"\r\nx")
    with pytest.raises(StorageFull):
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_destination_is_left_as_it_is(peer: Callable[..., Peer], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    server = peer(OK + b"\r\nx")
    with pytest.raises(FileExistsError):
        fetch(f"http://127.0.0.1:{server.port}/", tmp_path / "f", policy())
    assert (tmp_path / "f").read_bytes() == b"old"
