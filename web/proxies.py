"""What a proxy in front says of the client is believed only of proxies that the settings name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

from werkzeug.middleware.proxy_fix import ProxyFix

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class TrustedProxies:
    """Takes the client's address and scheme from X-Forwarded-For and -Proto, where the peer is a trusted proxy.

    Of several addresses the last counts: the one that the proxy itself has seen.
    """

    def __init__(self, inner: WSGIApplication, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._inner, self._networks = inner, networks
        self._fixed = ProxyFix(inner, x_for=1, x_proto=1, x_host=0, x_port=0, x_prefix=0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return (self._fixed if self._trusts(environ.get("REMOTE_ADDR", "")) else self._inner)(environ, start_response)

    def _trusts(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
