"""Who lives, and what becomes of the open answers of those who do not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tinycluster.serve.storage.records import Message, NewMessage, NewTurn
from tinycluster.serve.storage.responses import KeptResponse
from tinycluster.serve.storage.servers import Place, Presence, is_gone, present, start_of, this_process
from tinycluster.serve.storage.storage import Storage

HERE = Place("here", 1, 100)


def started(pid: int) -> int | None:
    """Process 7 began at 70; there is no other."""
    return 70 if pid == 7 else None


@pytest.mark.parametrize(
    ("there", "heartbeat_ms", "gone"),
    [
        (Place("here", 7, 70), 0, False),
        (Place("here", 7, 71), 100_000, True),
        (Place("here", 8, 70), 100_000, True),
        (Place("there", 7, 71), 70_000, False),
        (Place("there", 7, 70), 69_999, True),
    ],
)
def test_a_neighbour_is_looked_up_and_a_stranger_counts_by_its_heartbeat(
    there: Place, heartbeat_ms: int, gone: bool
) -> None:
    assert is_gone(there, heartbeat_ms, HERE, 100_000, started) is gone


def test_where_the_kernel_does_not_tell_heartbeats_count() -> None:
    nameless = Place("here", 1, 0)
    assert not is_gone(Place("here", 8, 0), 70_000, nameless, 100_000, started)
    assert is_gone(Place("here", 8, 0), 69_999, nameless, 100_000, started)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are read from /proc")
def test_a_process_has_a_start_until_it_is_killed_even_before_its_parent_has_noticed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        start = start_of(child.pid)
        assert start is not None
        assert start_of(os.getpid()) == this_process().start <= start
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert start_of(child.pid) is None
    assert start_of(child.pid) is None


async def open_answer(storage: Storage) -> tuple[str, str]:
    """The ids of a conversation and its answer in progress."""
    turn = await storage.conversations.begin_turn("ann", NewTurn(None, NewMessage("user", "hello")))
    assert turn is not None
    assert await storage.conversations.checkpoint(turn.answer.id, "so far")
    return turn.conversation.id, turn.answer.id


async def message(storage: Storage, ids: tuple[str, str]) -> Message:
    found = await storage.conversations.message("ann", *ids)
    assert found is not None
    return found


def test_the_answers_of_a_server_that_is_gone_are_interrupted_as_they_were(storage: Storage) -> None:
    async def die() -> None:
        other = Storage(storage.database)
        now_s = 1000.0
        here = Presence(storage.database, storage.server_id, Place("here", 1, 1), lambda: now_s)
        there = Presence(other.database, other.server_id, Place("there", 1, 1), lambda: now_s)
        for presence in (here, there):
            await asyncio.to_thread(presence.beat)
        ours, theirs = await open_answer(storage), await open_answer(other)
        await other.responses.put("ann", KeptResponse("resp_1", "in_progress", '{"id": "resp_1"}', "[]"))
        for time_s in (1010.0, 1020.0, 1030.0):
            now_s = time_s
            assert await asyncio.to_thread(here.beat) == 0
        now_s = 1030.001
        assert await asyncio.to_thread(here.beat) == 2
        assert ((await message(storage, theirs)).state, (await message(storage, theirs)).text) == (
            "interrupted",
            "so far",
        )
        assert (await message(storage, ours)).state == "streaming"
        kept = await storage.responses.get("ann", "resp_1")
        assert kept is not None
        assert kept.status == "failed"
        assert await other.conversations.finish(theirs[1], text="too late") is None
        # It was only slow: it is back.
        assert await asyncio.to_thread(there.beat) == 0
        again = await open_answer(other)
        assert await asyncio.to_thread(here.beat) == 0
        assert (await message(storage, again)).state == "streaming"

    asyncio.run(die())


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("pause_s", [-5000.0, 20.001, 40.0])
def test_after_an_outage_of_the_database_everybody_has_time_to_beat(
    storage: Storage, pause_s: float, is_new: bool
) -> None:
    """`is_new`: the first to beat has been started meanwhile."""

    async def recover() -> None:
        other = Storage(storage.database)
        now_s = 10_000.0
        places = ((storage, "here"), (other, "there"))
        here, there = (
            Presence(known.database, known.server_id, Place(host, 1, 1), lambda: now_s) for known, host in places
        )
        if not is_new:
            await asyncio.to_thread(here.beat)
        now_s += 9
        await asyncio.to_thread(there.beat)
        theirs = await open_answer(other)
        for after_s in (0, 10, 20, 30):
            now_s = 10_000 + pause_s + after_s
            assert await asyncio.to_thread(here.beat) == 0
        assert (await message(storage, theirs)).state == "streaming"
        now_s = max(now_s, 10_039) + 0.001
        assert await asyncio.to_thread(here.beat) == (pause_s > 0)

    asyncio.run(recover())


def test_a_server_that_leaves_has_no_open_answers(storage: Storage) -> None:
    async def leave() -> None:
        presence = Presence(storage.database, storage.server_id)
        with present(presence):
            ids = await open_answer(storage)
            assert (await message(storage, ids)).state == "streaming"
        assert (await message(storage, ids)).state == "interrupted"

    asyncio.run(leave())


def test_a_server_beats_by_itself(storage: Storage) -> None:
    """The period is short, and what is waited for is the beat."""

    async def beat() -> None:
        with present(Presence(storage.database, storage.server_id), period_s=0.01):
            stranger = Storage(storage.database)
            turn = await stranger.conversations.begin_turn("ann", NewTurn(None, NewMessage("user", "hello")))
            assert turn is not None
            while (await message(storage, (turn.conversation.id, turn.answer.id))).state != "interrupted":
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(beat(), 60))
