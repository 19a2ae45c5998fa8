"""One page of a list, as OpenAI's list endpoints cut it: `limit`, `order` and `after`, the id before the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinycluster.engine.errors import RequestError

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


def page_of(ids: Sequence[str], item: Callable[[int], Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Of a list of items with these ids; `item` makes the one at an index. RequestError for a wrong parameter and for
    an `after` that is not in the list."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order must be asc or desc, got {order[:40]!r}", "order")
    indices = range(len(ids)) if order == "asc" else range(len(ids))[::-1]
    if "after" in query:
        indices = indices[indices.index(_index_of(ids, query["after"])) + 1 :]
    limit = limit_of(query, DEFAULT_LIMIT, MAX_LIMIT)
    return list_of(list(map(item, indices[:limit])), has_more=len(indices) > limit)


def list_of(page: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return {"object": "list", "data": page, "first_id": first_id, "last_id": last_id, "has_more": has_more}


def limit_of(query: Mapping[str, str], default: int, maximum: int) -> int:
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= maximum):
        raise RequestError(f"limit must be an integer in 1 .. {maximum}, got {text[:40]!r}", "limit")
    return int(text)


def _index_of(ids: Sequence[str], item_id: str) -> int:
    if item_id not in ids:
        raise RequestError(f"after must be the id of an item of the list, got {item_id[:64]!r}", "after")
    return ids.index(item_id)
