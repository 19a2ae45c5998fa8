"""The ranks of a model as threads that run the steps a test plans by hand, without a driver."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.cluster.engines import settings_for
from tinycluster.cluster.blueprint import draw
from tinycluster.cluster.cores import RankThreads
from tinycluster.cluster.local import connect_threads
from tinycluster.cluster.rank_model import LoadReport, load_model, make_runner
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.request import Row, SamplingParams, StepPlan, StepResult


def run_steps(model: Path, steps: Sequence[StepPlan], **changes: Any) -> list[StepResult]:
    """What tensor rank 0 of the last stage answers to each step, on ranks with an empty cache."""
    checkpoint = open_checkpoint(model)
    blueprint = draw(settings_for(model, **changes).models[0], checkpoint, path=model, cache_dir=None, step_timeout_s=9)
    neighbours = connect_threads(blueprint)

    def run(rank: int) -> list[StepResult | None]:
        try:
            loaded = load_model(blueprint, rank, checkpoint, LoadReport())
            runner = make_runner(loaded, blueprint, neighbours[rank], RankThreads(1))
            return [runner.run(step) for step in steps]
        except BaseException:
            neighbours[rank].abort()
            raise

    mesh = blueprint.mesh
    with ThreadPoolExecutor(mesh.size) as threads:
        futures = [threads.submit(run, rank) for rank in range(mesh.size)]
    answers = [future.result() for future in futures]
    speaker = mesh.size - mesh.tensor
    assert all(answer is None for rank, own in enumerate(answers) for answer in own if rank != speaker)
    return [result for result in answers[speaker] if result is not None]


def row(tokens: Sequence[int], position: int, blocks: tuple[int, ...], sampling: SamplingParams, **fields: Any) -> Row:
    """A row of request 1 that samples once, with seed 7 and a prompt of 21 tokens, unless `fields` say otherwise."""
    return Row(1, tuple(tokens), position, blocks, 1, sampling, 7, 21)._replace(**fields)


def steps_of(*rows: Row | Sequence[Row], **fields: Any) -> list[StepPlan]:
    """A step for each row, or for each sequence of rows."""
    plans = [(own,) if isinstance(own, Row) else tuple(own) for own in rows]
    return [replace(StepPlan(index, plan), **fields) for index, plan in enumerate(plans)]
