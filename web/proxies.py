"""What a proxy in front says of the client is believed only of proxies that the settings name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

from werkzeug.middleware.proxy_fix import ProxyFix

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


log = logging.getLogger("web")


class TrustedProxies:
    """Takes the client's address and scheme from X-Forwarded-For and -Proto, where the peer is a trusted proxy.

    Of several addresses the last counts: the one that the proxy itself has seen. The first peer that sends one and is
    not trusted is told of in the log: if it is a proxy that was forgotten, all its clients share one limit.
    """

    def __init__(self, inner: WSGIApplication, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._inner, self._networks = inner, networks
        self._fixed = ProxyFix(inner, x_for=1, x_proto=1, x_host=0, x_port=0, x_prefix=0)
        self._told = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        if self._trusts(peer):
            return self._fixed(environ, start_response)
        if "HTTP_X_FORWARDED_FOR" in environ and not self._told:
            self._told = True
            log.warning(
                "a request from %s came with X-Forwarded-For, which is not believed; if that is a proxy of yours, name "
                "it in http.trusted_proxies (AVATAR_HTTP__TRUSTED_PROXIES), or all its clients count as one",
                peer or "a socket",
            )
        return self._inner(environ, start_response)

    def _trusts(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
