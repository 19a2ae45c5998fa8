"""One rank: load its slice of the model, then run step after step until told to stop.

The caller gives the rank its channel and its neighbours; whether they are threads or processes is no matter here.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tinycluster.cluster.channel import Channel, ChannelClosedError
from tinycluster.cluster.health import HEARTBEAT_PERIOD_S
from tinycluster.cluster.messages import (
    EncodedPlan,
    Heartbeat,
    Message,
    ProtocolError,
    RankFailure,
    Ready,
    SetTracing,
    Stop,
)
from tinycluster.cluster.plan_codec import PlanDecoder
from tinycluster.cluster.rank_clock import RankClock
from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.cluster.timeline import StepRecorder, encode_timeline
from tinycluster.engine.errors import TinyclusterError
from tinycluster.engine.request import StepPlan
from tinycluster.engine.runner import Runner
from tinycluster.kernels.program import NumericalError
from tinycluster.parallel.communicator import CollectiveError, Communicator
from tinycluster.parallel.pipeline import Link

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Neighbours:
    """The ranks around one rank: its tensor group, and its counterparts in the stages before and after."""

    tensor_group: Communicator
    previous: Link | None
    next: Link | None
    abort: Callable[[], None]
    """Wakes this rank and all its neighbours from every wait."""

    def links(self, rank: int) -> tuple[LinkBytes, ...]:
        """The traffic of `rank`, whose neighbours these are, with every rank that it speaks to. Any thread may ask."""
        group = self.tensor_group
        links = [LinkBytes(rank - group.rank + peer, *traffic) for peer, traffic in enumerate(group.traffic())]
        del links[group.rank]
        for link, peer in ((self.previous, rank - group.size), (self.next, rank + group.size)):
            if link is not None:
                links.append(LinkBytes(peer, *link.traffic()))
        return tuple(links)


class Worker:
    """Serves one channel. Every failure is sent to the driver as a sentence, and wakes the neighbours."""

    def __init__(self, rank: int, channel: Channel, log: logging.Logger = log) -> None:
        self.channel, self._log = channel, log
        self._rank, self._step_id = rank, -1
        self._neighbours: Neighbours | None = None
        self._clock: RankClock | None = None

    def run(self, meet: Callable[[], Neighbours], load: Callable[[Neighbours], Runner]) -> None:
        """Meet the neighbours, load, report Ready, and run plans until Stop or the end of the channel."""
        try:
            self._log.info("rank %d meets its neighbours and loads", self._rank)
            self._neighbours = meet()
            runner = load(self._neighbours)
            self._clock = RankClock(runner.times, partial(self._neighbours.links, self._rank))
            self.channel.send(Ready())
            self._log.info("rank %d is ready", self._rank)
            self._run_steps(StepRecorder(runner, self._clock), runner)
        except ChannelClosedError:
            pass  # without a driver there is nothing to compute
        except Exception as error:
            self._report(error)
        finally:
            if self._neighbours is not None:
                self._neighbours.abort()

    def report(self) -> RankReport | None:
        """Where the rank's time went; None before it is ready. Any thread may ask."""
        return None if self._clock is None else self._clock.report()

    def _run_steps(self, recorder: StepRecorder, runner: Runner) -> None:
        while True:
            message = self.channel.receive()
            if isinstance(message, Stop):
                self._log.info("rank %d stops after step %d", self._rank, self._step_id)
                return
            if isinstance(message, StepPlan):
                self._step_id = message.step_id
                with recorder.step(message):
                    result = runner.run(message)
                    if result is not None:
                        self.channel.send(result)
            elif isinstance(message, SetTracing) and message.is_on:
                recorder.start()
            elif isinstance(message, SetTracing):
                self.channel.send(encode_timeline(recorder.stop()))

    def _report(self, error: Exception) -> None:
        is_known = isinstance(error, TinyclusterError | CollectiveError | NumericalError)
        if is_known:
            self._log.info("rank %d gives up in step %d: %s", self._rank, self._step_id, error)
        else:
            self._log.exception("rank %d failed", self._rank)
        first_line = (str(error).splitlines() or [""])[0]
        sentence = str(error) if is_known else f"{type(error).__name__}: {first_line}"
        failure = RankFailure(self._rank, self._step_id, isinstance(error, CollectiveError), sentence)
        try:
            self.channel.send(failure)
        except ChannelClosedError:
            self._log.error("rank %d could not tell its driver: %s", self._rank, sentence)


class ControlledChannel:
    """A rank's socket channel with a control thread that reads it, sends heartbeats, and notices the driver's end.

    What `report` gives goes out in the place of a heartbeat.
    """

    def __init__(self, channel: Channel, on_driver_lost: Callable[[], None]) -> None:
        self._channel, self._on_driver_lost = channel, on_driver_lost
        self._incoming: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._is_closed = threading.Event()
        self.report: Callable[[], RankReport | None] = lambda: None
        threading.Thread(target=self._read, name="control", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, message: Message) -> None:
        self._channel.send(message)

    def receive(self, timeout_s: float | None = None) -> Message | None:
        try:
            message = self._incoming.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if message is None:
            raise ChannelClosedError("the driver is gone")
        return message

    def close(self) -> None:
        self._is_closed.set()
        self._channel.close()

    def _read(self) -> None:
        plans = PlanDecoder()
        try:
            while True:
                message = self._channel.receive()
                # Read here, while the step before runs, and not when its turn has come.
                self._incoming.put(plans.decode(message.payload) if isinstance(message, EncodedPlan) else message)
        except (ChannelClosedError, ProtocolError):
            self._incoming.put(None)
            if not self._is_closed.is_set():
                self._on_driver_lost()

    def _beat(self) -> None:
        try:
            while not self._is_closed.wait(HEARTBEAT_PERIOD_S):
                self._channel.send(self.report() or Heartbeat())
        except ChannelClosedError:
            return  # the reading thread sees it too
