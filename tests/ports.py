"""Loopback ports that are nobody else's while a test needs them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


def reserve(address: str = "127.0.0.1") -> socket.socket:
    """Return a socket that has a free port and does not listen: until it is closed the system gives the port to nobody.

    Connections are refused. A server may listen there as often as it likes, if it sets SO_REUSEADDR; all do that are
    used here. Raises OSError where there is no such address.
    """
    held = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((address, 0))
    except OSError:
        held.close()
        raise
    return held


@contextmanager
def reserved(address: str = "127.0.0.1") -> Iterator[int]:
    """Yield the number of such a port."""
    with reserve(address) as held:
        yield held.getsockname()[1]
