"""The repository of responses: what /v1/responses has answered, for as long as its owner may come back to it.

A response that is stored when it ends is one row written once; one that runs in the background is written when it
begins, too, so that every server knows it. When an owner has too many, the oldest give way to the new ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Text, bindparam, delete, func, insert, or_, select, type_coerce, update

from tinycluster.serve.storage import branches
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.records import NewMessage
from tinycluster.serve.storage.statement import Statement
from tinycluster.serve.storage.tables import responses

KEPT_FOR_MS = 30 * 24 * 3600 * 1000
MAX_RESPONSES = 4096
MAX_BYTES = 256 * 2**20
"""Of each owner."""
NUM_DROPPED_TOGETHER = 64
IN_PROGRESS = "in_progress"


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """`object` is what clients get and `input_items` is a list, both as JSON text of ASCII characters, written and read
    as they are: they may be large."""

    id: str
    status: str
    object: str
    input_items: str
    conversation_id: str | None = None
    previous_id: str | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.object) + len(self.input_items)


# The columns are JSON; here it is already written.
OBJECT, INPUT_ITEMS = type_coerce(responses.c.object, Text), type_coerce(responses.c.input_items, Text)
IS_THERE = (responses.c.id == bindparam("response_id")) & (responses.c.owner == bindparam("asking"))
IS_KEPT = or_(responses.c.expires_ms.is_(None), responses.c.expires_ms > bindparam("now_ms"))
GET = Statement(
    select(
        responses.c.id, responses.c.status, OBJECT, INPUT_ITEMS, responses.c.conversation_id, responses.c.previous_id
    ).where(IS_THERE, IS_KEPT)
)
TEXTS = {"object": bindparam("object_text", type_=Text), "input_items": bindparam("items_text", type_=Text)}
INSERT = Statement(
    insert(responses).values(
        **TEXTS,
        **{
            name: bindparam(name)
            for name in (
                *("id", "owner", "status", "conversation_id", "previous_id", "server_id"),
                *("num_bytes", "created_ms", "expires_ms"),
            )
        },
    )
)
END = Statement(
    update(responses)
    .where(IS_THERE, responses.c.status == IN_PROGRESS)
    .values(
        status=bindparam("end"),
        object=bindparam("object_text", type_=Text),
        num_bytes=bindparam("size", type_=BigInteger),
    )
)
EXISTS = Statement(select(responses.c.id).where(IS_THERE))
DELETE = Statement(delete(responses).where(IS_THERE))
DROP_EXPIRED = Statement(delete(responses).where(responses.c.expires_ms <= bindparam("now_ms")))
IS_ENDED_OF = (responses.c.owner == bindparam("asking")) & (responses.c.status != IN_PROGRESS)
HELD = Statement(
    select(func.count(), func.coalesce(func.sum(responses.c.num_bytes), 0)).where(
        responses.c.owner == bindparam("asking")
    )
)
OLDEST = Statement(
    select(responses.c.id, responses.c.num_bytes)
    .where(IS_ENDED_OF)
    .order_by(responses.c.created_ms, responses.c.id)
    .limit(NUM_DROPPED_TOGETHER)
)


class Responses:
    """`server_id` marks what this process generates; `clock` gives Unix seconds. StorageError (503) where the database
    fails."""

    def __init__(
        self,
        database: Database,
        server_id: str,
        clock: Callable[[], float] = time.time,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._database, self._server_id, self._clock = database, server_id, clock
        self._max_responses, self._max_bytes = max_responses, max_bytes

    async def put(self, owner: str, response: KeptResponse, items: Sequence[NewMessage] = (), title: str = "") -> None:
        """A new row, in progress or at its end; nothing where there is one. `items` go into its conversation, if that
        is still there, in the same transaction, and `title`, if it has none. What is larger than an owner may have is
        not kept."""
        await self._database.write(lambda connection: self._put(connection, owner, response, items, title))

    async def end(self, owner: str, response: KeptResponse, items: Sequence[NewMessage] = (), title: str = "") -> bool:
        """The end of one that was put in progress. False, and nothing is written, where it has ended or is gone."""
        return await self._database.write(lambda connection: self._end(connection, owner, response, items, title))

    async def get(self, owner: str, response_id: str) -> KeptResponse | None:
        """None where this owner has no such response, whether or not another has one."""
        asked = {"response_id": response_id, "asking": owner, "now_ms": self._now_ms()}
        row = await self._database.read(lambda connection: GET.first(connection, asked))
        return None if row is None else KeptResponse(*row)

    async def delete(self, owner: str, response_id: str) -> bool:
        asked = {"response_id": response_id, "asking": owner}
        return await self._database.write(lambda connection: DELETE.run(connection, asked) > 0)

    async def in_progress(self, owner_ids: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of these (owner, id) that no other server has ended or deleted."""
        asked = set(owner_ids)
        ids = [response_id for _, response_id in asked]
        wanted = select(responses.c.owner, responses.c.id).where(
            responses.c.id.in_(ids), responses.c.status == IN_PROGRESS
        )
        found = await self._database.read(lambda connection: connection.execute(wanted).all())
        return {(owner, response_id) for owner, response_id in found} & asked

    def _put(
        self, connection: Connection, owner: str, response: KeptResponse, items: Sequence[NewMessage], title: str
    ) -> None:
        now_ms = self._now_ms()
        if EXISTS.all(connection, {"response_id": response.id, "asking": owner}):
            return
        _add_items(connection, owner, response, items, title, now_ms)
        DROP_EXPIRED.run(connection, {"now_ms": now_ms})
        if response.num_bytes > self._max_bytes:
            return
        row = {
            "id": response.id,
            "owner": owner,
            "status": response.status,
            "object_text": response.object,
            "items_text": response.input_items,
            "conversation_id": response.conversation_id,
            "previous_id": response.previous_id,
            "server_id": self._server_id,
            "num_bytes": response.num_bytes,
            "created_ms": now_ms,
            "expires_ms": now_ms + KEPT_FOR_MS,
        }
        self._make_room(connection, owner, response.num_bytes)
        INSERT.run(connection, row)

    def _end(
        self, connection: Connection, owner: str, response: KeptResponse, items: Sequence[NewMessage], title: str
    ) -> bool:
        end = {"end": response.status, "object_text": response.object, "size": response.num_bytes}
        if END.run(connection, {"response_id": response.id, "asking": owner, **end}) == 0:
            return False
        _add_items(connection, owner, response, items, title, self._now_ms())
        return True

    def _make_room(self, connection: Connection, owner: str, num_bytes: int) -> None:
        """Drop the oldest that have ended until one more fits."""
        num_held, num_held_bytes = HELD.all(connection, {"asking": owner})[0]
        while num_held >= self._max_responses or num_held_bytes + num_bytes > self._max_bytes:
            oldest = OLDEST.all(connection, {"asking": owner})
            if not oldest:
                return
            for response_id, size in oldest:
                DELETE.run(connection, {"response_id": response_id, "asking": owner})
                num_held, num_held_bytes = num_held - 1, num_held_bytes - size
                if num_held < self._max_responses and num_held_bytes + num_bytes <= self._max_bytes:
                    return

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _add_items(
    connection: Connection, owner: str, response: KeptResponse, items: Sequence[NewMessage], title: str, now_ms: int
) -> None:
    if items and response.conversation_id is not None:
        branches.add_items(connection, owner, response.conversation_id, items, now_ms, title)


def fail_those_of(connection: Connection, server_ids: Sequence[str], message: str) -> int:
    """The responses that these servers, which are gone, would have gone on with have failed; how many."""
    open_ones = select(responses.c.id, responses.c.owner, responses.c.num_bytes, responses.c.object).where(
        responses.c.server_id.in_(server_ids), responses.c.status == IN_PROGRESS
    )
    found = connection.execute(open_ones).all()
    for response_id, owner, size, shown in found:
        failed: Mapping[str, Any] = {**shown, "status": "failed", "error": {"code": "server_error", "message": message}}
        end = {"end": "failed", "object_text": json.dumps(failed), "size": size}
        END.run(connection, {"response_id": response_id, "asking": owner, **end})
    return len(found)
