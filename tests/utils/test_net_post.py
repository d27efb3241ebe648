"""Telling real listeners on loopback: what is sent, what is read, and that the rules of fetching hold."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import PATIENCE
from tests.utils.test_net_fetch import (
    CLOSED_ANSWERS,
    DRIPS,
    LOOPBACKS,
    OK,
    Handler,
    Peer,
    answers,
    contexts,  # noqa: F401 - a fixture
    peer,  # noqa: F401 - a fixture
    policy,
)  # fmt: skip
from utils.net import FetchError, Reply, post

BODY = b'{"type":"task.completed"}'
HEADERS = {"Content-Type": "application/json", "webhook-id": "msg_1"}
Listen = Callable[..., Peer]


def url(server: Peer, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.port}/hooks?token=t"


def test_the_body_and_the_headers_arrive_and_the_status_comes_back(peer: Listen) -> None:  # noqa: F811
    server = peer(b"HTTP/1.1 429 x\r\nRetry-After: 7\r\n\r\n")
    assert post(url(server), BODY, HEADERS, policy()) == Reply(429, "7")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0] == "POST /hooks?token=t HTTP/1.1"
    assert {f"Host: 127.0.0.1:{server.port}", "webhook-id: msg_1", f"Content-Length: {len(BODY)}"} <= set(lines)
    assert body == BODY


def test_a_redirect_is_not_followed(peer: Listen) -> None:  # noqa: F811
    target = peer(OK + b"\r\n")
    first = peer(f"HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:{target.port}/\r\n\r\n".encode())
    assert post(url(first), BODY, HEADERS, policy()).status == 307
    assert target.connections == 0


@pytest.mark.parametrize("host", LOOPBACKS)
def test_loopback_in_any_notation_is_told_nothing(peer: Listen, host: str) -> None:  # noqa: F811
    server = peer(OK + b"\r\n")
    closed = policy(allowed_networks=(), allowed_ports=(server.port,))
    with pytest.raises(FetchError):
        post(url(server, host), BODY, HEADERS, closed)
    assert server.connections == 0


@pytest.mark.parametrize("addresses", CLOSED_ANSWERS)
def test_a_name_with_one_closed_address_is_told_nothing(peer: Listen, addresses: tuple[str, ...]) -> None:  # noqa: F811
    server = peer(OK + b"\r\n")
    closed = policy(allowed_networks=(), allowed_ports=(server.port,))
    with pytest.raises(FetchError):
        post(url(server, "hook.test"), BODY, HEADERS, closed, resolver=answers(*addresses))
    assert server.connections == 0


@pytest.mark.parametrize("name", ["silence", "status line", "head"])
def test_a_slow_receiver_is_left_at_the_total_deadline(peer: Listen, name: str) -> None:  # noqa: F811
    handler: Handler = DRIPS[name]
    server, began = peer(handler), time.monotonic()
    with pytest.raises(FetchError, match=r"longer than 0\.4 s in all"):
        post(url(server), BODY, HEADERS, policy(deadline_seconds=0.4))
    assert time.monotonic() - began < PATIENCE
    assert server.gone.wait(PATIENCE), "the connection was left open"


@pytest.mark.parametrize("name", ["body", "body without length", "chunks"])
def test_what_comes_behind_the_head_is_not_waited_for(peer: Listen, name: str) -> None:  # noqa: F811
    server, began = peer(DRIPS[name]), time.monotonic()
    assert post(url(server), BODY, HEADERS, policy()).status == 200
    assert time.monotonic() - began < PATIENCE / 2
    assert server.gone.wait(PATIENCE), "the connection was left open"


def test_an_endless_head_is_left_at_a_limit(peer: Listen) -> None:  # noqa: F811
    def flood(connection: Any) -> None:
        connection.sendall(OK)
        while True:
            connection.sendall(b"X: " + b"y" * 60_000 + b"\r\n")

    with pytest.raises(FetchError):
        post(url(peer(flood)), BODY, HEADERS, policy())


def test_a_receiver_that_reads_nothing_is_left_at_the_deadline(peer: Listen) -> None:  # noqa: F811
    let_go = threading.Event()
    server = peer(lambda connection: let_go.wait(PATIENCE))
    with pytest.raises(FetchError, match="in all"):
        post(url(server), b"x" * 50_000_000, HEADERS, policy(deadline_seconds=0.5))
    let_go.set()


@pytest.mark.parametrize(("host", "trusting", "status"), [("media.test", True, 200), ("media.test", False, None),
                                                         ("other.test", True, None)])  # fmt: skip
def test_the_receiver_must_have_a_trusted_certificate_of_its_name(
    peer: Listen,  # noqa: F811
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],  # noqa: F811
    host: str,
    trusting: bool,
    status: int | None,
) -> None:
    server, tls = peer(OK + b"\r\n", contexts[0]), contexts[1] if trusting else None

    def tell() -> int:
        told = f"https://{host}:{server.port}/"
        return post(told, BODY, HEADERS, policy(), resolver=answers("127.0.0.1"), tls=tls).status

    if status is not None:
        assert tell() == status
        return
    with pytest.raises(FetchError, match="certificate"):
        tell()
    assert server.requests == []
