"""From settings to a running engine: resolve the model, check it, start its ranks, wait until all are ready."""

from __future__ import annotations

import queue
import time
from functools import partial
from typing import TYPE_CHECKING

from tinycluster.cluster.blueprint import Blueprint, draw, scheduler_limits
from tinycluster.cluster.config import ModelSettings, Settings
from tinycluster.cluster.cores import DealThreads, deal
from tinycluster.cluster.driver import Engine, OnFailure
from tinycluster.cluster.loading import NewProgress as NewProgress
from tinycluster.cluster.loading import await_ready
from tinycluster.cluster.local import LocalRanks
from tinycluster.cluster.log_file import LogOptions
from tinycluster.cluster.model_card import ModelCard
from tinycluster.cluster.rank_card import rank_cards
from tinycluster.cluster.ranks import Inbox, Ranks
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.checkpoint import Checkpoint, open_checkpoint
from tinycluster.engine.errors import ConfigError, RequestError
from tinycluster.engine.progress import NoProgress as NoProgress
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampling_rules import check_sampling
from tinycluster.engine.scheduler import Scheduler
from tinycluster.engine.source import default_cache_dir as default_cache_dir
from tinycluster.engine.source import resolve

if TYPE_CHECKING:
    from tinycluster.cluster.ray import PlacedRanks


def start_engine(
    model: ModelSettings,
    settings: Settings,
    *,
    progress: NewProgress = NoProgress,
    on_failure: OnFailure | None = None,
    placed: PlacedRanks | None = None,
    logs: LogOptions | None = None,
) -> Engine:
    """One model, ready to answer. ConfigError, CheckpointError, PlacementError or UnavailableError; nothing is left.

    `on_failure` is called once, from the driver's thread, when a rank is lost later. `placed` are ranks that Ray was
    asked for before; without them they are started here. With `logs` each writes a file.
    """
    started_s = time.monotonic()
    cache_dir, timeout_s = settings.cluster.cache_dir, settings.cluster.step_timeout_s
    path = resolve(
        model.source, sha256=model.sha256, cache_dir=cache_dir or default_cache_dir(), progress=progress()
    ).absolute()
    checkpoint = open_checkpoint(path)
    sampling = _default_sampling(model, checkpoint)
    if placed is None:
        blueprint = draw(model, checkpoint, path=path, cache_dir=cache_dir, step_timeout_s=timeout_s)
    else:
        blueprint = placed.blueprint
    inbox: Inbox = queue.SimpleQueue()
    ranks = _start_ranks(blueprint, checkpoint, model, settings, inbox, placed, logs)
    try:
        # A large vocabulary takes as long as the weights, which the ranks load meanwhile.
        tokenizer = checkpoint.tokenizer()
        await_ready(ranks, inbox, progress)
    except BaseException:
        ranks.close()
        raise
    pool = BlockPool(blueprint.num_blocks, blueprint.block_tokens)
    scheduler = Scheduler(
        pool=pool,
        limits=scheduler_limits(model, blueprint),
        eos_token_ids=tokenizer.eos_token_ids,
        micro_batches=blueprint.mesh.pipeline,
        window=checkpoint.config.window,
        model_digest=blueprint.digest if model.kv_cache.prefix_cache else None,
        speculates=model.speculation == "ngram",
    )
    cards = rank_cards(blueprint, checkpoint, [ranks.place(rank) for rank in range(ranks.size)])
    max_model_len = blueprint.max_model_len
    served = ModelCard(model.name, checkpoint.config, tokenizer, blueprint.mesh, max_model_len, sampling, cards)
    engine = Engine(served, scheduler, ranks, inbox, step_timeout_s=timeout_s, on_failure=on_failure)
    engine.statistics.startup_time_s = time.monotonic() - started_s
    return engine


def _default_sampling(model: ModelSettings, checkpoint: Checkpoint) -> SamplingParams:
    sampling = model.sampling.over(checkpoint.default_sampling)
    try:
        check_sampling(sampling, vocab_size=0)
    except RequestError as error:
        remedy = f"set sampling.{error.param} of {model.name}"
        raise ConfigError(f"{checkpoint.path} recommends what no request may have: {error}; {remedy}") from None
    return sampling


def _deal_threads(model: ModelSettings, settings: Settings) -> DealThreads:
    # Ranks of another model or replica may be on the same machines, and would be bound to the same cores.
    is_alone = len(settings.models) * settings.server.replicas == 1
    threads = None if model.threads == "auto" else model.threads
    return partial(deal, threads=threads, pin=model.pin and is_alone)


def _start_ranks(
    blueprint: Blueprint,
    checkpoint: Checkpoint,
    model: ModelSettings,
    settings: Settings,
    inbox: Inbox,
    placed: PlacedRanks | None,
    logs: LogOptions | None,
) -> Ranks:
    deal_threads = _deal_threads(model, settings)
    if settings.cluster.address == "local":
        return LocalRanks(blueprint, checkpoint, deal_threads, inbox.put, logs)
    # Local mode must not import Ray.
    from tinycluster.cluster.ray import place_ranks, start_ray_ranks
    from tinycluster.cluster.ray_cluster import join_or_start

    if placed is None:
        join_or_start(settings)
        placed = place_ranks(blueprint, model, settings, logs)
    return start_ray_ranks(placed, deal_threads, inbox.put)
