"""Stored responses over every database: owners, ends that come once, bounds against a plain model of them."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.records import NewMessage
from tinycluster.serve.storage.responses import KEPT_FOR_MS, KeptResponse, Responses, fail_those_of
from tinycluster.serve.storage.storage import Storage, open_storage

ASKED = NewMessage("user", "hello")


def kept(
    response_id: str, status: str = "completed", size: int = 2, conversation_id: str | None = None
) -> KeptResponse:
    shown = json.dumps({"id": response_id, "status": status, "error": None})
    return KeptResponse(response_id, status, shown, " " * (size - 2) + "[]", conversation_id, None)


def test_an_owner_finds_its_own_as_it_was_written_and_nobody_elses(storage: Storage) -> None:
    async def find() -> None:
        response = KeptResponse("resp_1", "completed", '{"a": [1.0, "\\u00e9"]}', '[{"b": 1},\n{}]', "conv_1", "resp_0")
        await storage.responses.put("ann", response)
        assert await storage.responses.get("ann", "resp_1") == response
        assert await storage.responses.get("bob", "resp_1") is None
        assert not await storage.responses.delete("bob", "resp_1")
        assert await storage.responses.delete("ann", "resp_1")
        assert await storage.responses.get("ann", "resp_1") is None
        assert not await storage.responses.delete("ann", "resp_1")

    asyncio.run(find())


def test_one_that_was_begun_ends_once(storage: Storage) -> None:
    async def end_twice() -> None:
        await storage.responses.put("ann", kept("resp_1", "in_progress"))
        assert await storage.responses.in_progress([("ann", "resp_1"), ("bob", "resp_1")]) == {("ann", "resp_1")}
        assert not await storage.responses.end("bob", kept("resp_1"))
        assert await storage.responses.end("ann", kept("resp_1", "cancelled"))
        assert not await storage.responses.end("ann", kept("resp_1"))
        found = await storage.responses.get("ann", "resp_1")
        assert found is not None
        assert (found.status, json.loads(found.object)["status"]) == ("cancelled", "cancelled")
        assert await storage.responses.in_progress([("ann", "resp_1")]) == set()

    asyncio.run(end_twice())


def test_what_was_deleted_in_progress_does_not_come_back(storage: Storage) -> None:
    async def delete_first() -> None:
        await storage.responses.put("ann", kept("resp_1", "in_progress"))
        await storage.responses.delete("ann", "resp_1")
        assert not await storage.responses.end("ann", kept("resp_1"))
        assert await storage.responses.get("ann", "resp_1") is None

    asyncio.run(delete_first())


def test_the_first_of_two_writes_of_one_response_stays(storage: Storage) -> None:
    async def put_twice() -> None:
        conversation = await storage.conversations.create("ann")
        for status in ("completed", "cancelled"):
            await storage.responses.put("ann", kept("resp_1", status, 2, conversation.id), [ASKED])
        found = await storage.responses.get("ann", "resp_1")
        assert found is not None
        assert found.status == "completed"
        assert len(await storage.conversations.path("ann", conversation.id) or ()) == 1

    asyncio.run(put_twice())


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_response_and_its_part_of_the_conversation_are_stored_together(storage: Storage, is_begun: bool) -> None:
    async def store_both() -> None:
        conversation = await storage.conversations.create("ann", items=[NewMessage("user", "before")])
        response = kept("resp_1", conversation_id=conversation.id)
        if is_begun:
            await storage.responses.put("ann", kept("resp_1", "in_progress", 2, conversation.id))
            await storage.responses.end("ann", response, [ASKED, NewMessage("assistant", "hi")])
        else:
            await storage.responses.put("ann", response, [ASKED, NewMessage("assistant", "hi")])
        path = await storage.conversations.path("ann", conversation.id)
        assert path is not None
        assert [message.text for message in path] == ["before", "hello", "hi"]

    asyncio.run(store_both())


def test_a_response_is_kept_where_its_conversation_is_gone(storage: Storage) -> None:
    async def outlive() -> None:
        await storage.responses.put("ann", kept("resp_1", conversation_id="conv_gone"), [ASKED])
        assert await storage.responses.get("ann", "resp_1") is not None

    asyncio.run(outlive())


def test_a_response_is_found_for_thirty_days() -> None:
    now_s = [1_000_000.0]

    async def wait() -> None:
        with closing(open_storage("memory", clock=lambda: now_s[0])) as storage:
            await storage.responses.put("ann", kept("resp_1"))
            now_s[0] += KEPT_FOR_MS / 1000 - 1
            assert await storage.responses.get("ann", "resp_1") is not None
            now_s[0] += 1
            assert await storage.responses.get("ann", "resp_1") is None
            await storage.responses.put("bob", kept("resp_2"))
            assert not await storage.responses.delete("ann", "resp_1")

    asyncio.run(wait())


def test_what_a_server_that_is_gone_was_generating_has_failed(storage: Storage) -> None:
    async def lose() -> None:
        await storage.responses.put("ann", kept("resp_1", "in_progress"))
        await storage.responses.put("ann", kept("resp_2"))
        other = Responses(storage.database, "srv_other")
        await other.put("ann", kept("resp_3", "in_progress"))
        write = storage.database.write
        assert await write(lambda connection: fail_those_of(connection, [storage.server_id], "It is gone")) == 1
        found = [await storage.responses.get("ann", name) for name in ("resp_1", "resp_2", "resp_3")]
        assert [one.status for one in found if one is not None] == ["failed", "completed", "in_progress"]
        assert found[0] is not None
        shown = json.loads(found[0].object)
        assert (shown["status"], shown["error"]["message"]) == ("failed", "It is gone")

    asyncio.run(lose())


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "begin", "delete"]), st.sampled_from("ab"), st.integers(0, 7), st.integers(2, 300)
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(OPERATIONS)
def test_an_owner_has_the_newest_that_fit_and_others_lose_nothing(operations: list[tuple[str, str, int, int]]) -> None:
    async def run() -> None:
        with closing(Database()) as database:
            now_s = 0.0
            held = Responses(database, "srv_1", lambda: now_s, max_responses=4, max_bytes=600)
            model: dict[str, dict[str, KeptResponse]] = {"a": {}, "b": {}}
            for kind, owner, number, size in operations:
                now_s += 1
                name = f"resp_{owner}{number}"
                if kind == "delete":
                    assert await held.delete(owner, name) == (model[owner].pop(name, None) is not None)
                    continue
                response = kept(name, "in_progress" if kind == "begin" else "completed", size)
                await held.put(owner, response)
                if name not in model[owner]:
                    make_room(model[owner], response)
                    model[owner][name] = response
            for owner in "ab":
                for number in range(8):
                    name = f"resp_{owner}{number}"
                    assert await held.get(owner, name) == model[owner].get(name)

    asyncio.run(run())


def make_room(shelf: dict[str, KeptResponse], response: KeptResponse) -> None:
    """The oldest that have ended give way."""
    while len(shelf) >= 4 or sum(one.num_bytes for one in shelf.values()) + response.num_bytes > 600:
        ended = [name for name, one in shelf.items() if one.status != "in_progress"]
        if not ended:
            return
        del shelf[ended[0]]


def test_what_is_larger_than_an_owner_may_have_is_not_kept(storage: Storage) -> None:
    async def put() -> None:
        small = Responses(storage.database, "srv_1", max_bytes=100)
        await small.put("ann", kept("resp_1"))
        await small.put("ann", kept("resp_2", size=101))
        assert await small.get("ann", "resp_1") is not None
        assert await small.get("ann", "resp_2") is None

    asyncio.run(put())
