"""Who samples, who learns the tokens, and who answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tinycluster.engine.batch import Outputs
from tinycluster.engine.request import PENDING, Row, SamplingParams, StepPlan, StepResult
from tinycluster.engine.runner import Runner
from tinycluster.engine.sampler import Sampler
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.executor import AmongRanks, Span
from tinycluster.kernels.program import F32, I64, Batch, NumericalError
from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.local import LocalGroup

VOCABULARY = 11
GREEDY = SamplingParams(temperature=0, return_logits_digest=True)


class NextToken:
    """Logits that favour the token after the row's last one; remembers the tokens it was given."""

    def __init__(self, *, is_last_stage: bool = True) -> None:
        self.is_last_stage, self.tokens = is_last_stage, list[list[int]]()

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        self.copies = list(copies)

    def set_tracing(self, on: bool) -> None:
        self.is_tracing = on

    def times(self) -> AmongRanks:
        return AmongRanks(2, 3, 1)

    def take_timeline(self) -> list[Span]:
        return [Span("model", "compute", time.monotonic_ns(), time.monotonic_ns())]

    def run(self, batch: Batch) -> F32 | None:
        self.tokens.append(batch.tokens.tolist())
        if not self.is_last_stage:
            return None
        favoured = (batch.tokens[batch.output_rows] + 1) % VOCABULARY
        return np.eye(VOCABULARY, dtype=np.float32)[favoured]


class CountingSampler(Sampler):
    def __init__(self) -> None:
        super().__init__(Cpu(1))
        self.num_rows = 0

    def sample(self, logits_OV: F32, outputs: Outputs) -> I64:
        self.num_rows += len(outputs.rows)
        return super().sample(logits_OV, outputs)


def row(request_id: int, tokens: tuple[int, ...], *, sample: bool = True, params: SamplingParams = GREEDY) -> Row:
    return Row(request_id, tokens, 0, (0,), sample, params, seed=0)


def runner_of(executor: NextToken, group: LocalGroup, rank: int) -> Runner:
    return Runner(executor, Sampler(Cpu(1)), group.communicator(rank))


def test_a_pending_token_is_the_one_that_was_sampled_last() -> None:
    executor = NextToken()
    runner = runner_of(executor, LocalGroup(1), 0)
    for step, rows in enumerate([(row(1, (2, 3)), row(2, (8,))), (row(2, (PENDING,)), row(1, (PENDING,)))]):
        result = runner.run(StepPlan(step, rows))
    assert executor.tokens == [[2, 3, 8], [9, 4]]
    assert result is not None
    assert [(sample.request_id, sample.token) for sample in result.samples] == [(2, 10), (1, 5)]


def test_a_row_with_drafts_samples_after_each_and_the_last_of_them_is_known_to_the_next_step() -> None:
    executor = NextToken()
    runner = runner_of(executor, LocalGroup(1), 0)
    drafts = row(1, (2, 3, 7))._replace(num_samples=3)
    result = runner.run(StepPlan(0, (drafts, row(2, (8,)))))
    runner.run(StepPlan(1, (row(1, (PENDING,)), row(2, (PENDING,)))))
    assert result is not None
    assert [(sample.request_id, sample.token) for sample in result.samples] == [(1, 3), (1, 4), (1, 8), (2, 9)]
    assert executor.tokens[1] == [8, 9]


def test_blocks_are_copied_before_the_step_that_needs_them() -> None:
    class Copying(NextToken):
        def run(self, batch: Batch) -> F32 | None:
            assert self.copies == [(3, 4), (0, 1)]
            return super().run(batch)

    runner = runner_of(Copying(), LocalGroup(1), 0)
    assert runner.run(StepPlan(0, (row(1, (2,)),), copies=((3, 4), (0, 1)))) is not None


def test_logits_are_returned_only_where_they_were_asked_for() -> None:
    runner = runner_of(NextToken(), LocalGroup(1), 0)
    rows = (row(1, (2,)), row(2, (3,), params=SamplingParams(temperature=0)), row(3, (4, 5), sample=False))
    result = runner.run(StepPlan(0, rows))
    assert result is not None
    expected = np.eye(VOCABULARY, dtype="<f4")[3].tobytes()
    assert [sample.logits for sample in result.samples] == [expected, None]


def test_a_step_without_outputs_is_answered_without_tokens() -> None:
    runner = runner_of(NextToken(), LocalGroup(1), 0)
    assert runner.run(StepPlan(5, (row(1, (2, 3), sample=False),))) == StepResult(5, ())


def test_a_timeline_has_what_surrounds_the_program_while_tracing_is_on() -> None:
    runner = runner_of(NextToken(), LocalGroup(1), 0)
    runner.run(StepPlan(0, (row(1, (2,)),)))
    runner.set_tracing(True)
    runner.run(StepPlan(1, (row(1, (PENDING,)),)))
    spans = runner.take_timeline()
    assert [(span.name, span.kind) for span in spans] == [(name, "compute") for name in ("pack", "sample", "model")]
    assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(spans))
    runner.set_tracing(False)
    runner.run(StepPlan(2, (row(1, (PENDING,)),)))
    assert [span.name for span in runner.take_timeline()] == ["model"]


def test_a_stage_before_the_last_answers_nothing() -> None:
    runner = runner_of(NextToken(is_last_stage=False), LocalGroup(1), 0)
    assert runner.run(StepPlan(0, (row(1, (2,)),))) is None


def on_ranks(num_ranks: int, run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7])
def test_tensor_ranks_share_the_rows_and_all_learn_the_tokens_and_only_the_first_answers(num_rows: int) -> None:
    group, executors, results = LocalGroup(3), [NextToken() for _ in range(3)], dict[int, list[StepResult | None]]()
    samplers = [CountingSampler() for _ in range(3)]
    first = tuple(row(request_id, (request_id,)) for request_id in range(num_rows))
    second = tuple(row(request_id, (PENDING,)) for request_id in range(num_rows))

    def run(rank: int) -> None:
        runner = Runner(executors[rank], samplers[rank], group.communicator(rank))
        results[rank] = [runner.run(StepPlan(step, rows)) for step, rows in enumerate([first, second])]

    on_ranks(3, run)
    alone = runner_of(NextToken(), LocalGroup(1), 0)
    assert results[0] == [alone.run(StepPlan(step, rows)) for step, rows in enumerate([first, second])]
    assert results[1] == results[2] == [None, None]
    assert [executor.tokens[1] for executor in executors] == [list(range(1, num_rows + 1))] * 3
    shares = [sampler.num_rows for sampler in samplers]
    assert sum(shares) == 2 * num_rows
    assert max(shares) - min(shares) <= 2


def test_a_rank_that_cannot_sample_its_rows_ends_the_step_of_all() -> None:
    group, errors = LocalGroup(2), dict[int, Exception]()

    class Broken(NextToken):
        def run(self, batch: Batch) -> F32 | None:
            logits_OV = super().run(batch)
            assert logits_OV is not None
            logits_OV[1] = np.nan
            return logits_OV

    def run(rank: int) -> None:
        communicator = group.communicator(rank)
        try:
            Runner(Broken(), Sampler(Cpu(1)), communicator).run(StepPlan(0, (row(1, (2,)), row(2, (3,)))))
        except (NumericalError, CollectiveError) as error:
            errors[rank] = error
            communicator.abort()

    on_ranks(2, run)
    assert isinstance(errors[0], CollectiveError)
    assert "position 1 " in str(errors[1])
