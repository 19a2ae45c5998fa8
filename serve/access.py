"""Who may use which route. Every route depends on `check_access`, and one that is not listed here is nobody's.

| level  | who may                                              |
|--------|------------------------------------------------------|
| public | everybody, without a key                             |
| user   | who has a key; everybody where server.auth is none   |
| admin  | who has a key of the role admin; everybody without   |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol

from starlette.requests import Request

from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.errors import ErrorReply, HttpError
from tinycluster.serve.exchange import exchange_of
from tinycluster.serve.identity import Terms, client_of_token

Level = Literal["public", "user", "admin"]

LEVELS: Mapping[str, Level] = {
    "/": "public",
    "/cluster": "public",
    "/ui/{}": "public",
    "/health": "public",
    "/health/ready": "public",
    "/health_generate": "public",
    "/metrics": "admin",
    "/api/cluster": "admin",
    "/api/cluster/events": "admin",
    "/api/keys": "admin",
    "/api/keys/{}": "admin",
    "/api/me": "user",
    "/api/chat": "user",
    "/api/sessions": "user",
    "/api/sessions/export": "user",
    "/api/sessions/import": "user",
    "/api/sessions/{}": "user",
    "/api/sessions/{}/fork": "user",
    "/api/sessions/{}/export": "user",
    "/api/sessions/{}/messages/{}/events": "user",
    "/api/sessions/{}/messages/{}/stop": "user",
    "/api/settings": "user",
    "/detokenize": "user",
    "/load": "user",
    "/openapi.json": "user",
    "/tokenize": "user",
    "/v1/chat/completions": "user",
    "/v1/completions": "user",
    "/v1/conversations": "user",
    "/v1/conversations/{}": "user",
    "/v1/conversations/{}/items": "user",
    "/v1/conversations/{}/items/{}": "user",
    "/v1/models": "user",
    "/v1/models/{}": "user",
    "/v1/responses": "user",
    "/v1/responses/{}": "user",
    "/v1/responses/{}/cancel": "user",
    "/v1/responses/{}/input_items": "user",
    "/version": "user",
}
"""By path, with {} for what a path takes as a parameter."""

METERED = frozenset(
    ("/api/chat", "/detokenize", "/tokenize", "/v1/chat/completions", "/v1/completions", "/v1/responses")
)
"""What a request of counts as one of its key's requests per minute."""


class Guard(Protocol):
    """`app.state.guard`: finds out who asks."""

    has_limits: bool
    """Whether clients may have accounts."""

    async def terms(self, request: Request, level: Level) -> Terms:
        """HttpError 401, 403 or 429 where this request may not use a route of this level."""
        ...


class OpenDoor:
    """server.auth none: whoever reaches the server may do everything; tokens only tell clients apart."""

    has_limits = False

    async def terms(self, request: Request, level: Level) -> Terms:
        return Terms(client_of_token(request.headers.get("authorization", "")), "admin")


class ClosedDoor:
    """Of a server that does not know its settings yet, and so neither its keys."""

    has_limits = False

    async def terms(self, request: Request, level: Level) -> Terms:
        if level != "public":
            raise UnavailableError("The server is starting; no model is loaded yet")
        return Terms("", "user")


def level_of(path: str) -> Level | None:
    """Of a route's path as it is declared; None for one that is not listed."""
    return LEVELS.get(_pattern(path))


def _pattern(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


async def check_access(request: Request) -> None:
    """The dependency of every route."""
    path = _pattern(request.scope["route"].path)
    level = LEVELS.get(path)
    if level is None:
        raise permission_denied("This route declares no access level, so it is closed to everybody")
    guard: Guard = request.app.state.guard
    terms, exchange = await guard.terms(request, level), exchange_of(request.scope)
    if exchange is not None:
        exchange.key_name = terms.name
        terms = replace(terms, exchange=exchange)
    if (content_filter := request.app.state.content_filter) is not None:
        terms = replace(terms, content_filter=content_filter)
    request.scope["tinycluster.terms"] = terms
    if terms.account is not None and path in METERED:
        request.scope["tinycluster.metered"] = terms.account
        terms.account.check_in()


def permission_denied(message: str) -> HttpError:
    return HttpError(ErrorReply(403, message, "permission_denied", code="permission_denied"))
