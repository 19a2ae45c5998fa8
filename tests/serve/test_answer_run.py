"""One run without HTTP, in virtual time: when it is stored, how it ends, and who is told what when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.serve.scripted_run import Fed, Kept, settled, started
from tests.serve.virtual_time import in_virtual_time
from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.answer_events import live
from tinycluster.serve.answer_run import RETRY_S, AnswerRun
from tinycluster.serve.answer_runs import DRAIN_S, AnswerRuns
from tinycluster.serve.choices import Choices


def test_an_answer_is_stored_a_second_after_its_first_unstored_token() -> None:
    async def run() -> Kept:
        _, generation, kept = started()
        for number in range(5):
            generation.feed(str(number))
            await asyncio.sleep(0.45)
        await asyncio.sleep(10)
        generation.feed("", "stop")
        await settled()
        return kept

    kept = in_virtual_time(run())
    # The 3rd token comes at 0.9 s, the 4th begins a new second at 1.35 s.
    assert [(round(time_s - 100, 2), text) for time_s, text in kept.checkpoints] == [(1.0, "012"), (2.35, "01234")]
    assert [(ending.state, ending.text, ending.finish_reason) for ending in kept.endings] == [
        ("complete", "01234", "stop")
    ]


def test_an_answer_is_stored_with_every_32nd_token() -> None:
    async def run() -> Kept:
        _, generation, kept = started()
        for number in range(100):
            generation.feed(chr(65 + number % 26))
            await settled()
        generation.feed("", "length")
        await settled()
        return kept

    kept = in_virtual_time(run())
    assert [len(text) for _, text in kept.checkpoints] == [32, 64, 96]
    assert kept.endings[0].finish_reason == "length"
    assert kept.endings[0].usage["completion_tokens"] == 101


def test_an_answer_that_is_whole_before_a_checkpoint_begins_is_stored_once() -> None:
    async def run() -> Kept:
        answer, generation, kept = started()
        for _ in range(40):
            generation.feed("x")
        generation.feed("y", "stop")
        await answer.ended()
        return kept

    kept = in_virtual_time(run())
    assert [ending.text for ending in kept.endings] == ["x" * 40 + "y"]
    assert kept.checkpoints == []


def test_what_is_written_of_an_answer_grows_with_its_length_and_not_with_its_square() -> None:
    num_tokens = 2**15

    async def run() -> Kept:
        _, generation, kept = started()
        for _ in range(num_tokens // 32):
            generation.feed("x" * 32, num_tokens=32)
            await settled()
        return kept

    texts = [text for _, text in in_virtual_time(run()).checkpoints]
    # Each is longer than the one before by a 64th of it or more: the sum is that of a geometric series.
    assert sum(map(len, texts)) <= 65 * num_tokens
    assert num_tokens - len(texts[-1]) <= num_tokens // 64


def test_a_slow_storage_holds_up_no_reader() -> None:
    async def run() -> tuple[list[str], Kept, float]:
        answer, generation, kept = started()
        kept.takes_s = 30.0
        seen: list[str] = []

        async def read() -> None:
            async for write in live(answer, 0):
                seen.append(write.content.decode())

        reading = asyncio.create_task(read())
        for number in range(100):
            generation.feed(f"<{number}>")
            await settled()
        assert len(seen) == 100
        generation.feed("", "stop")
        await reading
        return seen, kept, asyncio.get_running_loop().time()

    seen, kept, ended_s = in_virtual_time(run())
    # One checkpoint was at work all the time, and the end did not wait for it.
    assert len(kept.checkpoints) == 1
    assert ended_s == 130
    assert "event: done" in seen[-1]
    assert kept.endings[0].text == "".join(f"<{number}>" for number in range(100))


def test_what_comes_while_a_reader_is_away_is_there_when_it_looks_again() -> None:
    async def run() -> list[bytes]:
        answer, generation, _ = started()
        reading = live(answer, 0, "event: start\n\n")
        generation.feed("a")
        await settled()
        seen = [(await anext(reading)).content]
        for text, reason in (("b", None), ("c", "stop")):
            generation.feed(text, reason)
            await settled()
            seen.append((await asyncio.wait_for(anext(reading), 60)).content)
        assert [write async for write in reading] == []
        return seen

    first, second, last = in_virtual_time(run())
    assert first.startswith(b"event: start")
    assert b'"text": "a"' in first
    assert b'"text": "b"' in second
    assert b'"text": "c"' in last
    assert [write.endswith(b"data: [DONE]\n\n") for write in (first, second, last)] == [False, False, True]


def test_nobody_is_told_of_the_end_before_it_is_stored() -> None:
    async def run() -> None:
        answer, generation, kept = started()
        reading = live(answer, 0)
        generation.feed("a")
        assert b'"a"' in (await anext(reading)).content
        kept.takes_s = 5.0
        generation.feed("b", "stop")
        assert b'"b"' in (await anext(reading)).content
        next_write = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(4.9)
        assert not next_write.done()
        assert not answer.is_over
        last = await next_write
        assert last.is_last
        assert kept.endings

    in_virtual_time(run())


def test_an_end_that_cannot_be_stored_is_an_error_and_is_stored_as_interrupted_later() -> None:
    async def run() -> tuple[str, Kept, float]:
        answer, generation, kept = started()
        kept.is_gone = True
        generation.feed("abc", "stop")
        parts = [write.content.decode() async for write in live(answer, 0)]
        assert answer.failure is not None
        await asyncio.sleep(3 * RETRY_S + 0.5)
        num_tries = kept.num_tries
        kept.is_gone = False
        await answer.task
        return "".join(parts), kept, num_tries

    text, kept, num_tries = in_virtual_time(run())
    assert "event: error" in text
    assert "done" not in text
    assert '"code": "service_unavailable"' in text
    assert text.endswith("data: [DONE]\n\n")
    assert num_tries == 4
    assert [(ending.state, ending.text, ending.finish_reason) for ending in kept.endings] == [
        ("interrupted", "abc", None)
    ]


def test_checkpoints_that_fail_are_tried_once_a_second_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> tuple[int, Kept]:
        _, generation, kept = started()
        kept.is_gone = True
        for _ in range(40):
            generation.feed("x", num_tokens=33)
            await asyncio.sleep(0.1)
        num_tries = kept.num_tries
        kept.is_gone = False
        await asyncio.sleep(2)
        generation.feed("", "stop")
        await settled()
        return num_tries, kept

    with caplog.at_level(logging.WARNING):
        num_tries, kept = in_virtual_time(run())
    assert 3 <= num_tries <= 5
    assert kept.checkpoints[-1][1] == "x" * 40
    assert len(caplog.records) == 1


def test_a_users_stop_completes_the_answer_as_it_is() -> None:
    async def run() -> Kept:
        answer, generation, kept = started()
        generation.feed("abc")
        await settled()
        answer.stop()
        answer.stop()
        await answer.ended()
        assert generation.is_aborted
        assert answer.failure is None
        answer.stop()
        return kept

    ending = in_virtual_time(run()).endings[0]
    assert (ending.state, ending.text, ending.finish_reason) == ("complete", "abc", "cancelled")


@pytest.mark.parametrize("num_turns", range(6))
def test_a_second_stop_at_any_time_changes_nothing(num_turns: int) -> None:
    async def run() -> Kept:
        answer, generation, kept = started()
        generation.feed("abc")
        await settled()
        answer.stop()
        for _ in range(num_turns):
            await asyncio.sleep(0)
        answer.stop()
        await answer.ended()
        return kept

    ending = in_virtual_time(run()).endings[0]
    assert (ending.state, ending.finish_reason) == ("complete", "cancelled")


def test_a_stop_after_the_models_end_changes_nothing() -> None:
    async def run() -> Kept:
        answer, generation, kept = started()
        kept.takes_s = 1.0
        generation.feed("abc", "stop")
        await settled()
        answer.stop()
        await answer.ended()
        return kept

    assert in_virtual_time(run()).endings[0].finish_reason == "stop"


def test_an_answer_that_has_ended_elsewhere_ends_here() -> None:
    async def run() -> Fed:
        answer, generation, kept = started()
        kept.has_ended = True
        generation.feed("x", num_tokens=32)
        await answer.ended()
        return generation

    assert in_virtual_time(run()).is_aborted


def test_a_failing_engine_interrupts_and_the_error_comes_after_the_storage() -> None:
    async def run() -> tuple[AnswerRun, Kept]:
        answer, generation, kept = started()
        generation.feed("ab")
        generation.fail(UnavailableError("rank 1 was lost"))
        await answer.ended()
        return answer, kept

    answer, kept = in_virtual_time(run())
    assert answer.done is None
    assert answer.failure is not None
    assert (answer.failure.status, answer.failure.message) == (503, "rank 1 was lost")
    assert [(ending.state, ending.text) for ending in kept.endings] == [("interrupted", "ab")]


def test_times_are_measured_from_the_question_on() -> None:
    async def run() -> dict[str, Any]:
        answer, generation, kept = started()
        await asyncio.sleep(2)
        generation.feed("a", num_tokens=1)
        await settled()
        for _ in range(4):
            await asyncio.sleep(0.5)
            generation.feed("b", num_tokens=2)
            await settled()
        await asyncio.sleep(50)
        answer.stop()
        await answer.ended()
        return kept.endings[0].usage

    assert in_virtual_time(run()) == {
        "prompt_tokens": 11,
        "cached_tokens": 0,
        "completion_tokens": 9,
        "ttft_ms": 2000.0,
        "tokens_per_s": 4.0,
    }


def test_readers_that_leave_leave_nothing_behind() -> None:
    async def run() -> None:
        answer, generation, _ = started()
        readers = [asyncio.create_task(_read_all(answer)) for _ in range(50)]
        await settled()
        assert len(answer.readers) == 50
        for reader in readers[:49]:
            reader.cancel()
        await settled()
        assert len(answer.readers) == 1
        generation.feed("a", "stop")
        assert await readers[49] == 2
        assert not answer.readers

    in_virtual_time(run())


async def _read_all(answer: AnswerRun) -> int:
    count = 0
    writes = live(answer, 0)
    try:
        async for _ in writes:
            count += 1
    finally:
        await writes.aclose()
    return count


def drained(feed_after_s: float | None) -> Coroutine[Any, Any, tuple[Kept, float]]:
    async def run() -> tuple[Kept, float]:
        runs, generation, kept = AnswerRuns(), Fed(), Kept()
        loop = asyncio.get_running_loop()
        runs.start("conv_1", "msg_1", Choices([generation], 1), kept, loop.time())
        generation.feed("abc")
        await settled()
        if feed_after_s is not None:
            loop.call_later(feed_after_s, generation.feed, "def", "stop")
        began_s = loop.time()
        await runs.end()
        assert runs.get("msg_1") is None
        return kept, loop.time() - began_s

    return run()


def test_a_stopping_server_lets_answers_end_for_a_moment_and_stores_the_others_as_they_are() -> None:
    kept, took_s = in_virtual_time(drained(DRAIN_S / 2))
    assert [(ending.state, ending.text) for ending in kept.endings] == [("complete", "abcdef")]
    assert took_s == pytest.approx(DRAIN_S / 2)
    kept, took_s = in_virtual_time(drained(None))
    assert [(ending.state, ending.text) for ending in kept.endings] == [("interrupted", "abc")]
    assert took_s == pytest.approx(DRAIN_S)
