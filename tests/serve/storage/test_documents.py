"""Export and import: what comes back is what was there, but for its ids."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.database import Database
from tinycluster.serve.storage.records import NewMessage, NewTurn
from tinycluster.serve.storage.storage import Storage


async def make_tree(storage: Storage) -> str:
    """Two branches, one of them still pending."""
    conversations = storage.conversations
    turn = await conversations.begin_turn(
        "ann", NewTurn(None, NewMessage("user", "a\0\ud800é"), title="T\0", model="m")
    )
    assert turn is not None
    await conversations.finish(turn.answer.id, text="one", finish_reason="stop", usage={"prompt_tokens": 1})
    await conversations.begin_turn("ann", NewTurn(turn.conversation.id, None, parent_id=turn.message.id))
    await conversations.update("ann", turn.conversation.id, settings={"x": [1, None]}, metadata={"k": "v"})
    return turn.conversation.id


def without_ids(document: dict[str, Any]) -> dict[str, Any]:
    """Ids replaced by their places in the list."""
    copy = json.loads(json.dumps(document))
    for session in copy["sessions"]:
        places = {message["id"]: place for place, message in enumerate(session["messages"])}
        session["head_id"] = places.get(session["head_id"])
        for message in session["messages"]:
            message["id"], message["parent_id"] = places[message["id"]], places.get(message["parent_id"])
    return copy  # type: ignore[no-any-return]


def test_an_imported_session_is_the_exported_one_under_new_ids(storage: Storage) -> None:
    async def move() -> None:
        conversations = storage.conversations
        original_id = await make_tree(storage)
        document = await conversations.export_document("ann", original_id)
        assert document is not None
        (copy,) = await conversations.import_document("bob", json.loads(json.dumps(document)))
        assert copy.id != original_id
        imported = await conversations.export_document("bob")
        assert imported is not None
        expected = without_ids(document)
        # Nobody goes on with the pending one.
        expected["sessions"][0]["messages"][2]["state"] = "interrupted"
        assert without_ids(imported) == expected
        old = {message["id"] for message in document["sessions"][0]["messages"]}
        assert old.isdisjoint(message["id"] for message in imported["sessions"][0]["messages"])

    asyncio.run(move())


def test_all_sessions_are_exported_and_nobody_elses(storage: Storage) -> None:
    async def export() -> None:
        conversations = storage.conversations
        for title in ("first", "second"):
            await conversations.begin_turn("ann", NewTurn(None, NewMessage("user", title), title=title))
        await conversations.create("bob", title="third", items=[NewMessage("user", "x")])
        document = await conversations.export_document("ann")
        assert document is not None
        assert sorted(session["title"] for session in document["sessions"]) == ["first", "second"]
        assert [len(session["messages"]) for session in document["sessions"]] == [2, 2]
        assert await conversations.export_document("carl") == {**document, "sessions": []}
        listed = await conversations.list("bob", limit=1)
        assert await conversations.export_document("ann", listed.conversations[0].id) is None

    asyncio.run(export())


MESSAGE = {"id": "1", "role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("sessions", "param"),
    [
        (3, "sessions"),
        ([{"title": 3}], "sessions[0].title"),
        ([{"messages": [{**MESSAGE, "role": "king"}]}], "sessions[0].messages[0].role"),
        ([{"messages": [MESSAGE, MESSAGE]}], "sessions[0].messages[1].id"),
        ([{"messages": [{**MESSAGE, "parent_id": "2"}, {**MESSAGE, "id": "2"}]}], "sessions[0].messages[0].parent_id"),
        ([{"messages": [{**MESSAGE, "parent_id": "1"}]}], "sessions[0].messages[0].parent_id"),
        ([{}, {"messages": [MESSAGE], "head_id": "2"}], "sessions[1].head_id"),
        ([{"created_at": -1.0}], "sessions[0].created_at"),
        ([{"created_at": 1e300}], "sessions[0].created_at"),
    ],
)
def test_a_wrong_document_is_refused_with_the_place_and_nothing_is_stored(sessions: Any, param: str) -> None:
    async def refuse() -> None:
        storage = Storage(Database())
        document = {"format": "tinycluster.sessions", "version": 1, "sessions": sessions}
        with pytest.raises(RequestError) as refused:
            await storage.conversations.import_document("ann", document)
        assert refused.value.param == param
        assert (await storage.conversations.list("ann", limit=9)).conversations == []
        storage.close()

    asyncio.run(refuse())
