"""Which names a server answers to.

A web page of a stranger can make its own name point to an address inside somebody's network and then reads what our
server says, as its own origin (DNS rebinding). The browser sends that name as `Host`. So a name that the public DNS can
hold must stand in `server.allowed_hosts`; addresses, names without a dot and names of private zones need not.
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
    """Answers 400 where Host is missing, doubled or malformed, and 421 where it is a stranger's name.

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
    if is_allowed(match[1], scope["app"].state.allowed_hosts):
        return None
    message = f"This server does not answer to {match[1][:255]}; add the name to server.allowed_hosts"
    return ErrorReply(421, message, code="misdirected_request")


def is_allowed(host: str, allowed_hosts: Sequence[str]) -> bool:
    """Whether a server answers to this name or address (in brackets, for IPv6)."""
    name = host.lower().rstrip(".")
    if "*" in allowed_hosts or name in (allowed.lower().rstrip(".") for allowed in allowed_hosts):
        return True
    if name.startswith("["):
        return _is_address(name[1:-1])
    return "." not in name or name.endswith(PRIVATE_ZONES) or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
