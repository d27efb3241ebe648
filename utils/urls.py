"""Which URLs and which addresses a stranger may make the service connect to. Pure: nothing is resolved or opened here.

A host is judged twice: as text, where only the one plain notation of an address is accepted, and as the addresses it
resolves to, where anything but an ordinary public host is refused unless the operator opened its network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"(?=.{1,253}\.?\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*\.?", re.IGNORECASE)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)

# IANA's special-purpose registries (RFC 6890 and updates, read in 2026), less what is globally reachable, plus what
# clouds have put on public numbers. `ipaddress.is_global` of Python 3.11 lets several of them through.
_CLOSED_V4 = tuple(map(ipaddress.IPv4Network, (
    "0.0.0.0/8",           # this network
    "10.0.0.0/8",          # private
    "100.64.0.0/10",       # carrier-grade NAT, and Alibaba's metadata
    "127.0.0.0/8",         # loopback
    "168.63.129.16/32",    # Azure's host: a public number that only the inside sees
    "169.254.0.0/16",      # link-local, and the metadata of most clouds
    "172.16.0.0/12",       # private
    "192.0.0.0/24",        # protocol assignments, and Oracle's metadata
    "192.0.2.0/24",        # documentation
    "192.88.99.0/24",      # 6to4 relays
    "192.168.0.0/16",      # private
    "198.18.0.0/15",       # benchmarks
    "198.51.100.0/24",     # documentation
    "203.0.113.0/24",      # documentation
    "224.0.0.0/4",         # multicast
    "240.0.0.0/4",         # reserved, and broadcast
)))  # fmt: skip

_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
"""All that is assigned as global unicast. Loopback, mapped and compatible IPv4, NAT64, ULA, link- and site-local and
multicast lie outside it."""

_CLOSED_V6 = tuple(map(ipaddress.IPv6Network, (
    "2001::/23",           # protocol assignments: Teredo, ORCHID, benchmarks
    "2001:db8::/32",       # documentation
    "2002::/16",           # 6to4: holds any IPv4 address
    "3ffe::/16",           # the old test network
    "3fff::/20",           # documentation
)))  # fmt: skip

_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""Upper half of an interface id that holds an IPv4 address (RFC 5214)."""


class FetchError(ValueError):
    """The URL cannot be fetched; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What a fetch may do. Times are seconds; `deadline_seconds` is the whole fetch, redirects and all.

    `allowed_networks` are private networks the operator opens; on addresses in them every port is allowed, elsewhere
    only `allowed_ports`.
    """

    max_bytes: int
    deadline_seconds: float = 60.0
    connect_timeout: float = 10.0
    max_redirects: int = 3
    allowed_networks: tuple[Network, ...] = ()
    allowed_ports: tuple[int, ...] = (80, 443)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed the shape check, taken apart."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def is_public(address: Address) -> bool:
    """Tell whether `address` is an ordinary host on the public internet: nothing local, special or embedding IPv4."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None or address not in _UNICAST_V6:
        return False
    holds_ipv4 = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    return not holds_ipv4 and not any(address in network for network in _CLOSED_V6)


def check_url(url: str, policy: FetchPolicy) -> None:
    """Raise FetchError unless `url` has a shape that may be fetched. Resolves and connects to nothing.

    A literal address is checked here already; a name only when it is resolved.
    """
    target = parse_url(url)
    address = literal(target.host)
    if address is not None:
        admit(address, target.port, policy)
    elif target.port not in policy.allowed_ports and not policy.allowed_networks:
        raise FetchError(f"port {target.port} is not allowed in a URL")


def parse_url(url: str) -> Target:
    """Take `url` apart; raise FetchError where its text alone forbids it."""
    if len(url) > MAX_URL:
        raise FetchError(f"the URL is longer than {MAX_URL} characters")
    if any(character <= " " or character in "\\\x7f" or "\x80" <= character <= "\xa0" for character in url):
        raise FetchError("the URL holds spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        path = _request_target(parts)
    except ValueError:  # also UnicodeEncodeError, for a lone surrogate in the path
        raise FetchError("the URL is malformed") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise FetchError("the URL must begin with http:// or https://")
    if "@" in parts.netloc:
        raise FetchError("the URL must not hold credentials")
    _check_host(host, bracketed="[" in parts.netloc)
    if port == 0:
        raise FetchError("port 0 is not allowed in a URL")
    return Target(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path)


def _request_target(parts: SplitResult) -> str:
    safe = "%/:=&?~#+!$,;'@()*[]"
    path = quote(parts.path or "/", safe=safe)
    return f"{path}?{quote(parts.query, safe=safe)}" if parts.query else path


def _check_host(host: str, *, bracketed: bool) -> None:
    if bracketed:
        with contextlib.suppress(ValueError):
            if "%" not in host:
                ipaddress.IPv6Address(host)
                return
        raise FetchError("the URL's host is not a valid IPv6 address")
    if not _HOST.fullmatch(host):
        raise FetchError("the URL's host is not a valid name (write names with other letters as xn--…)")
    # getaddrinfo reads 127.1, 0x7f000001, 2130706433 and 017700000001 as addresses; a name never ends in a number.
    if _NUMERIC_LABEL.fullmatch(host.rstrip(".").rsplit(".", 1)[-1]) and literal(host) is None:
        raise FetchError("the URL's host is an address in an unusual notation")


def literal(host: str) -> Address | None:
    """Return the address that `host` spells in its one plain notation, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def admit(address: Address, port: int, policy: FetchPolicy) -> None:
    """Raise FetchError unless `policy` lets a fetch connect to `port` of `address`."""
    if any(address in network for network in policy.allowed_networks):
        return
    if not is_public(address):
        raise FetchError("the URL leads to an address that is not public")
    if port not in policy.allowed_ports:
        raise FetchError(f"port {port} is not allowed in a URL")
