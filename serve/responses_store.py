"""The items that a response answers, and responses as storage has them: text as it goes over the wire.

Objects are made of it where a response is continued or its items are listed, in a thread where they are large.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tinycluster.serve.body import PARSE_IN_THREAD_BYTES
from tinycluster.serve.responses_logprobs import Written, encoded
from tinycluster.serve.storage.responses import KeptResponse

VALUE_BYTES = 80
"""What an object or a value of Python takes beyond its JSON, about; a list of empty lists is all overhead."""
SEPARATOR = ",\n"
"""Between the items of a list in storage. JSON has no other line feeds, so a list is read item by item."""

Item = Mapping[str, Any]
Result = TypeVar("Result")


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


def listed(items: Sequence[Item]) -> str:
    return f"[{SEPARATOR.join(map(json.dumps, items))}]"


def items_of(text: str) -> list[Item]:
    """The items of `listed`. One by one, so that other threads have their turns between them."""
    return list(map(json.loads, text[1:-1].split(SEPARATOR))) if text != "[]" else []


async def as_text(response: Mapping[str, Any], written: Written, context: Context) -> KeptResponse:
    """What storage keeps of a response as it stands."""
    conversation = response["conversation"]

    def kept() -> KeptResponse:
        return KeptResponse(
            id=response["id"],
            status=response["status"],
            object=encoded(response, written),
            input_items=listed(context.items),
            conversation_id=None if conversation is None else conversation["id"],
            previous_id=response["previous_response_id"],
        )

    return await in_thread_if(context.num_bytes, kept)


async def stored_items(kept: KeptResponse) -> list[Item]:
    return await in_thread_if(kept.num_bytes, lambda: items_of(kept.input_items))


async def stored_context(kept: KeptResponse) -> Context:
    """What a response that continues this one continues."""

    def context() -> Context:
        return context_of([*items_of(kept.input_items), *json.loads(kept.object)["output"]])

    return await in_thread_if(kept.num_bytes, context)


async def in_thread_if(num_bytes: int, work: Callable[[], Result]) -> Result:
    """Large texts are no reason to delay other clients' tokens."""
    return work() if num_bytes < PARSE_IN_THREAD_BYTES else await asyncio.to_thread(work)
