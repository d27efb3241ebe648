"""Who is one client to the shipped nginx: an IPv4 address, or an IPv6 network of the size that one customer gets."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.conftest import DEADLINE
from tests.e2e.front import Front, nginx, rendered
from tests.ports import reserve, reserved

AS_IF = "set_real_ip_from 127.0.0.0/8; real_ip_header X-Test-From;"
"""The test says which address it comes from: this machine has one of IPv6."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx before nothing: what its limits let through is 503."""
    folder = tmp_path_factory.mktemp("nginx")
    with reserved() as port:
        text = rendered(folder, port, folder, "server 127.0.0.1:1;").replace("http {", f"http {{\n    {AS_IF}", 1)
        with nginx(folder, port, text):
            yield Front(port, folder)


def passed(front: Front, addresses: list[str], method: str = "POST") -> list[bool]:
    """Ask once from each address, all at once on one connection; return which requests got through.

    One after the other they would come more slowly than the limits are on a machine that is busy with other things.
    """
    asked = [
        f"{method} /nowhere HTTP/1.1\r\nHost: a\r\nX-Test-From: {one}\r\nContent-Length: 0\r\n\r\n" for one in addresses
    ]
    with socket.create_connection(("127.0.0.1", front.port), DEADLINE) as sock, sock.makefile("rb") as answers:
        statuses = []
        for start in range(0, len(asked), 100):
            some = asked[start : start + 100]
            sock.sendall("".join(some).encode())
            statuses += [read_status(answers) for _ in some]
    assert set(statuses) <= {429, 503}
    return [status == 503 for status in statuses]


def read_status(answers: IO[bytes]) -> int:
    """Read one answer of several on a connection."""
    status = int(answers.readline().split()[1])
    headers = http.client.parse_headers(answers)
    answers.read(int(headers["Content-Length"]))
    return status


# Pieces of addresses that a pattern over bytes could take for something else: a line feed, a NUL, what the next holds.
@pytest.mark.parametrize(
    "network", ["2001:db8:0:1", "2001:db8:a0a:a0a", "2001:db8:a00:a", "2001:db8:0:ffff", "2001:db8:2424:5c24"]
)
def test_all_addresses_of_an_ipv6_network_of_one_customer_share_its_limits(front: Front, network: str) -> None:
    sixty = [f"{network}:{number:x}:a:0:{number:x}" for number in range(1, 61)]
    through = passed(front, sixty)
    assert (through[:20], all(through)) == ([True] * 20, False)
    first, _, last = network.rpartition(":")
    beside = f"{first}:{int(last, 16) ^ 1:x}::1"
    assert passed(front, [beside]) == [True]


def test_reads_are_counted_by_network_too(front: Front) -> None:
    many = [f"2001:db8:0:7::{number:x}" for number in range(1, 401)]
    assert not all(passed(front, many, "GET"))
    assert passed(front, ["2001:db8:0:8::1"], "GET") == [True]


@pytest.mark.parametrize("form", ["192.0.2.{}", "::ffff:198.51.100.{}"], ids=["IPv4", "IPv4 in IPv6's form"])
def test_an_ipv4_address_is_a_client_of_its_own_in_either_form(front: Front, form: str) -> None:
    assert all(passed(front, [form.format(number) for number in range(1, 61)]))
    assert not all(passed(front, [form.format(77)] * 60))


def test_it_listens_on_ipv6_once_that_is_switched_on(tmp_path: Path) -> None:
    try:
        held = reserve("::1")
        port = held.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error.strerror}")
    with held, reserved() as other:
        text = rendered(tmp_path, other, tmp_path, "server 127.0.0.1:1;").replace("#v6 ", "")
        assert "listen [::]:80" in text
        with (
            nginx(tmp_path, port, text.replace("listen [::]:80", f"listen [::1]:{port}"), "::1"),
            closing(http.client.HTTPConnection("::1", port, timeout=DEADLINE)) as connection,
        ):
            connection.request("GET", "/")
            assert connection.getresponse().status == 503
