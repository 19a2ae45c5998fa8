"""What the repository of conversations must do, said plainly: dictionaries in memory, no transactions, no SQL."""

from __future__ import annotations

from dataclasses import dataclass, field

OPEN = ("pending", "streaming")


@dataclass
class PlainMessage:
    parent_id: str | None
    role: str
    state: str
    text: str


@dataclass
class PlainConversation:
    """Messages by id, in the order in which they came."""

    owner: str
    title: str
    head_id: str | None = None
    messages: dict[str, PlainMessage] = field(default_factory=dict)

    def path(self, leaf_id: str | None) -> list[str]:
        path: list[str] = []
        while leaf_id is not None:
            path.insert(0, leaf_id)
            leaf_id = self.messages[leaf_id].parent_id
        return path

    def has_child(self, message_id: str) -> bool:
        return any(message.parent_id == message_id for message in self.messages.values())


@dataclass
class PlainTurn:
    conversation_id: str
    message_id: str
    parent_id: str | None
    answer_id: str
    made_conversation: bool
    made_message: bool
    previous_head_id: str | None


@dataclass
class PlainStore:
    conversations: dict[str, PlainConversation] = field(default_factory=dict)

    def begin(
        self,
        owner: str,
        ids: PlainTurn,
        text: str | None,
        parent_id: str | None,
        title: str,
    ) -> None:
        """The ids are those that the repository has given."""
        if ids.made_conversation:
            self.conversations[ids.conversation_id] = PlainConversation(owner, title)
        conversation = self.conversations[ids.conversation_id]
        if text is not None:
            conversation.messages[ids.message_id] = PlainMessage(parent_id, "user", "complete", text)
        conversation.messages[ids.answer_id] = PlainMessage(ids.message_id, "assistant", "pending", "")
        conversation.head_id = ids.answer_id

    def discard(self, turn: PlainTurn) -> None:
        conversation = self.conversations.get(turn.conversation_id)
        if conversation is None:
            return
        followed = turn.parent_id if turn.made_message else turn.message_id
        if conversation.has_child(turn.answer_id):
            if (answer := self.answer(turn.answer_id)) is not None:
                answer.state = "interrupted"
            return
        gone = [turn.answer_id]
        conversation.messages.pop(turn.answer_id, None)
        if turn.made_message and not conversation.has_child(turn.message_id):
            gone.append(turn.message_id)
            conversation.messages.pop(turn.message_id, None)
        if turn.made_conversation and not conversation.messages:
            del self.conversations[turn.conversation_id]
        elif conversation.head_id in gone:
            own = turn.message_id if turn.made_message else None
            candidates = (own, turn.previous_head_id, followed)
            left = (message_id for message_id in candidates if message_id in conversation.messages)
            conversation.head_id = next(left, None)

    def answer(self, answer_id: str) -> PlainMessage | None:
        """The open answer of this id."""
        for conversation in self.conversations.values():
            message = conversation.messages.get(answer_id)
            if message is not None and message.state in OPEN:
                return message
        return None

    def delete_message(self, conversation_id: str, message_id: str) -> None:
        conversation = self.conversations[conversation_id]
        gone = conversation.messages.pop(message_id)
        for message in conversation.messages.values():
            if message.parent_id == message_id:
                message.parent_id = gone.parent_id
        if conversation.head_id == message_id:
            conversation.head_id = gone.parent_id

    def fork(self, conversation_id: str, copy_id: str, copy_ids: list[str], leaf_id: str | None) -> None:
        original = self.conversations[conversation_id]
        copy = PlainConversation(original.owner, original.title)
        for message_id, new_id in zip(original.path(leaf_id), copy_ids, strict=True):
            message = original.messages[message_id]
            state = "interrupted" if message.state in OPEN else message.state
            copy.messages[new_id] = PlainMessage(copy.head_id, message.role, state, message.text)
            copy.head_id = new_id
        self.conversations[copy_id] = copy
