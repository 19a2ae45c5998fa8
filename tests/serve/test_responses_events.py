"""The events of an answer, one delta at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.serve.openai_specification import violations
from tests.serve.strict_types import conforms
from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import UnavailableError
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.tool_calls import tool_call_parser
from tinycluster.serve.errors import ErrorReply
from tinycluster.serve.responses_events import ResponseEvents, new_response
from tinycluster.serve.responses_fields import parse_responses

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def response_events(*, finds_calls: bool = False) -> tuple[ResponseEvents, list[str]]:
    asked = parse_responses({"input": "a", "tools": [TOOL] if finds_calls else []})
    ends: list[str] = []
    response = new_response(asked, "fake", SamplingParams(), 1)
    parser = tool_call_parser("hermes", ["add"]) if finds_calls else None

    async def keep(ended: Mapping[str, Any]) -> None:
        assert response["status"] == "in_progress"
        ends.append(ended["status"])

    return ResponseEvents(response, lambda: 2.5, keep, parser), ends


def payloads(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def run(events: ResponseEvents, *texts: str, reason: Any = "stop") -> list[dict[str, Any]]:
    deltas = [Delta((1,), text) for text in texts] + [Delta((), "", reason)]
    told = events.opening(0) + "".join(events.delta(0, delta) for delta in deltas) + events.usage(USAGE)
    return payloads(told + asyncio.run(events.commit()))


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_every_event_is_of_its_declared_type_and_as_published(reason: str) -> None:
    events, _ = response_events(finds_calls=True)
    seen = run(events, "I add. ", CALL, CALL, " Done.", reason=reason)
    for event in seen:
        conforms(ResponseStreamEvent, event)
        assert violations("ResponseStreamEvent", event) == []
    conforms(Response, events.response)
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))


def test_text_and_calls_are_items_in_the_order_in_which_they_come() -> None:
    events, ends = response_events(finds_calls=True)
    seen = run(events, "I add.", CALL, CALL)
    output = events.response["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert json.loads(output[1]["arguments"]) == {"a": 1}
    assert len({item["id"] for item in output} | {item["call_id"] for item in output[1:]}) == 5
    assert [item["status"] for item in output] == ["completed"] * 3
    assert ends == ["completed"]
    done = [event["item"] for event in seen if event["type"] == "response.output_item.done"]
    added = [event["output_index"] for event in seen if event["type"] == "response.output_item.added"]
    assert (done, added) == (output, [0, 1, 2])
    assert seen[-1]["response"] == events.response


def test_deltas_of_an_item_join_to_what_it_ends_with() -> None:
    events, _ = response_events(finds_calls=True)
    seen = run(events, *"I add.", *CALL, *CALL)
    for item in events.response["output"]:
        deltas = [event["delta"] for event in seen if event.get("item_id") == item["id"] and "delta" in event]
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert len(deltas) > 1
        assert "".join(deltas) == whole


def test_a_call_that_is_cut_short_is_incomplete() -> None:
    events, ends = response_events(finds_calls=True)
    run(events, CALL[:45], reason="length")
    assert [(item["type"], item["status"]) for item in events.response["output"]] == [("function_call", "incomplete")]
    assert (ends, events.response["incomplete_details"]) == (["incomplete"], {"reason": "max_output_tokens"})
    assert events.response["completed_at"] is None


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    events, _ = response_events()
    run(events)
    assert [item["content"][0]["text"] for item in events.response["output"]] == [""]


def test_usage_counts_the_cached_tokens() -> None:
    events, _ = response_events()
    run(events, "a")
    usage = events.response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (3, 4, 7)
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    assert events.response["completed_at"] == 2


def test_an_ended_response_stays_as_it_ended() -> None:
    events, ends = response_events()
    events.delta(0, Delta((1,), "half"))
    events.cancel()
    assert events.failed(ErrorReply(503, "late")) == ""
    events.cancel()
    assert (ends, events.response["status"]) == ([], "cancelled")
    assert events.response["error"] is None
    assert events.response["output"][0]["content"][0]["text"] == "half"
    assert events.response["output"][0]["status"] == "incomplete"


def test_a_response_that_fails_before_its_first_event_has_all_of_them_once() -> None:
    for begins in (False, True):
        events, ends = response_events()
        begun = payloads(events.opening(0)) if begins else []
        seen = begun + payloads(events.failed(ErrorReply(503, "a rank was lost")))
        kinds = [event["type"] for event in seen]
        assert kinds == ["response.created", "response.in_progress", "response.failed"]
        assert [event["sequence_number"] for event in seen] == [0, 1, 2]
        assert (ends, seen[-1]["response"]["error"]["message"]) == ([], "a rank was lost")


def ended_but_for_commit(keep: Callable[[Mapping[str, Any]], Awaitable[None]]) -> tuple[ResponseEvents, str]:
    response = new_response(parse_responses({"input": "a"}), "fake", SamplingParams(), 1)
    events = ResponseEvents(response, lambda: 2.5, keep)
    told = events.opening(0) + events.delta(0, Delta((1,), "a", "stop")) + events.usage(USAGE)
    return events, told


def test_what_could_not_be_stored_was_never_completed() -> None:
    async def keep(_ended: Mapping[str, Any]) -> None:
        raise UnavailableError("the disk is full")

    events, told = ended_but_for_commit(keep)
    assert "response.completed" not in told
    with pytest.raises(UnavailableError):
        asyncio.run(events.commit())
    assert events.response["status"] == "in_progress"
    seen = payloads(told + events.failed(ErrorReply(503, "the disk is full")))
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert (seen[-1]["type"], seen[-1]["response"]["completed_at"]) == ("response.failed", None)
    assert violations("ResponseStreamEvent", seen[-1]) == []


def test_a_response_is_in_progress_until_it_is_stored_and_cannot_be_cancelled_meanwhile() -> None:
    async def keep(ended: Mapping[str, Any]) -> None:
        assert ended["status"] == "completed"
        assert not events.is_over
        events.cancel()
        assert not events.is_over

    events, _ = ended_but_for_commit(keep)
    assert payloads(asyncio.run(events.commit()))[0]["type"] == "response.completed"
    assert events.response["status"] == "completed"


def test_a_type_is_strict() -> None:
    events, _ = response_events()
    run(events, "a")
    for change in ({"output": "a"}, {"parallel_tool_calls": 1}, {"id": None}):
        with pytest.raises(ValueError):
            conforms(Response, {**events.response, **change})
