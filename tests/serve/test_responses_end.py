"""Background responses when their server stops, in virtual time: each ends and is stored, or is given up in time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from tests.serve.scripted_run import Fed, settled
from tests.serve.virtual_time import in_virtual_time
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.choices import Choices
from tinycluster.serve.responses_events import new_response
from tinycluster.serve.responses_fields import parse_responses
from tinycluster.serve.responses_prompt import Submitted
from tinycluster.serve.responses_run import DRAIN_S, STORE_S, TRY_AGAIN_S, Run, Runs
from tinycluster.serve.responses_store import context_of
from tinycluster.serve.storage.errors import StorageError
from tinycluster.serve.storage.responses import KeptResponse
from tinycluster.serve.storage.storage import Storage

NOT_TAKEN = StorageError("the disk is full")


class Stored:
    """A storage of responses that takes `takes_s` for each end, and none while it is gone."""

    def __init__(self) -> None:
        self.responses = self
        self.ends: list[str] = []
        self.num_tries = 0
        self.takes_s = 0.0
        self.is_gone = False

    async def put(self, _owner: str, _response: KeptResponse) -> None:
        pass

    async def end(self, _owner: str, response: KeptResponse, *_: Any) -> bool:
        self.num_tries += 1
        await asyncio.sleep(self.takes_s)
        if self.is_gone:
            raise NOT_TAKEN
        self.ends.append(response.status)
        return True

    async def in_progress(self, keys: list[tuple[str, str]]) -> set[tuple[str, str]]:
        return set(keys)


async def begun() -> tuple[Runs, Run, Fed, Stored]:
    runs, generation, stored = Runs(), Fed(), Stored()
    asked = parse_responses({"model": "fake", "input": "a", "background": True})
    submitted = Submitted(Choices([generation], 1), None, None)
    response = new_response(asked, "fake", SamplingParams(), 0)
    run = Run(cast(Storage, stored), "me", response, context_of([]), 0, submitted)
    await run.begin()
    runs.begin(run)
    await settled()
    return runs, run, generation, stored


async def ended(runs: Runs) -> float:
    """The seconds that it took; nothing is at work after it."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await runs.end()
    took_s = loop.time() - began_s
    await settled()
    return took_s


def num_others() -> int:
    return len(asyncio.all_tasks()) - 1


@pytest.mark.parametrize(("feed_after_s", "status"), [(DRAIN_S / 2, "completed"), (None, "failed")])
def test_a_response_ends_by_itself_in_time_or_has_failed(feed_after_s: float | None, status: str) -> None:
    async def run() -> None:
        runs, run, generation, stored = await begun()
        if feed_after_s is not None:
            asyncio.get_running_loop().call_later(feed_after_s, generation.feed, "b", "stop")
        assert await ended(runs) == pytest.approx(feed_after_s or DRAIN_S)
        assert (stored.ends, run.response["status"], num_others()) == ([status], status, 0)
        assert generation.is_aborted

    in_virtual_time(run())


def test_a_storage_that_takes_nothing_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        runs, run, _, stored = await begun()
        stored.is_gone = True
        assert await ended(runs) == pytest.approx(DRAIN_S)
        assert (stored.ends, stored.num_tries, num_others()) == ([], 1, 0)
        assert run.response["status"] == "failed"

    in_virtual_time(run())
    assert "could not be stored: the disk is full" in caplog.text


def test_an_end_that_waits_for_its_next_try_gets_it_when_the_server_stops() -> None:
    async def run() -> None:
        runs, _, generation, stored = await begun()
        stored.is_gone = True
        generation.feed("b", "stop")
        await asyncio.sleep(sum(TRY_AGAIN_S[:4]) + 0.5)
        # As it ended, as it failed, and after the pauses.
        assert stored.num_tries == 6
        stored.is_gone = False
        assert await ended(runs) == pytest.approx(DRAIN_S)
        assert (stored.ends, num_others()) == (["failed"], 0)

    in_virtual_time(run())


def test_a_storage_that_does_not_answer_is_not_waited_for() -> None:
    async def run() -> None:
        runs, _, generation, stored = await begun()
        stored.takes_s = 1000.0
        generation.feed("b", "stop")
        await settled()
        assert await ended(runs) == pytest.approx(DRAIN_S + STORE_S)
        # The end of the loop cancels what is left once more.
        for task in asyncio.all_tasks() - {cast(Any, asyncio.current_task())}:
            task.cancel()
        await settled()
        assert (stored.ends, num_others()) == ([], 0)

    in_virtual_time(run())
