"""From settings to a running engine: resolve the model, check it, start its ranks, wait until all are ready."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

from tinycluster.cluster.blueprint import Blueprint, draw, scheduler_limits
from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.driver import Engine, ModelCard, OnFailure
from tinycluster.cluster.health import SILENCE_LIMIT_S
from tinycluster.cluster.local import LocalRanks
from tinycluster.cluster.messages import LoadProgress, RankFailure, Ready
from tinycluster.cluster.ranks import Inbox, RankEvent, RankLost, Ranks, cause_of
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.checkpoint import Checkpoint, open_checkpoint
from tinycluster.engine.errors import UnavailableError
from tinycluster.engine.progress import NoProgress as NoProgress
from tinycluster.engine.progress import Progress
from tinycluster.engine.scheduler import Scheduler
from tinycluster.engine.source import default_cache_dir as default_cache_dir
from tinycluster.engine.source import resolve

NewProgress = Callable[[], Progress]
"""Gives one line of progress: one for the download and one for every rank that loads."""


def start_engine(
    model: ModelSettings,
    settings: Settings,
    *,
    progress: NewProgress = NoProgress,
    on_failure: OnFailure | None = None,
) -> Engine:
    """One model, ready to answer. ConfigError, CheckpointError, PlacementError or UnavailableError; nothing is left.

    `on_failure` is called once, from the driver's thread, when a rank is lost later.
    """
    cache_dir, timeout_s = settings.cluster.cache_dir, settings.cluster.step_timeout_s
    path = resolve(
        model.source, sha256=model.sha256, cache_dir=cache_dir or default_cache_dir(), progress=progress()
    ).absolute()
    checkpoint = open_checkpoint(path)
    blueprint = draw(model, checkpoint, path=path, cache_dir=cache_dir, step_timeout_s=timeout_s)
    tokenizer = checkpoint.tokenizer()
    inbox: Inbox = queue.SimpleQueue()
    ranks = _start_ranks(blueprint, checkpoint, model, settings, inbox)
    try:
        _await_ready(ranks, inbox, progress)
    except BaseException:
        ranks.close()
        raise
    pool = BlockPool(blueprint.num_blocks, blueprint.block_tokens)
    scheduler = Scheduler(
        pool=pool,
        limits=scheduler_limits(model, blueprint),
        eos_token_ids=tokenizer.eos_token_ids,
        micro_batches=blueprint.mesh.pipeline,
    )
    served = ModelCard(model.name, checkpoint.config, tokenizer, blueprint.mesh, blueprint.max_model_len)
    return Engine(served, scheduler, ranks, inbox, step_timeout_s=timeout_s, on_failure=on_failure)


def _start_ranks(
    blueprint: Blueprint, checkpoint: Checkpoint, model: ModelSettings, settings: Settings, inbox: Inbox
) -> Ranks:
    threads = None if model.threads == "auto" else model.threads
    if settings.cluster.address == "local":
        return LocalRanks(blueprint, checkpoint, threads, inbox.put)
    # Local mode must not import Ray.
    from tinycluster.cluster.ray import start_ray_ranks

    return start_ray_ranks(blueprint, model, settings, threads, inbox.put)


def _await_ready(ranks: Ranks, inbox: Inbox, progress: NewProgress) -> None:
    """Show the ranks' loading until all are ready. UnavailableError when one fails or falls silent."""
    lines: dict[int, tuple[Progress, int]] = {}
    waiting = {rank: time.monotonic() for rank in range(ranks.size)}
    while waiting:
        event = _next_event(inbox)
        if event is not None:
            _check_loading(ranks, event, inbox)
            if event.rank in waiting:
                waiting[event.rank] = time.monotonic()
            if isinstance(event.message, LoadProgress):
                _advance(lines, event.rank, event.message, ranks, progress)
            elif isinstance(event.message, Ready):
                del waiting[event.rank]
        elif ranks.heartbeats:
            _check_silence(ranks, waiting)
    for line, _ in lines.values():
        line.finish()


def _next_event(inbox: Inbox) -> RankEvent | None:
    try:
        return inbox.get(timeout=1)
    except queue.Empty:
        return None


def _check_loading(ranks: Ranks, event: RankEvent, inbox: Inbox) -> None:
    if isinstance(event.message, RankFailure | RankLost):
        cause = cause_of([event], inbox)
        raise UnavailableError(f"{ranks.name(cause.rank)} did not start: {cause.sentence}")


def _check_silence(ranks: Ranks, waiting: dict[int, float]) -> None:
    rank = min(waiting, key=waiting.__getitem__)
    silent_s = time.monotonic() - waiting[rank]
    if silent_s > 2 * SILENCE_LIMIT_S:
        raise UnavailableError(f"{ranks.name(rank)} did not start: it sent nothing for {silent_s:.0f} s")


def _advance(
    lines: dict[int, tuple[Progress, int]], rank: int, message: LoadProgress, ranks: Ranks, progress: NewProgress
) -> None:
    if rank not in lines:
        line = progress()
        line.start(f"{ranks.name(rank)}: loading", message.total_bytes)
        lines[rank] = (line, 0)
    line, done_bytes = lines[rank]
    line.advance(message.done_bytes - done_bytes)
    lines[rank] = (line, message.done_bytes)
