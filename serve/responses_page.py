"""One page of a list, as OpenAI's list endpoints cut it: `limit`, `order` and `after`, the id before the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinycluster.engine.errors import RequestError

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


def page_of(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """RequestError for a wrong parameter and for an `after` that is not in the list."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order must be asc or desc, got {order[:40]!r}", "order")
    ordered = list(items if order == "asc" else reversed(items))
    if "after" in query:
        ordered = ordered[_index_of(ordered, query["after"]) + 1 :]
    limit = _limit(query.get("limit", str(DEFAULT_LIMIT)))
    page = ordered[:limit]
    first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    has_more = len(ordered) > limit
    return {"object": "list", "data": page, "first_id": first_id, "last_id": last_id, "has_more": has_more}


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise RequestError(f"limit must be an integer in 1 .. {MAX_LIMIT}, got {text[:40]!r}", "limit")
    return int(text)


def _index_of(items: Sequence[Mapping[str, Any]], item_id: str) -> int:
    for index, item in enumerate(items):
        if item["id"] == item_id:
            return index
    raise RequestError(f"after must be the id of an item of the list, got {item_id[:64]!r}", "after")
