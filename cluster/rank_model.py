"""What one rank holds: its slice of the model, loaded as soon as the rank exists, and the runner made of it later."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from tinycluster.cluster.blueprint import Blueprint
from tinycluster.cluster.channel import Channel
from tinycluster.cluster.cores import RankThreads
from tinycluster.cluster.messages import LoadProgress
from tinycluster.cluster.worker import Neighbours
from tinycluster.engine.checkpoint import Checkpoint
from tinycluster.engine.errors import CheckpointError
from tinycluster.engine.models.registry import build
from tinycluster.engine.rope import rope_table
from tinycluster.engine.runner import Runner
from tinycluster.engine.sampler import Sampler
from tinycluster.engine.weights import load_weights, loaded_bytes
from tinycluster.kernels.executor import NativeExecutor
from tinycluster.kernels.packing import PackedWeight
from tinycluster.kernels.paged_cache import PagedCache
from tinycluster.kernels.passes import round_activations
from tinycluster.kernels.program import F32, Program
from tinycluster.parallel.pipeline import StageCollectives

_REPORT_BYTES = 4 * 2**20


class LoadReport:
    """How far the loading is. A rank may load before it has a channel; the channel then learns where it stands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._total_bytes = self._done_bytes = self._reported_bytes = 0

    def begin(self, total_bytes: int) -> None:
        with self._lock:
            self._total_bytes = total_bytes

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self._done_bytes += num_bytes
            if self._done_bytes - self._reported_bytes >= _REPORT_BYTES or self._done_bytes >= self._total_bytes:
                self._tell()

    def report_to(self, channel: Channel) -> None:
        with self._lock:
            self._channel = channel
            if self._done_bytes:
                self._tell()

    def _tell(self) -> None:
        if self._channel is not None:
            self._reported_bytes = self._done_bytes
            self._channel.send(LoadProgress(self._done_bytes, self._total_bytes))


@dataclass(frozen=True)
class RankModel:
    """One rank's program, weights and rotation table, and the tokens that end a text."""

    program: Program
    weights: Mapping[str, PackedWeight | F32]
    rope: tuple[F32, F32]
    end_tokens: tuple[int, ...]


def load_model(blueprint: Blueprint, rank: int, checkpoint: Checkpoint, report: LoadReport) -> RankModel:
    """Read this rank's weights. CheckpointError when it is another model."""
    if checkpoint.digest != blueprint.digest:
        raise CheckpointError(f"{checkpoint.path} is not the model that the driver has: the digests differ")
    shares = blueprint.shares(rank, checkpoint.config)
    program, specs = build(checkpoint.config, blueprint.stage(rank), shares)
    program = round_activations(program, blueprint.activations)
    wanted = blueprint.wanted_format
    report.begin(loaded_bytes(checkpoint, specs, shares, wanted))
    weights = load_weights(checkpoint, specs, shares, wanted, report.advance)
    # A damaged config may name tokens that the vocabulary has not.
    end_tokens = tuple(token for token in checkpoint.config.eos_token_ids if 0 <= token < checkpoint.config.vocab_size)
    return RankModel(program, weights, rope_table(checkpoint.config, blueprint.max_model_len), end_tokens)


def make_runner(model: RankModel, blueprint: Blueprint, neighbours: Neighbours, threads: RankThreads) -> Runner:
    """The rank's runner, with an empty cache."""
    executor = NativeExecutor(
        model.program,
        model.weights,
        model.rope,
        PagedCache(model.program.kv, blueprint.num_blocks, blueprint.block_tokens, blueprint.kv_dtype),
        StageCollectives(neighbours.tensor_group, neighbours.previous, neighbours.next),
        threads.num_threads,
        cores=threads.cores,
    )
    sampler = Sampler(executor.cpu, model.end_tokens)
    return Runner(executor, sampler, neighbours.tensor_group)
