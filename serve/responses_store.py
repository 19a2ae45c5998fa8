"""Answers that clients may come back to: in this process, bounded, and each visible only to the client that asked.

Pure: no clock, no lock; one event loop uses it. When it is full, the client that holds the most loses what it has not
looked at for longest, so that nobody can push out the answers of others by storing many of its own.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tinycluster.serve.responses_logprobs import Written, encoded

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 2**20

VALUE_BYTES = 80
"""What an object or a value of Python takes beyond its JSON, about; a list of empty lists is all overhead."""

Item = Mapping[str, Any]


class Context(NamedTuple):
    """All input items of a response, those of previous responses first, and the memory that they take."""

    items: Sequence[Item]
    num_bytes: int

    def __add__(self, more: Context) -> Context:  # type: ignore[override]
        return Context([*self.items, *more.items], self.num_bytes + more.num_bytes)


def context_of(items: Sequence[Item]) -> Context:
    return Context(items, sum(map(memory_of, items)))


def memory_of(value: Any) -> int:
    """Bytes, estimated from above."""
    text = json.dumps(value)
    return len(text) + VALUE_BYTES * sum(map(text.count, ",[{"))


@dataclass
class StoredResponse:
    """`response` is the object that clients get, with the log-probabilities that `written` has, which changes until its
    end. `stop` ends the generation of one that is still in progress."""

    response: dict[str, Any]
    context: Context
    written: Written = field(default_factory=dict)
    stop: Callable[[], None] | None = None
    num_bytes: int = 0

    @property
    def response_id(self) -> str:
        return str(self.response["id"])

    def encoded(self) -> str:
        return encoded(self.response, self.written)


@dataclass
class _Shelf:
    """One client's responses, least recently used first."""

    responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    num_bytes: int = 0


class ResponseStore:
    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._shelves: dict[str, _Shelf] = {}
        self.num_responses = 0
        self.num_bytes = 0

    def put(self, client: str, stored: StoredResponse) -> None:
        """Store, or store again what has changed. What is larger than the whole store is not kept."""
        self.remove(client, stored.response_id)
        num_written = sum(map(len, stored.written.values()))
        stored.num_bytes = stored.context.num_bytes + memory_of(stored.response) + num_written
        shelf = self._shelves.setdefault(client, _Shelf())
        shelf.responses[stored.response_id] = stored
        self._count(shelf, 1, stored.num_bytes)
        while self.num_responses > self._max_responses or self.num_bytes > self._max_bytes:
            self._drop_one()

    def get(self, client: str, response_id: str) -> StoredResponse | None:
        """None where this client has no such response, whether or not another has one."""
        shelf = self._shelves.get(client)
        if shelf is None or response_id not in shelf.responses:
            return None
        shelf.responses.move_to_end(response_id)
        return shelf.responses[response_id]

    def remove(self, client: str, response_id: str) -> StoredResponse | None:
        """What was stored, which is not stopped."""
        shelf = self._shelves.get(client)
        stored = shelf.responses.pop(response_id, None) if shelf is not None else None
        if shelf is not None and stored is not None:
            self._count(shelf, -1, -stored.num_bytes)
            if not shelf.responses:
                del self._shelves[client]
        return stored

    def _drop_one(self) -> None:
        client = max(self._shelves, key=lambda name: self._shelves[name].num_bytes)
        stored = self.remove(client, next(iter(self._shelves[client].responses)))
        # Nobody could ask for its result.
        if stored is not None and stored.stop is not None:
            stored.stop()

    def _count(self, shelf: _Shelf, num_responses: int, num_bytes: int) -> None:
        shelf.num_bytes += num_bytes
        self.num_responses += num_responses
        self.num_bytes += num_bytes
