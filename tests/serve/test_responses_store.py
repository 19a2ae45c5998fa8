"""Responses as text in storage, and the memory that their items take."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.serve.responses_store import as_text, context_of, items_of, listed, memory_of, stored_context

TEXTS = st.one_of(st.text(), st.sampled_from(["],\n[", ",\n", "\u2028", "\0", '"logprobs": []', "\\"]))
ITEMS = st.lists(st.dictionaries(TEXTS, st.one_of(TEXTS, st.none(), st.lists(st.integers()))))


@given(ITEMS)
def test_items_are_a_list_of_json_and_are_read_as_they_were(items: list[dict[str, Any]]) -> None:
    assert json.loads(listed(items)) == items
    assert items_of(listed(items)) == items
    assert listed(items).isascii()


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_response_is_continued_with_its_input_and_then_its_output(size: int) -> None:
    said, answered = {"role": "user", "content": "a" * size}, {"id": "msg_1", "type": "message", "content": ["b"]}
    response = {
        "id": "resp_1",
        "status": "completed",
        "conversation": {"id": "conv_1"},
        "previous_response_id": "resp_0",
        "output": [answered],
    }

    async def store_and_read() -> None:
        kept = await as_text(response, {"msg_1": ""}, context_of([said]))
        assert json.loads(kept.object) == response
        assert (kept.conversation_id, kept.previous_id, kept.status) == ("conv_1", "resp_0", "completed")
        assert await stored_context(kept) == context_of([said, answered])

    asyncio.run(store_and_read())


@pytest.mark.parametrize(
    "value", [[[] for _ in range(500)], [{} for _ in range(500)], list(range(1000, 1500)), [{"a": [1.5, "b"]}] * 9]
)
def test_memory_is_estimated_from_above(value: object) -> None:
    tracemalloc.start()
    copy = json.loads(json.dumps(value))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert copy == value
    assert used - 2000 <= memory_of(value)
