"""The load generator in virtual time, and its reading of streams cut anywhere."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.serve.virtual_time import in_virtual_time
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.client import Answer, EventReader, Target, run_load
from tinycluster.serve.bench.metrics import Record, peak_concurrency
from tinycluster.serve.bench.workload import BenchRequest


async def serve_for(seconds: float, arrivals_s: tuple[float, ...], limit: int | None) -> tuple[list[Record], float]:
    """Run a load against a server that takes `seconds` for each request; starts are relative to the run's."""
    clock = asyncio.get_running_loop().time
    zero_s = clock()

    async def send(request: BenchRequest) -> Record:
        start_s = clock()
        await asyncio.sleep(seconds)
        return Record(start_s - zero_s, clock() - zero_s)

    requests = [BenchRequest((index,), 1) for index in range(len(arrivals_s))]
    records, duration_s = await run_load(send, requests, arrivals_s, max_concurrency=limit, clock=clock)
    return list(records), duration_s


def test_open_load_sends_each_request_when_it_is_due_whatever_the_server_does() -> None:
    records, duration_s = in_virtual_time(serve_for(10.0, (0.0, 0.5, 2.0, 2.0), None))
    assert [record.start_s for record in records] == pytest.approx([0.0, 0.5, 2.0, 2.0])
    assert duration_s == pytest.approx(12.0)
    assert peak_concurrency(records) == 4


def test_closed_load_never_exceeds_its_concurrency_and_refills_at_once() -> None:
    records, duration_s = in_virtual_time(serve_for(1.0, (0.0,) * 7, 3))
    assert sorted(record.start_s for record in records) == pytest.approx([0, 0, 0, 1, 1, 1, 2])
    assert peak_concurrency(records) == 3
    assert duration_s == pytest.approx(3.0)


def test_records_stay_in_request_order_and_progress_is_told_once_per_request() -> None:
    async def main() -> tuple[list[float], int]:
        clock = asyncio.get_running_loop().time
        done: list[int] = []

        async def send(request: BenchRequest) -> Record:
            await asyncio.sleep(request.output_tokens)
            return Record(0.0, float(request.output_tokens))

        requests = [BenchRequest("x", seconds) for seconds in (5, 1, 3)]
        records, _ = await run_load(send, requests, (0.0,) * 3, max_concurrency=None, clock=clock, on_done=done.append)
        return [record.end_s for record in records], sum(done)

    assert in_virtual_time(main()) == ([5.0, 1.0, 3.0], 3)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text_event(text: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": finish_reason}])


USAGE = event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 6})
STREAM = b": ping\n\n" + text_event("a\u2028b") + text_event("c") + text_event("", "stop") + USAGE + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    reader = EventReader()
    payloads = [
        payload for start in range(0, len(STREAM), size) for payload in reader.push(STREAM[start : start + size])
    ]
    assert len(payloads) == 5
    assert payloads[-1] == b"[DONE]"
    assert json.loads(payloads[0])["choices"][0]["text"] == "a\u2028b"


def answer_to(*events: bytes) -> Record:
    """The record of a stream whose n-th payload arrives n seconds after the request was sent."""
    answer, reader = Answer(), EventReader()
    for second, payload in enumerate(reader.push(b"".join(events)), start=1):
        answer.take(payload, float(second))
    return answer.record(0.0, 99.0)


def test_tokens_are_counted_by_the_server_and_times_by_the_parts() -> None:
    record = answer_to(STREAM)
    assert record == Record(0.0, 3.0, (1.0, 2.0), prompt_tokens=4, output_tokens=6)


def test_a_chat_starts_at_its_first_text_and_not_at_its_role() -> None:
    def delta(finish_reason: str | None = None, **fields: str) -> bytes:
        return event(choices=[{"index": 0, "delta": fields, "finish_reason": finish_reason}])

    record = answer_to(
        delta(role="assistant", content=""), delta(content="Hi"), delta(content=""), delta("stop"), USAGE
    )
    assert record.chunk_times_s == (2.0, 3.0)
    assert record.end_s == 4.0


def test_an_answer_without_any_text_still_has_a_first_token() -> None:
    assert answer_to(text_event("", "length"), USAGE).chunk_times_s == (1.0,)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((text_event("a"), event(error={"message": "rank 1 was lost"})), "rank 1 was lost"),
        ((text_event("a"),), "without a finish_reason"),
        ((text_event("a", "stop"),), "no usage"),
    ],
)
def test_a_broken_stream_is_a_failure_with_its_reason(events: tuple[bytes, ...], reason: str) -> None:
    record = answer_to(*events)
    assert record.error is not None
    assert reason in record.error


def test_a_chat_refuses_prompts_of_ids_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"--endpoint /v1/completions"):
        Target("/v1/chat/completions", "m").body(BenchRequest((1, 2), 3))


def test_requests_ask_for_usage_and_carry_ids_or_messages() -> None:
    completion = Target("/v1/completions", "m", ignore_eos=True).body(BenchRequest((1, 2), 3))
    assert completion["prompt"] == [1, 2]
    assert completion["max_tokens"] == 3
    assert completion["ignore_eos"] is True
    assert completion["stream_options"] == {"include_usage": True}
    chat = Target("/v1/chat/completions", "m").body(BenchRequest("Hi", 3))
    assert chat["messages"] == [{"role": "user", "content": "Hi"}]
    assert "ignore_eos" not in chat
