"""Which names a server answers to, and which web pages may ask it.

A web page of a stranger can make its own name point to an address inside somebody's network and then reads what our
server says, as its own origin (DNS rebinding). The browser sends that name as `Host`. So a name that the public DNS can
hold must stand in `server.allowed_hosts`; addresses, names without a dot and names of private zones need not.

A page may also ask us by our own address, without being able to read the answer. The browser then says whose page it is
(RFC 6454, section 7): one of a name or of a public address that is not ours is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from tinycluster.serve.errors import ErrorReply

PRIVATE_ZONES = (".localhost", ".local", ".internal", ".lan", ".intranet", ".home.arpa", ".test")
"""Names that no public registry gives away (RFC 6761, 6762, 8375) or that only local resolvers use."""
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?)(?::\d{0,5})?")


class HostGuard:
    """Answers 400 where Host is missing, doubled or malformed, 421 where it is a stranger's name, and 403 where Origin
    is a stranger's page.

    The names of the application's `state.allowed_hosts` are allowed too; "*" there allows every name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = _refusal(scope) if scope["type"] == "http" else None
        if reply is None:
            await self._app(scope, receive, send)
        else:
            await reply.response()(scope, receive, send)


def _refusal(scope: Scope) -> ErrorReply | None:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if not hosts and scope["http_version"] == "1.0":
        return None
    match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None:
        return ErrorReply(400, "The request must have one valid Host")
    allowed_hosts = scope["app"].state.allowed_hosts
    if not is_allowed(match[1], allowed_hosts):
        message = f"This server does not answer to {match[1][:255]}; add the name to server.allowed_hosts"
        return ErrorReply(421, message, code="misdirected_request")
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
    if any(_is_foreign(origin, hosts[0], allowed_hosts) for origin in origins):
        message = "This server does not answer to this web page; add its host to server.allowed_hosts"
        return ErrorReply(403, message, "permission_denied", code="foreign_origin")
    return None


def _is_foreign(origin: str, host: str, allowed_hosts: Sequence[str]) -> bool:
    """Whether a page of a stranger asks. "null" is what a browser says of a frame that hides its page; schemes other
    than the web's are of programs."""
    scheme, _, authority = origin.lower().partition("://")
    if authority == host.lower() or (scheme not in ("http", "https") and origin != "null"):
        return False
    match = HOST.fullmatch(authority)
    return "*" not in allowed_hosts and (match is None or not _is_ours(match[1], allowed_hosts))


def is_allowed(host: str, allowed_hosts: Sequence[str]) -> bool:
    """Whether a server answers to this name or address (in brackets, for IPv6)."""
    return _address(host) is not None or _is_ours(host, allowed_hosts)


def _is_ours(host: str, allowed_hosts: Sequence[str]) -> bool:
    """A name that is allowed or that no stranger can have, or a private address."""
    name = host.lower().rstrip(".")
    if "*" in allowed_hosts or name in (allowed.lower().rstrip(".") for allowed in allowed_hosts):
        return True
    if (address := _address(name)) is not None:
        return not address.is_global
    return not name.startswith("[") and ("." not in name or name.endswith(PRIVATE_ZONES))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        return None
