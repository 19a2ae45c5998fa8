"""The process of one rank under Ray. Ray starts it, finds its node, and ends it; everything else it does itself."""

from __future__ import annotations

import gc
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from tinycluster.cluster.blueprint import Blueprint
from tinycluster.cluster.cores import RankThreads, node_cores
from tinycluster.cluster.handshake import Credentials, connect
from tinycluster.cluster.log_file import LogOptions
from tinycluster.cluster.log_lines import logged_to
from tinycluster.cluster.quiet_ray import ray
from tinycluster.cluster.rank_model import LoadReport, RankModel, load_model, make_runner
from tinycluster.cluster.rendezvous import Introduction, Listeners, Meeting, RankPlan, meet
from tinycluster.cluster.worker import ControlledChannel, Neighbours, Worker
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.progress import NoProgress
from tinycluster.engine.runner import Runner
from tinycluster.engine.source import default_cache_dir, resolve
from tinycluster.parallel.tcp import Address

_CONNECT_TIMEOUT_S = 20.0


def versions() -> str:
    """What must be equal on all nodes: the ranks' messages and arithmetic come from this package."""
    return f"tinycluster {version('tinycluster')} on Python {platform.python_version()}"


class RankActor:
    """Runs one call at a time: Ray looks for signals a hundred times a second while its main thread has nothing to run,
    which is most of what an idle rank would cost. Ray ends the process in whatever call it is.
    """

    def __init__(self, blueprint: Blueprint, rank: int, driver_node_id: str, logs: LogOptions | None = None) -> None:
        self._blueprint, self._rank = blueprint, rank
        self._logs = ExitStack()
        if logs is not None:
            self._logs.enter_context(logged_to(logs.open_rank(rank), is_json=logs.is_json))
        self._node_id = ray.get_runtime_context().get_node_id()
        self._is_on_driver_node = self._node_id == driver_node_id
        self._host = ray.util.get_node_ip_address()
        self._listeners = Listeners(self._host)
        # The driver may not even exist yet: it begins while this rank loads.
        self._report = LoadReport()
        self._model = ThreadPoolExecutor(1, "load").submit(self._load)

    def introduce(self) -> Introduction:
        return Introduction(
            rank=self._rank,
            node_id=self._node_id,
            host=self._host,
            pid=os.getpid(),
            cores=node_cores(),
            versions=versions(),
            tensor=self._listeners.tensor.address,
            previous=self._listeners.previous.address,
            next=self._listeners.next.address,
        )

    def run(
        self, plan: RankPlan, meeting: Meeting, driver: Address, credentials: Credentials, threads: RankThreads
    ) -> None:
        """Blocks until the driver stops the rank. A driver that ends without a word ends this process."""
        connection = connect(driver, credentials, self._rank, timeout_s=_CONNECT_TIMEOUT_S)
        channel = ControlledChannel(connection, self._end)

        def load(neighbours: Neighbours) -> Runner:
            self._report.report_to(channel)
            threads.pin()
            runner = make_runner(self._model.result(), self._blueprint, neighbours, threads)
            # What is there now stays as long as the rank: no step should wait for a search through it.
            gc.collect()
            gc.freeze()
            return runner

        worker = Worker(self._rank, channel)
        channel.report = worker.report
        worker.run(lambda: meet(plan, meeting, self._listeners), load)
        channel.close()
        self._logs.close()

    def _load(self) -> RankModel:
        return load_model(self._blueprint, self._rank, open_checkpoint(self._model_path()), self._report)

    def _model_path(self) -> Path:
        """Where this node has the model: as the driver found it, or resolved into this node's own cache."""
        blueprint = self._blueprint
        if self._is_on_driver_node:
            return blueprint.path
        cache_dir = blueprint.cache_dir or default_cache_dir()
        return resolve(blueprint.source, sha256=blueprint.sha256, cache_dir=cache_dir, progress=NoProgress())

    def _end(self) -> None:
        """No orphan: a rank without a driver has nothing to save, and a native call can't be interrupted."""
        os._exit(1)
