"""Who asks: what fair sharing and the prefix cache know of a client."""

from __future__ import annotations

import hashlib

from starlette.requests import Request


def client_of(request: Request) -> str:
    """SHA-256 of the bearer token, in hexadecimal digits; empty without one. The token itself goes no further."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return hashlib.sha256(token.encode()).hexdigest() if scheme.lower() == "bearer" and token else ""


def salt_of(client: str, cache_salt: str | None) -> str:
    """Clients never share cached prompts with each other; a salt of its own divides a client's further."""
    return client if cache_salt is None else f"{client}:{cache_salt}"
