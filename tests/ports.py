"""Loopback ports that are nobody else's while a test needs them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


def reserve() -> socket.socket:
    """Return a socket that has a free port and does not listen: until it is closed the system gives the port to nobody.

    Connections are refused. A server may listen there as often as it likes, if it sets SO_REUSEADDR; all do that are
    used here.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


@contextmanager
def reserved() -> Iterator[int]:
    """Yield the number of such a port."""
    with reserve() as held:
        yield held.getsockname()[1]
