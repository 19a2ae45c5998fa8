"""Ranks as Ray actors: Ray places them and notices their end; steps and tensors never pass through it."""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass
from typing import Any

from tinycluster.cluster.actor import RankActor, versions
from tinycluster.cluster.blueprint import Blueprint
from tinycluster.cluster.channel import ChannelClosedError, TcpChannel
from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.cores import DealThreads
from tinycluster.cluster.handshake import Credentials, Listener
from tinycluster.cluster.log_file import LogOptions
from tinycluster.cluster.messages import EncodedPlan, Message, Stop, encode
from tinycluster.cluster.plan_codec import PlanEncoder
from tinycluster.cluster.process_handles import ProcessHandles
from tinycluster.cluster.quiet_ray import ray
from tinycluster.cluster.rank_card import Place
from tinycluster.cluster.ranks import Deliver, RankEvent, RankLost
from tinycluster.cluster.ray_cluster import Reservation, reserve
from tinycluster.cluster.ray_nodes import ray_nodes
from tinycluster.cluster.rendezvous import Introduction, Meeting, arrange
from tinycluster.engine.errors import PlacementError, UnavailableError
from tinycluster.engine.request import StepPlan
from tinycluster.parallel.shared_memory import FOLDER

log = logging.getLogger(__name__)
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 2.0
_WATCH_PERIOD_S = 1.0


@dataclass(frozen=True)
class PlacedRanks:
    """The ranks of one model, asked of Ray: their processes start and load while the caller does something else.

    Whoever placed them keeps this object as long as they shall live; it may be sent to the process that drives them,
    on node `driver_node_id`.
    """

    blueprint: Blueprint
    reservation: Reservation
    driver_node_id: str
    actors: tuple[Any, ...]

    def release(self) -> None:
        """End the processes and give their places back. Never raises; what is gone already is no error."""
        for actor in self.actors:
            try:
                ray.kill(actor)
            except Exception as error:
                log.debug("an actor was not ended, Ray may be gone already: %s", error)
        self.reservation.release()


def place_ranks(
    blueprint: Blueprint, model: ModelSettings, settings: Settings, logs: LogOptions | None = None
) -> PlacedRanks:
    """One actor per rank, for a driver on this node. PlacementError where the cluster lacks the room.

    With `logs` each rank writes a file on its own node.
    """
    reservation = reserve(model, settings)
    node_id = ray.get_runtime_context().get_node_id()
    actor = ray.remote(num_cpus=1, max_restarts=0)(RankActor)
    actors = [
        actor.options(scheduling_strategy=reservation.strategy(rank)).remote(blueprint, rank, node_id, logs)
        for rank in range(blueprint.mesh.size)
    ]
    return PlacedRanks(blueprint, reservation, node_id, tuple(actors))


def start_ray_ranks(placed: PlacedRanks, deal_threads: DealThreads, deliver: Deliver) -> RayRanks:
    """Connect the ranks to each other and to this process. PlacementError, UnavailableError."""
    ranks = RayRanks(placed, deliver)
    try:
        ranks.start(deal_threads)
    except BaseException:
        ranks.close()
        raise
    return ranks


