"""Addresses of other services: checked where they are set, and shown without the secrets that they may hold."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def web_address(value: str) -> str:
    """The same. ValueError, which does not repeat it, unless somebody can be asked there."""
    parts = _parts(value)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not value.isprintable():
        raise ValueError("needs a URL like https://host:8080/path")
    return value


def origin_of(url: str) -> str:
    """Scheme, host and port: no name, no password, no path and no query."""
    parts = _parts(url)
    if parts is None:
        return "an address that is none"
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if parts.port is None else f":{parts.port}")


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        # Read, the port is checked.
        return parts if parts.port is None or parts.port >= 0 else None
    except ValueError:
        return None
