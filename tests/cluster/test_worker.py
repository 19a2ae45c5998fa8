"""What a rank does besides computing: heartbeats, failures in a sentence, and its end with the driver's."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import settings_for
from tinycluster.cluster.blueprint import Blueprint, draw
from tinycluster.cluster.channel import ChannelClosedError, LocalChannel, TcpChannel
from tinycluster.cluster.messages import Heartbeat, LoadProgress, Message, RankFailure, Ready, Stop
from tinycluster.cluster.rank_model import LoadReport, load_model
from tinycluster.cluster.worker import ControlledChannel, Neighbours, Worker
from tinycluster.engine.checkpoint import Checkpoint, open_checkpoint
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.request import StepPlan, StepResult
from tinycluster.kernels.executor import AmongRanks
from tinycluster.parallel.communicator import CollectiveError


@pytest.fixture
def ends() -> Iterator[tuple[TcpChannel, TcpChannel]]:
    """The driver's end of a channel, and the rank's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    channels = (TcpChannel(near, epoch=1), TcpChannel(far, epoch=1))
    yield channels
    for channel in channels:
        channel.close()


def blueprint_of(path: Path) -> tuple[Blueprint, Checkpoint]:
    checkpoint = open_checkpoint(path)
    model = settings_for(path).models[0]
    return draw(model, checkpoint, path=path, cache_dir=None, step_timeout_s=10), checkpoint


def test_a_rank_beats_while_it_computes_nothing(ends: tuple[TcpChannel, TcpChannel]) -> None:
    driver, rank = ends
    channel = ControlledChannel(rank, lambda: None)
    assert [driver.receive(10) for _ in range(2)] == [Heartbeat(), Heartbeat()]
    channel.close()


def test_messages_pass_the_control_thread_in_order(ends: tuple[TcpChannel, TcpChannel]) -> None:
    driver, rank = ends
    channel = ControlledChannel(rank, lambda: None)
    for count in range(5):
        driver.send(LoadProgress(count, 5))
    assert [channel.receive(10) for _ in range(5)] == [LoadProgress(count, 5) for count in range(5)]
    assert channel.receive(0) is None
    channel.close()


def test_the_end_of_the_driver_is_noticed_by_itself(ends: tuple[TcpChannel, TcpChannel]) -> None:
    driver, rank = ends
    is_lost = threading.Event()
    channel = ControlledChannel(rank, is_lost.set)
    driver.close()
    assert is_lost.wait(10)
    with pytest.raises(ChannelClosedError, match="driver is gone"):
        channel.receive()
    channel.close()


def test_an_own_end_is_not_the_drivers(ends: tuple[TcpChannel, TcpChannel]) -> None:
    channel = ControlledChannel(ends[1], lambda: pytest.fail("the driver is alive"))
    channel.close()
    with pytest.raises(ChannelClosedError):
        channel.receive(10)


class ScriptedRunner:
    def __init__(self, outcome: StepResult | Exception | None) -> None:
        self._outcome = outcome

    def times(self) -> AmongRanks:
        return AmongRanks(0, 0, 0)

    def run(self, plan: StepPlan) -> StepResult | None:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def run_worker(runner: Any, *incoming: Message) -> tuple[list[Message], int]:
    """What a rank says to these messages, and how often it woke its neighbours."""
    said: list[Message] = []
    aborts: queue.SimpleQueue[None] = queue.SimpleQueue()
    channel = LocalChannel(said.append)
    for message in incoming:
        channel.put(message)
    neighbours: Any = Neighbours(None, None, None, lambda: aborts.put(None))  # type: ignore[arg-type]
    Worker(3, channel).run(lambda: neighbours, lambda around: runner)
    return said, aborts.qsize()


def test_a_rank_is_ready_runs_plans_and_stops() -> None:
    said, num_aborts = run_worker(ScriptedRunner(StepResult(7, ())), StepPlan(7, ()), Stop())
    assert (said, num_aborts) == ([Ready(), StepResult(7, ())], 1)


def test_a_rank_that_does_not_sample_says_nothing() -> None:
    assert run_worker(ScriptedRunner(None), StepPlan(7, ()), Stop())[0] == [Ready()]


@pytest.mark.parametrize(
    ("error", "is_consequence", "sentence"),
    [
        (CollectiveError("rank 1 left"), True, "rank 1 left"),
        (CheckpointError("file: the digests differ"), False, "file: the digests differ"),
        (MemoryError("no room\nfor weights"), False, "MemoryError: no room"),
        (KeyError(), False, "KeyError: "),
    ],
)
def test_a_failure_is_told_with_its_step_and_wakes_the_neighbours(
    error: Exception, is_consequence: bool, sentence: str
) -> None:
    said, num_aborts = run_worker(ScriptedRunner(error), StepPlan(7, ()))
    assert (said, num_aborts) == ([Ready(), RankFailure(3, 7, is_consequence, sentence)], 1)


def test_another_model_than_the_drivers_is_refused(tiny_model: Path) -> None:
    blueprint, checkpoint = blueprint_of(tiny_model)
    other = replace(blueprint, digest="0" * 64)
    with pytest.raises(CheckpointError, match="is not the model that the driver has"):
        load_model(other, 0, checkpoint, LoadReport())


def test_what_was_loaded_before_there_was_a_channel_is_reported_to_it() -> None:
    sent: list[Message] = []
    report, channel = LoadReport(), LocalChannel(sent.append)
    report.begin(70)
    report.advance(30)
    report.report_to(channel)
    assert sent == [LoadProgress(30, 70)]
    report.advance(40)
    assert sent == [LoadProgress(30, 70), LoadProgress(70, 70)]


def test_a_rank_does_not_import_what_only_the_driver_and_the_api_need() -> None:
    unwanted = ("pydantic", "jinja2", "tokenizers", "fastapi", "starlette", "uvicorn", "typer", "tinycluster.serve")
    program = f"import sys, tinycluster.cluster.actor; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