class RayRanks:
    """The actors of one model. Three things tell of a rank's end: its socket, Ray, and its missing heartbeat."""

    heartbeats = True

    def __init__(self, placed: PlacedRanks, deliver: Deliver) -> None:
        self.size = placed.blueprint.mesh.size
        self._placed, self._blueprint, self._deliver = placed, placed.blueprint, deliver
        timeout_s = placed.blueprint.step_timeout_s
        self._meeting = Meeting(secrets.token_hex(8), secrets.token_bytes(32), secrets.randbits(31), timeout_s)
        self._channels: dict[int, TcpChannel] = {}
        self._open: set[int] = set()
        self._losses: dict[int, str] = {}
        self._changed = threading.Condition()  # guards the three above
        self._is_closing = threading.Event()
        self._close_lock = threading.Lock()
        self._introductions: list[Introduction] = []
        self._processes = ProcessHandles(())
        self._plans = PlanEncoder()
        self._runs: list[Any] = []
        self._places: list[Place] = []

    def start(self, deal_threads: DealThreads) -> None:
        """Hear the actors' introductions, arrange the groups, and wait until `run` has connected."""
        self._introductions = self._introduce()
        here = self._placed.driver_node_id
        self._processes = ProcessHandles(rank.pid for rank in self._introductions if rank.node_id == here)
        credentials = Credentials(self._meeting.secret, self._meeting.epoch, versions(), self._blueprint.digest)
        listener = Listener(ray.util.get_node_ip_address(), credentials, self.size, self._serve_channel)
        try:
            self._run(deal_threads, listener, credentials)
            self._await_channels()
        finally:
            listener.close()

    def send(self, message: Message) -> None:
        kind, payload = encode(EncodedPlan(self._plans.encode(message)) if isinstance(message, StepPlan) else message)
        for rank, channel in list(self._channels.items()):
            try:
                channel.send_encoded(kind, payload)
            except ChannelClosedError as error:
                self._lost(rank, str(error))

    def name(self, rank: int) -> str:
        if not self._introductions:
            return f"rank {rank}"
        introduction = self._introductions[rank]
        return f"rank {rank} on node {introduction.host} (process {introduction.pid})"

    def place(self, rank: int) -> Place:
        return self._places[rank]

    def close(self) -> None:
        """Ask, then end. Every wait is bounded, and what is gone already is no error."""
        with self._close_lock:
            if self._is_closing.is_set():
                return
            self._is_closing.set()
        self.send(Stop())
        with self._changed:
            self._changed.wait_for(lambda: not self._open, _STOP_TIMEOUT_S)
        for channel in list(self._channels.values()):
            channel.close()
        # Without its head node Ray may answer late or never.
        release = threading.Thread(target=self._placed.release, name="ray-release", daemon=True)
        release.start()
        release.join(_STOP_TIMEOUT_S)
        self._processes.end(_STOP_TIMEOUT_S)
        for leftover in FOLDER.glob(f"tinycluster-{self._meeting.name}-*"):
            leftover.unlink(missing_ok=True)

    def _introduce(self) -> list[Introduction]:
        try:
            introductions: list[Introduction] = ray.get(
                [actor.introduce.remote() for actor in self._placed.actors], timeout=_START_TIMEOUT_S
            )
        except ray.exceptions.GetTimeoutError:
            raise PlacementError(f"Ray did not start the ranks within {_START_TIMEOUT_S:.0f} s") from None
        except ray.exceptions.RayError as error:
            raise PlacementError(f"Ray could not start the ranks: {_first_line(error)}") from None
        for introduction in introductions:
            if introduction.versions != versions():
                raise PlacementError(
                    f"node {introduction.host} has {introduction.versions}, the driver has {versions()}: "
                    "install the same versions on every node"
                )
        return introductions

    def _run(self, deal_threads: DealThreads, listener: Listener, credentials: Credentials) -> None:
        plans = arrange(self._introductions, self._blueprint.mesh, self._meeting.name)
        threads_of = deal_threads([introduction.cores for introduction in self._introductions])
        names = {node.node_id: node.name for node in ray_nodes()}
        self._places = [
            Place(rank.node_id, names.get(rank.node_id, rank.host), rank.pid, threads.num_threads)
            for rank, threads in zip(self._introductions, threads_of, strict=True)
        ]
        for actor, plan, threads in zip(self._placed.actors, plans, threads_of, strict=True):
            self._runs.append(actor.run.remote(plan, self._meeting, listener.address, credentials, threads))
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()

    def _await_channels(self) -> None:
        def is_decided() -> bool:
            return len(self._channels) == self.size or bool(self._losses)

        with self._changed:
            self._changed.wait_for(is_decided, _START_TIMEOUT_S)
            for rank, sentence in self._losses.items():
                raise UnavailableError(f"{self.name(rank)} did not start: {sentence}")
            absent = [self.name(rank) for rank in range(self.size) if rank not in self._channels]
        if absent:
            raise UnavailableError(f"{', '.join(absent)} did not connect within {_START_TIMEOUT_S:.0f} s")

    def _serve_channel(self, rank: int, channel: TcpChannel) -> None:
        """Pass on what a rank says until its channel ends; called in a thread of its own."""
        with self._changed:
            self._channels[rank] = channel
            self._open.add(rank)
            self._changed.notify_all()
        try:
            while (message := channel.receive()) is not None:
                self._deliver(RankEvent(rank, message))
        except ChannelClosedError as error:
            self._lost(rank, f"its process ended or is out of reach ({error})")
        with self._changed:
            self._open.discard(rank)
            self._changed.notify_all()

    def _watch(self) -> None:
        """Every run ends only when the rank does."""
        pending = {run: rank for rank, run in enumerate(self._runs)}
        while pending and not self._is_closing.is_set():
            try:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=_WATCH_PERIOD_S)
                for run in done:
                    self._lost(pending.pop(run), _end_of(run))
            except Exception as error:
                log.warning("Ray cannot be asked about the ranks any more: %s", error)
                return

    def _lost(self, rank: int, sentence: str) -> None:
        if self._is_closing.is_set():
            return
        with self._changed:
            self._losses.setdefault(rank, sentence)
            self._changed.notify_all()
        self._deliver(RankEvent(rank, RankLost(sentence)))


def _end_of(run: Any) -> str:
    try:
        ray.get(run)
    except ray.exceptions.ActorDiedError:
        return "its process ended"
    except ray.exceptions.RayError as error:
        return _first_line(error)
    return "it stopped"


def _first_line(error: Exception) -> str:
    """Ray's errors are pages long; the cause is the last line that says something."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
