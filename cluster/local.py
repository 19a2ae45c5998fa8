"""Local mode: ranks as threads of this process. No Ray is imported."""

from __future__ import annotations

import os
import platform
import threading
from contextlib import ExitStack, closing
from functools import partial

from tinycluster.cluster.blueprint import Blueprint
from tinycluster.cluster.channel import LocalChannel
from tinycluster.cluster.cores import DealThreads, RankThreads, node_cores
from tinycluster.cluster.health import HEARTBEAT_PERIOD_S
from tinycluster.cluster.log_file import LogOptions
from tinycluster.cluster.log_lines import rank_logger
from tinycluster.cluster.messages import Message, Stop
from tinycluster.cluster.nodes import THIS
from tinycluster.cluster.rank_card import Place
from tinycluster.cluster.rank_model import LoadReport, load_model, make_runner
from tinycluster.cluster.ranks import Deliver, RankEvent
from tinycluster.cluster.worker import Neighbours, Worker
from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.runner import Runner
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.pipeline import PeerLink

_STOP_TIMEOUT_S = 5.0


class LocalRanks:
    """The ranks of one model as threads; their messages are passed on without being encoded."""

    heartbeats = False

    def __init__(
        self,
        blueprint: Blueprint,
        checkpoint: Checkpoint,
        deal_threads: DealThreads,
        deliver: Deliver,
        logs: LogOptions | None = None,
    ) -> None:
        mesh = blueprint.mesh
        self.size = mesh.size
        neighbours = connect_threads(blueprint)
        threads_of = self._threads_of = deal_threads([node_cores()] * mesh.size)
        self._abort = neighbours[0].abort
        self._channels = [LocalChannel(partial(_deliver, deliver, rank)) for rank in range(mesh.size)]
        self._threads = []
        self._workers: list[Worker] = []
        self._is_closed, self._logs = threading.Event(), ExitStack()
        for rank, (channel, around) in enumerate(zip(self._channels, neighbours, strict=True)):
            load = partial(_load, blueprint, rank, checkpoint, channel, threads_of[rank])
            arguments = (lambda around=around: around, load)
            file = None if logs is None else self._logs.enter_context(closing(logs.open_rank(rank)))
            log = rank_logger(rank, file, is_json=logs is not None and logs.is_json)
            worker = Worker(rank, channel, log)
            self._workers.append(worker)
            thread = threading.Thread(target=worker.run, args=arguments, name=f"rank-{rank}", daemon=True)
            self._threads.append(thread)
        self._threads.append(threading.Thread(target=self._report, args=(deliver,), name="reports", daemon=True))
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        for channel in self._channels:
            channel.put(message)

    def name(self, rank: int) -> str:
        return f"rank {rank} (a thread of this process)"

    def place(self, rank: int) -> Place:
        return Place(THIS, platform.node(), os.getpid(), self._threads_of[rank].num_threads)

    def close(self) -> None:
        self._is_closed.set()
        self.send(Stop())
        self._abort()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)
        self._logs.close()

    def _report(self, deliver: Deliver) -> None:
        """What the heartbeats of other processes carry."""
        while not self._is_closed.wait(HEARTBEAT_PERIOD_S):
            for rank, worker in enumerate(self._workers):
                if (report := worker.report()) is not None:
                    deliver(RankEvent(rank, report))


def _load(
    blueprint: Blueprint,
    rank: int,
    checkpoint: Checkpoint,
    channel: LocalChannel,
    threads: RankThreads,
    around: Neighbours,
) -> Runner:
    threads.pin()
    report = LoadReport()
    report.report_to(channel)
    return make_runner(load_model(blueprint, rank, checkpoint, report), blueprint, around, threads)


def _deliver(deliver: Deliver, rank: int, message: Message) -> None:
    deliver(RankEvent(rank, message))


def connect_threads(blueprint: Blueprint) -> list[Neighbours]:
    """For every rank: a group per stage, and one group of all ranks that carries activations between stages."""
    mesh, timeout_s = blueprint.mesh, blueprint.step_timeout_s
    tensor_groups = [LocalGroup(mesh.tensor, timeout_s=timeout_s) for _ in range(mesh.pipeline)]
    world = LocalGroup(mesh.size, timeout_s=timeout_s)
    communicators = []
    for rank in range(mesh.size):
        tensor = tensor_groups[mesh.stage_of(rank)].communicator(mesh.tensor_rank_of(rank))
        communicators.append((tensor, world.communicator(rank)))

    def abort() -> None:
        for tensor, everyone in communicators:
            tensor.abort()
            everyone.abort()

    neighbours = []
    for rank, (tensor, everyone) in enumerate(communicators):
        previous = PeerLink(everyone, rank - mesh.tensor) if mesh.stage_of(rank) > 0 else None
        next_link = PeerLink(everyone, rank + mesh.tensor) if mesh.stage_of(rank) < mesh.pipeline - 1 else None
        neighbours.append(Neighbours(tensor, previous, next_link, abort))
    return neighbours
