"""Messages of conversations as items of OpenAI's API, and items as messages.

A message that is only a role and one text needs no item beside it; a call of a function, its result and a message of
several parts do. The id is the message's: copies of a message have the same item. An item that was imported may be
anything: what is none of ours is passed over, and the message is its role and text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinycluster.serve.responses_items import message_item, text_of
from tinycluster.serve.sessions_shown import title_of
from tinycluster.serve.storage.records import OPEN_STATES, Message, NewMessage

TEXTS_OF = {
    "function_call": ("call_id", "name", "arguments", "status"),
    "function_call_output": ("call_id", "output", "status"),
}
ROLES = ("user", "assistant", "system", "developer")


def item_of(message: Message) -> dict[str, Any]:
    if message.item is not None and _is_ours(message.item):
        return {**message.item, "id": message.id}
    if message.state in OPEN_STATES:
        status = "in_progress"
    else:
        status = "completed" if message.state == "complete" else "incomplete"
    return message_item(message.role, [message.text], status, message.id)


def new_message_of(item: Mapping[str, Any], model: str | None = None) -> NewMessage:
    """`model` is whose answer it is. The text is what people see and search."""
    kept = {name: value for name, value in item.items() if name != "id"}
    if item["type"] == "function_call":
        return NewMessage("assistant", f"{item['name']}({item['arguments']})", item["id"], kept, model)
    if item["type"] == "function_call_output":
        return NewMessage("tool", item["output"], item["id"], kept)
    is_plain = len(item["content"]) == 1 and item["status"] == "completed"
    return NewMessage(item["role"], text_of(item), item["id"], None if is_plain else kept, model)


def _is_ours(item: Mapping[str, Any]) -> bool:
    kind = item.get("type")
    if isinstance(kind, str) and kind in TEXTS_OF:
        return all(isinstance(item.get(name), str) for name in TEXTS_OF[kind])
    parts = item.get("content")
    is_message = kind == "message" and item.get("role") in ROLES and isinstance(item.get("status"), str)
    return is_message and isinstance(parts, list) and bool(parts) and all(map(_is_text, parts))


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in ("input_text", "output_text")
        and isinstance(part.get("text"), str)
    )


def title_of_items(items: Sequence[NewMessage]) -> str:
    """What a conversation that begins with them is called: as its user began it."""
    return next((title_of(item.text) for item in items if item.role == "user"), "")
