"""A request's stream between the driver's thread and its reader."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinycluster.cluster.generation import Delta, Generation, HandOver
from tinycluster.engine.errors import UnavailableError

MORE, LAST = Delta((5,), "a"), Delta((6,), "b", "length")


def never_aborted(request_id: int) -> None:
    raise AssertionError(f"request {request_id} was aborted")


class CountingLoop(asyncio.SelectorEventLoop):
    num_wakes = 0

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:  # type: ignore[override]
        self.num_wakes += 1
        return super().call_soon_threadsafe(*arguments, **options)


async def collect(generation: Generation) -> list[Delta]:
    return [delta async for delta in generation]


def test_one_step_wakes_an_event_loop_once_for_all_its_requests() -> None:
    async def run() -> None:
        generations = [Generation(index, never_aborted) for index in range(3)]
        readers = [asyncio.ensure_future(collect(generation)) for generation in generations]
        await asyncio.sleep(0)
        hand_over = HandOver()
        for item in (MORE, LAST):
            for generation in generations:
                hand_over.put(generation, item)
            hand_over.flush()
        assert await asyncio.gather(*readers) == [[MORE, LAST]] * 3

    loop = CountingLoop()
    try:
        loop.run_until_complete(run())
        assert loop.num_wakes == 2
    finally:
        loop.close()


def test_what_came_before_the_reader_is_not_lost() -> None:
    generation, hand_over = Generation(1, never_aborted), HandOver()
    for item in (MORE, LAST):
        hand_over.put(generation, item)
    hand_over.flush()
    assert asyncio.run(collect(generation)) == [MORE, LAST]


def test_a_cancelled_reader_aborts_its_request() -> None:
    aborted: list[int] = []

    async def run() -> None:
        reader = asyncio.ensure_future(collect(Generation(7, aborted.append)))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(run())
    assert aborted == [7]


def test_a_reader_whose_loop_is_gone_harms_nobody() -> None:
    gone, here, hand_over = Generation(1, lambda request_id: None), Generation(2, never_aborted), HandOver()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(collect(gone))
    loop.run_until_complete(asyncio.sleep(0))
    reader = gone._reader
    waiting.cancel()
    loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    loop.close()
    gone._reader = reader
    for generation in (gone, here):
        hand_over.put(generation, LAST)
    hand_over.flush()
    assert list(here) == [LAST]


def test_a_failure_is_raised_in_the_reader() -> None:
    generation, hand_over = Generation(1, lambda request_id: None), HandOver()
    hand_over.put(generation, UnavailableError("rank 1 was lost"))
    with pytest.raises(UnavailableError, match="rank 1"):
        list(generation)


def test_a_blocking_reader_may_bound_its_wait() -> None:
    aborted: list[int] = []
    with pytest.raises(TimeoutError):
        next(Generation(3, aborted.append).iterate(timeout_s=0))
    assert aborted == [3]
