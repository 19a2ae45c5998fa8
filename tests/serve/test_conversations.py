"""/v1/conversations through the official client, and against the schemas that OpenAI publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.conversations import ConversationItemList

from tests.serve.openai_specification import violations
from tests.serve.strict_types import conforms
from tinycluster.serve import conversations

ITEMS: list[Any] = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "2"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two\0"}]},
]


@pytest.fixture
def api(fake_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="mine", max_retries=0) as api:
        yield api


def texts(items: Any) -> list[str]:
    return [part.text for item in items for part in item.content]


def said(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


def test_a_conversation_is_made_found_changed_and_deleted(api: openai.OpenAI) -> None:
    made = api.conversations.create(metadata={"topic": "tea"}, items=said("hi"))
    assert (made.object, made.metadata) == ("conversation", {"topic": "tea"})
    assert api.conversations.retrieve(made.id) == made
    assert api.conversations.update(made.id, metadata={"k": "v"}).metadata == {"k": "v"}
    assert api.conversations.update(made.id, metadata=None).metadata == {}
    gone = api.conversations.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
    for ask in (api.conversations.retrieve, api.conversations.delete, api.conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)


def test_items_are_listed_as_they_were_given(api: openai.OpenAI, client: httpx.Client) -> None:
    made = api.conversations.create(items=ITEMS[:2])
    added = api.conversations.items.create(made.id, items=ITEMS[2:])
    assert [item.type for item in added.data] == ["function_call", "function_call_output", "message"]
    listed = api.conversations.items.list(made.id, order="asc").data
    assert listed[2:] == added.data
    assert texts([listed[0], listed[1], listed[4]]) == ["be brief", "a", "b", "two\0"]
    assert [(listed[2].call_id, listed[2].arguments), (listed[3].call_id, listed[3].output)] == [
        ("c", "{}"),
        ("c", "2"),
    ]  # type: ignore[union-attr]
    for item in listed:
        assert api.conversations.items.retrieve(str(item.id), conversation_id=made.id) == item


def test_pages_follow_one_another_in_both_orders(api: openai.OpenAI) -> None:
    words = ["a", "b", "c", "d", "e"]
    made = api.conversations.create(items=said(*words))
    assert texts(api.conversations.items.list(made.id, limit=2)) == words[::-1]
    assert texts(api.conversations.items.list(made.id, limit=2, order="asc")) == words
    page = api.conversations.items.list(made.id, limit=5)
    assert not page.has_more
    assert texts(api.conversations.items.list(made.id, after=page.data[1].id or "", limit=2).data) == ["c", "b"]


def test_what_follows_a_deleted_item_stays(api: openai.OpenAI) -> None:
    made = api.conversations.create(items=said("a", "b", "c", "d"))
    for place, left in ((1, ["a", "c", "d"]), (2, ["a", "c"]), (0, ["c"]), (0, [])):
        items = api.conversations.items.list(made.id, order="asc").data
        assert api.conversations.items.delete(str(items[place].id), conversation_id=made.id) == made
        assert texts(api.conversations.items.list(made.id, order="asc")) == left
    api.conversations.items.create(made.id, items=said("again"))
    assert texts(api.conversations.items.list(made.id)) == ["again"]


def test_an_item_is_of_its_conversation_only(api: openai.OpenAI) -> None:
    one, other = api.conversations.create(items=said("a")), api.conversations.create(items=said("b"))
    item_id = str(api.conversations.items.list(one.id).data[0].id)
    for item in (item_id, "msg_0"):
        with pytest.raises(openai.NotFoundError) as missed:
            api.conversations.items.retrieve(item, conversation_id=other.id)
        assert missed.value.param == "item_id"
        with pytest.raises(openai.NotFoundError):
            api.conversations.items.delete(item, conversation_id=other.id)
    assert texts(api.conversations.items.list(one.id)) == ["a"]


def test_another_clients_conversation_does_not_exist(api: openai.OpenAI, fake_url: str) -> None:
    made = api.conversations.create(items=said("a"))
    item_id = str(api.conversations.items.list(made.id).data[0].id)
    body: dict[str, Any] = {"items": said("b"), "metadata": {}, "input": "a", "conversation": made.id}
    path = f"/v1/conversations/{made.id}"
    for key in ("other", None):
        with httpx.Client(base_url=fake_url, headers={"authorization": f"Bearer {key}"} if key else {}) as other:
            for method, asked in [
                *[("GET", path), ("POST", path), ("DELETE", path), ("GET", f"{path}/items"), ("POST", f"{path}/items")],
                *[("GET", f"{path}/items/{item_id}"), ("DELETE", f"{path}/items/{item_id}"), ("POST", "/v1/responses")],
            ]:
                json = body if method == "POST" else None
                answer = other.request(method, asked, json=json)
                json = {**body, "conversation": "conv_0"} if method == "POST" else None
                nobody = other.request(method, asked.replace(made.id, "conv_0").replace(item_id, "msg_0"), json=json)
                assert answer.status_code == nobody.status_code == 404
                assert answer.text.replace(made.id, "conv_0").replace(item_id, "msg_0") == nobody.text
    assert texts(api.conversations.items.list(made.id)) == ["a"]


def test_the_asynchronous_client_does_the_same(fake_url: str) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(base_url=f"{fake_url}/v1", api_key="mine", max_retries=0) as api:
            made = await api.conversations.create(items=said("a", "b"))
            await api.conversations.items.create(made.id, items=said("c"))
            found = [item async for item in api.conversations.items.list(made.id, order="asc", limit=1)]
            assert texts(found) == ["a", "b", "c"]
            await api.conversations.items.delete(str(found[0].id), conversation_id=made.id)
            await api.conversations.update(made.id, metadata={"a": "b"})
            assert (await api.conversations.retrieve(made.id)).metadata == {"a": "b"}
            assert (await api.conversations.delete(made.id)).deleted

    asyncio.run(use())


def test_every_answer_is_as_published(client: httpx.Client) -> None:
    made = client.post("/v1/conversations", json={"items": ITEMS, "metadata": {"a": "b"}}).json()
    path = f"/v1/conversations/{made['id']}"
    assert violations("ConversationResource", made) == []
    assert violations("ConversationResource", client.get(path).json()) == []
    assert violations("ConversationResource", client.post(path, json={"metadata": {}}).json()) == []
    added = client.post(f"{path}/items", json={"items": ITEMS}, params={"include": "message.output_text.logprobs"})
    for items in (added.json(), client.get(f"{path}/items").json()):
        assert violations("ConversationItemList", items) == []
        conforms(ConversationItemList, items)
    item = added.json()["data"][0]
    assert violations("ConversationItem", client.get(f"{path}/items/{item['id']}").json()) == []
    assert violations("ConversationResource", client.delete(f"{path}/items/{item['id']}").json()) == []
    assert violations("DeletedConversation", client.delete(path).json()) == []
    assert violations("ErrorResponse", client.get(path).json()) == []
    assert violations("ConversationResource", {**made, "object": "thread"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": said(*"a" * 21)}, "items"),
        ({"items": "a"}, "items"),
        ({"items": [{"role": "king", "content": "a"}]}, "items[0].role"),
        ({"items": [{"role": "user"}]}, "items[0].content"),
        ({"items": [{"role": "user", "content": 3}]}, "items[0].content"),
        ({"items": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}, "items[0].content"),
        ({"items": [*said("a"), {"type": "item_reference", "id": "msg_1"}]}, "items[1]"),
        ({"items": [{"type": "reasoning", "summary": []}]}, "items[0]"),
        ({"items": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "items[0].arguments"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"k": 3}}, "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": []}, "metadata"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    path = f"/v1/conversations/{client.post('/v1/conversations', json={}).json()['id']}"
    for asked in ("/v1/conversations", path if "metadata" in body else f"{path}/items"):
        answer = client.post(asked, json=body)
        assert (answer.status_code, answer.json()["error"]["param"].startswith(param)) == (400, True), answer.text
    assert client.get(f"{path}/items").json()["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("order=up", "order"), ("after=none", "after"), ("include=all", "include")],
)
def test_a_wrong_page_is_refused(client: httpx.Client, query: str, param: str) -> None:
    path = f"/v1/conversations/{client.post('/v1/conversations', json={}).json()['id']}"
    answer = client.get(f"{path}/items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert client.post(f"{path}/items", json={}).json()["error"]["param"] == "items"
    assert client.post(f"{path}/items", json={"items": []}).json()["error"]["param"] == "items"
    assert client.post(path, json={}).json()["error"]["param"] == "metadata"


def test_as_much_as_may_be_is_taken(client: httpx.Client) -> None:
    metadata = {f"{number:064}": "v" * 512 for number in range(16)}
    made = client.post("/v1/conversations", json={"items": said(*"a" * 20), "metadata": metadata}).json()
    assert made["metadata"] == metadata
    listed = client.get(f"/v1/conversations/{made['id']}/items", params={"limit": 100}).json()
    assert len(listed["data"]) == 20


def test_a_conversation_takes_no_more_characters_than_can_be_read(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_CHARS", 6)
    path = f"/v1/conversations/{client.post('/v1/conversations', json={'items': said('äbc')}).json()['id']}"
    refused = client.post(f"{path}/items", json={"items": said("de", "fg")})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items")
    assert "at most 6 characters, and has 3" in refused.json()["error"]["message"]
    assert client.post(f"{path}/items", json={"items": said("d", "ef")}).status_code == 200
    assert client.post(f"{path}/items", json={"items": said("g")}).status_code == 400
    assert client.post("/v1/conversations/conv_none/items", json={"items": said("g")}).status_code == 404


def test_a_conversation_takes_no_more_than_can_be_read(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_ITEMS", 3)
    path = f"/v1/conversations/{client.post('/v1/conversations', json={'items': said('a')}).json()['id']}"
    refused = client.post(f"{path}/items", json={"items": said("b", "c", "d")})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items")
    assert client.post(f"{path}/items", json={"items": said("b", "c")}).status_code == 200
    assert client.post(f"{path}/items", json={"items": said("d")}).status_code == 400
    assert len(client.get(f"{path}/items").json()["data"]) == 3
