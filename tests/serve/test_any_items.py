"""Any JSON as items is refused with the field's name, or comes out of a conversation as it went in."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.openai_specification import violations
from tests.serve.test_any_json import ANY_JSON
from tinycluster.engine.errors import RequestError
from tinycluster.serve.conversation_fields import CreateConversation, CreateItems, UpdateConversation
from tinycluster.serve.conversation_items import item_of, new_message_of
from tinycluster.serve.responses_items import messages_of, validated_items
from tinycluster.serve.storage.rows import new_message

KINDS = ["message", "function_call", "function_call_output", "item_reference", "input_text", "output_text", "refusal"]
TEXT = st.text(max_size=5)
PART = st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional={"text": TEXT, "refusal": TEXT})
CONTENT = TEXT | st.lists(PART, max_size=3) | ANY_JSON
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | ANY_JSON,
        "role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | ANY_JSON,
        "content": CONTENT,
        "output": CONTENT,
        "call_id": TEXT | ANY_JSON,
        "name": TEXT,
        "arguments": TEXT | ANY_JSON,
        "id": ANY_JSON,
        "status": ANY_JSON,
    },
)
BODY = st.fixed_dictionaries({}, optional={"items": st.lists(ITEM, max_size=3) | ANY_JSON, "metadata": ANY_JSON})


@settings(max_examples=300, deadline=None)
@given(BODY)
def test_any_json_is_a_conversation_or_a_mistake_with_its_name(body: dict[str, Any]) -> None:
    mistakes = [mistake(kind, body) for kind in (CreateConversation, CreateItems, UpdateConversation)]
    for error in filter(None, mistakes):
        assert error.message
        assert (error.param or "").partition("[")[0].partition(".")[0] in ("items", "metadata")


def mistake(kind: Any, body: dict[str, Any]) -> RequestError | None:
    try:
        validated_items(kind, body)
    except RequestError as error:
        return error
    return None


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=3))
def test_an_item_that_is_taken_comes_out_as_it_went_in(items: list[dict[str, Any]]) -> None:
    for item in items:
        try:
            (taken,) = validated_items(CreateItems, {"items": [item]}).items
        except RequestError:
            continue
        listed = taken.as_listed()
        message = new_message(new_message_of(listed), "conv_1", None, 0)
        assert item_of(message) == listed
        assert violations("ConversationItem", listed) == []
        if listed["type"] != "function_call_output":
            assert len(messages_of(None, [listed])) == 1
