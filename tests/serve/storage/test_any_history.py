"""Any history of turns, edits, forks and deletions, over every database, against dictionaries.

`--storage-histories 2000` goes through more of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.serve.storage.plain_conversations import PlainConversation, PlainMessage, PlainStore, PlainTurn
from tinycluster.engine.errors import RequestError
from tinycluster.serve.storage.records import NewMessage, NewTurn, Turn
from tinycluster.serve.storage.storage import Storage

T = TypeVar("T")

TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)
"""With NUL, lone surrogates and noncharacters."""
PART_OF_EXAMPLES = {"memory": 1, "sqlite": 4, "postgresql": 8}
"""Databases on a disk go through so many times fewer histories."""
NUM_STEPS = 25


class AnyHistory(RuleBasedStateMachine):
    def __init__(self, storage: Storage, number: int) -> None:
        super().__init__()
        self.storage, self.repository = storage, storage.conversations
        self.owners = [f"ann{number}", f"bob{number}"]
        self.plain = PlainStore()
        self.turns: list[Turn] = []
        self.client_ids = count()
        self.told: list[tuple[str, NewTurn, Turn]] = []
        self.loop = asyncio.new_event_loop()

    def run_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.loop.close()

    def pick(self, data: st.DataObject) -> tuple[str, PlainConversation]:
        conversation_id = data.draw(st.sampled_from(list(self.plain.conversations)), "conversation")
        return conversation_id, self.plain.conversations[conversation_id]

    def begin(self, owner: str, asked: NewTurn, parent_id: str | None) -> None:
        turn = self.run_(self.repository.begin_turn(owner, asked))
        assert turn is not None
        assert not turn.is_repeated
        text = None if asked.message is None else asked.message.text
        self.plain.begin(owner, plain(turn), text, parent_id, asked.title)
        self.turns.append(turn)
        if asked.message is not None and asked.message.id is not None:
            self.told.append((owner, asked, turn))

    @rule(data=st.data(), text=TEXTS, title=TEXTS, has_id=st.booleans())
    def begin_conversation(self, data: st.DataObject, text: str, title: str, has_id: bool) -> None:
        owner = data.draw(st.sampled_from(self.owners))
        message = NewMessage("user", text, id=f"mine{next(self.client_ids)}" if has_id else None)
        self.begin(owner, NewTurn(None, message, title=title), None)

    @precondition(lambda self: self.plain.conversations)
    @rule(data=st.data(), text=TEXTS, has_id=st.booleans())
    def go_on(self, data: st.DataObject, text: str, has_id: bool) -> None:
        conversation_id, conversation = self.pick(data)
        message = NewMessage("user", text, id=f"mine{next(self.client_ids)}" if has_id else None)
        if data.draw(st.booleans(), "at head"):
            self.begin(conversation.owner, NewTurn(conversation_id, message), conversation.head_id)
        else:
            parent_id = data.draw(st.sampled_from([None, *conversation.messages]), "parent")
            self.begin(conversation.owner, NewTurn(conversation_id, message, parent_id=parent_id), parent_id)

    @precondition(lambda self: self.plain.conversations)
    @rule(data=st.data())
    def answer_again(self, data: st.DataObject) -> None:
        conversation_id, conversation = self.pick(data)
        users = [None, *(id_ for id_, message in conversation.messages.items() if message.role == "user")]
        parent_id = data.draw(st.sampled_from(users), "user's message")
        asked = NewTurn(conversation_id, None, parent_id=parent_id)
        if parent_id is None:
            with pytest.raises(RequestError):
                self.run_(self.repository.begin_turn(conversation.owner, asked))
        else:
            self.begin(conversation.owner, asked, None)

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        owner, asked, first = data.draw(st.sampled_from(self.told))
        conversation = self.plain.conversations.get(first.conversation.id)
        if conversation is not None and {first.message.id, first.answer.id} <= conversation.messages.keys():
            again = self.run_(self.repository.begin_turn(owner, asked))
            assert again is not None
            assert again.is_repeated
            assert again.message.text == first.message.text
            assert conversation.messages[again.answer.id].parent_id == first.message.id

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), text=TEXTS, is_end=st.booleans(), is_whole=st.booleans())
    def write(self, data: st.DataObject, text: str, is_end: bool, is_whole: bool) -> None:
        turn = data.draw(st.sampled_from(self.turns))
        answer = self.plain.answer(turn.answer.id)
        if is_end:
            state: Any = "complete" if is_whole else "interrupted"
            finished = self.run_(self.repository.finish(turn.answer.id, text=text, state=state))
            assert (finished is None) == (answer is None)
        else:
            state = "streaming"
            assert self.run_(self.repository.checkpoint(turn.answer.id, text)) == (answer is not None)
        if answer is not None:
            answer.state, answer.text = state, text

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(self.turns))
        self.turns.remove(turn)
        self.run_(self.repository.discard_turn(turn))
        self.plain.discard(plain(turn))

    @precondition(lambda self: self.plain.conversations)
    @rule(data=st.data())
    def move_head(self, data: st.DataObject) -> None:
        conversation_id, conversation = self.pick(data)
        head_id = data.draw(st.sampled_from([None, *conversation.messages]), "head")
        assert self.run_(self.repository.update(conversation.owner, conversation_id, head_id=head_id)) is not None
        conversation.head_id = head_id

    @precondition(lambda self: self.plain.conversations)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        conversation_id, conversation = self.pick(data)
        leaf_id = data.draw(st.sampled_from([None, *conversation.messages]), "leaf")
        if leaf_id is None:
            copy = self.run_(self.repository.fork(conversation.owner, conversation_id))
            leaf_id = conversation.head_id
        else:
            copy = self.run_(self.repository.fork(conversation.owner, conversation_id, leaf_id))
        assert copy is not None
        found = self.run_(self.repository.with_messages(conversation.owner, copy.id))
        assert found is not None
        self.plain.fork(conversation_id, copy.id, [message.id for message in found[1]], leaf_id)

    @precondition(lambda self: self.plain.conversations)
    @rule(data=st.data(), texts=st.lists(TEXTS, max_size=3))
    def add_items(self, data: st.DataObject, texts: list[str]) -> None:
        conversation_id, conversation = self.pick(data)
        items = [NewMessage("assistant", text) for text in texts]
        made = self.run_(self.repository.add_items(conversation.owner, conversation_id, items))
        assert made is not None
        for message, text in zip(made, texts, strict=True):
            conversation.messages[message.id] = PlainMessage(conversation.head_id, "assistant", "complete", text)
            conversation.head_id = message.id

    @precondition(lambda self: any(c.messages for c in self.plain.conversations.values()))
    @rule(data=st.data())
    def delete_message(self, data: st.DataObject) -> None:
        conversation_id, conversation = self.pick(data)
        if conversation.messages:
            message_id = data.draw(st.sampled_from(list(conversation.messages)), "message")
            left = self.run_(self.repository.delete_message(conversation.owner, conversation_id, message_id))
            assert left is not None
            self.plain.delete_message(conversation_id, message_id)

    @precondition(lambda self: len(self.plain.conversations) > 2)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        conversation_id, conversation = self.pick(data)
        assert self.run_(self.repository.delete(conversation.owner, conversation_id))
        assert not self.run_(self.repository.delete(conversation.owner, conversation_id))
        del self.plain.conversations[conversation_id]

    @precondition(lambda self: self.plain.conversations)
    @rule(data=st.data())
    def others_find_nothing(self, data: st.DataObject) -> None:
        conversation_id, conversation = self.pick(data)
        stranger = next(owner for owner in self.owners if owner != conversation.owner)
        repository = self.repository
        message_id = next(iter(conversation.messages), "msg_none")
        assert self.run_(repository.get(stranger, conversation_id)) is None
        assert self.run_(repository.with_messages(stranger, conversation_id)) is None
        assert self.run_(repository.path(stranger, conversation_id, message_id)) is None
        assert self.run_(repository.message(stranger, conversation_id, message_id)) is None
        assert self.run_(repository.update(stranger, conversation_id, title="stolen")) is None
        assert self.run_(repository.fork(stranger, conversation_id, message_id)) is None
        assert self.run_(repository.export_document(stranger, conversation_id)) is None
        assert self.run_(repository.add_items(stranger, conversation_id, [NewMessage("user", "x")])) is None
        assert self.run_(repository.delete_message(stranger, conversation_id, message_id)) is None
        assert self.run_(repository.begin_turn(stranger, NewTurn(conversation_id, NewMessage("user", "x")))) is None
        assert not self.run_(repository.delete(stranger, conversation_id))

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        for owner in self.owners:
            listed = self.run_(self.repository.list(owner, limit=1000)).conversations
            expected = {id_: c for id_, c in self.plain.conversations.items() if c.owner == owner}
            assert {found.id: (found.title, found.head_id) for found in listed} == {
                id_: (conversation.title, conversation.head_id) for id_, conversation in expected.items()
            }
        for conversation_id, conversation in list(self.plain.conversations.items())[-2:]:
            self.check(conversation_id, conversation)

    def check(self, conversation_id: str, conversation: PlainConversation) -> None:
        stored = self.run_(self.repository.with_messages(conversation.owner, conversation_id))
        assert stored is not None
        found = {m.id: PlainMessage(m.parent_id, m.role, m.state, m.text) for m in stored[1]}
        assert list(found.items()) == list(conversation.messages.items())
        path = self.run_(self.repository.path(conversation.owner, conversation_id))
        assert path is not None
        assert [message.id for message in path] == conversation.path(conversation.head_id)


def plain(turn: Turn) -> PlainTurn:
    return PlainTurn(
        turn.conversation.id,
        turn.message.id,
        turn.message.parent_id,
        turn.answer.id,
        turn.made_conversation,
        turn.made_message,
        turn.previous_head_id,
    )


def test_any_history_leaves_what_dictionaries_would_hold(storage: Storage, request: pytest.FixtureRequest) -> None:
    numbers, kind = count(), request.node.callspec.params["url"]
    num_histories = int(request.config.getoption("--storage-histories"))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: AnyHistory(storage, next(numbers)),
        settings=settings(
            max_examples=max(1, num_histories // PART_OF_EXAMPLES[kind]),
            stateful_step_count=NUM_STEPS,
            deadline=None,
            # A shorter history would be nice, but finding it takes longer than a test may.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
