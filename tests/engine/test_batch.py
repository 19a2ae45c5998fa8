"""From a plan to packed arrays, against the plan itself."""

from __future__ import annotations

import numpy as np
import pytest

from tinycluster.engine.batch import SAMPLED, BatchPacker
from tinycluster.engine.request import PENDING, Row, SamplingParams, StepPlan


def row(request_id: int, tokens: tuple[int, ...], position: int, blocks: tuple[int, ...], sample: bool = True) -> Row:
    return Row(request_id, tokens, position, blocks, sample, SamplingParams(), seed=0)


def test_rows_lie_one_after_the_other_with_their_positions_and_blocks() -> None:
    plan = StepPlan(3, (row(1, (10, 11, 12), 14, (4, 2)), row(2, (20,), 0, (7,)), row(3, (30, 31), 99, (1, 0, 5))))
    batch, outputs = BatchPacker().pack(plan, {})
    assert batch.tokens.tolist() == [10, 11, 12, 20, 30, 31]
    assert batch.positions.tolist() == [14, 15, 16, 0, 99, 100]
    assert batch.row_start.tolist() == [0, 3, 4, 6]
    assert batch.block_tables.tolist() == [[4, 2, 0], [7, 0, 0], [1, 0, 5]]
    assert batch.output_rows.tolist() == [2, 3, 5]
    assert (list(outputs.rows), outputs.positions.tolist()) == (list(plan.rows), [17, 1, 101])
    assert outputs.prompt_tokens is None
    arrays = (batch.tokens, batch.positions, batch.row_start, batch.block_tables, batch.output_rows)
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in arrays)


def test_only_sampled_rows_have_outputs() -> None:
    plan = StepPlan(0, (row(1, (5, 6), 0, (0,), sample=False), row(2, (7,), 3, (1,))))
    batch, outputs = BatchPacker().pack(plan, {})
    assert (batch.output_rows.tolist(), list(outputs.rows)) == ([2], [plan.rows[1]])
    none = StepPlan(0, (row(1, (5, 6), 0, (0,), sample=False),))
    assert BatchPacker().pack(none, {})[0].output_rows.shape == (0,)


def test_a_row_with_drafts_has_an_output_for_each_of_its_last_tokens() -> None:
    drafts = row(1, (5, 6, 7, 8), 10, (0,))._replace(num_samples=3)
    plan = StepPlan(0, (drafts, row(2, (7,), 3, (1,)), drafts._replace(num_samples=4)))
    batch, outputs = BatchPacker().pack(plan, {})
    assert batch.output_rows.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert outputs.positions.tolist() == [12, 13, 14, 4, 11, 12, 13, 14]
    assert [own.request_id for own in outputs.rows] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert outputs.prompt_tokens is not None
    assert outputs.prompt_tokens.tolist() == [SAMPLED] * 8


@pytest.mark.parametrize(
    ("position", "num_prompt_tokens", "next_token", "num_samples", "expected"),
    [
        (0, 9, 40, 0, [11, 12, 40]),
        (3, 7, 40, 0, [11, 12, 40]),
        (3, 6, None, 1, [11, 12, SAMPLED]),
        (3, 5, None, 1, [11, SAMPLED]),
        (3, 4, None, 1, [SAMPLED]),
        (3, 4, None, 0, []),
        (9, 4, None, 1, [SAMPLED]),
    ],
)
def test_a_row_whose_prompt_is_reported_has_an_output_for_each_token_that_the_prompt_goes_on_after(
    position: int, num_prompt_tokens: int, next_token: int | None, num_samples: int, expected: list[int]
) -> None:
    reported = Row(1, (10, 11, 12), position, (0,), num_samples, SamplingParams(prompt_logprobs=0), 0)
    reported = reported._replace(num_prompt_tokens=num_prompt_tokens, next_token=next_token)
    batch, outputs = BatchPacker().pack(StepPlan(0, (reported, row(2, (7,), 3, (1,)))), {})
    assert outputs.prompt_tokens is not None
    assert outputs.prompt_tokens.tolist() == [*expected, SAMPLED]
    own = [*range(len(expected) - num_samples), *[2] * num_samples]
    assert batch.output_rows.tolist() == [*own, 3]
    assert outputs.positions.tolist() == [*[position + index + 1 for index in own], 4]


def test_all_logits_are_wanted_where_a_row_is_to_report_them() -> None:
    plain = row(1, (5,), 0, (0,))
    reported = plain._replace(sampling=SamplingParams(return_logits_digest=True))
    assert not BatchPacker().pack(StepPlan(0, (plain, plain)), {})[0].wants_all_logits
    packer = BatchPacker()
    for rows in ((plain, reported), (reported, plain), (plain, plain), (plain, reported)):
        assert packer.pack(StepPlan(0, rows), {})[0].wants_all_logits == (reported in rows)


def test_a_pending_token_is_what_the_step_before_sampled_for_that_request() -> None:
    plan = StepPlan(0, (row(1, (PENDING,), 4, (0,)), row(2, (9, PENDING), 3, (1,))))
    assert BatchPacker().pack(plan, {1: 41, 2: 42})[0].tokens.tolist() == [41, 9, 42]


def test_a_pending_token_that_nobody_sampled_is_a_fault() -> None:
    with pytest.raises(KeyError):
        BatchPacker().pack(StepPlan(0, (row(1, (PENDING,), 4, (0,)),)), {2: 42})


def test_a_packer_forgets_what_a_row_held_in_the_step_before() -> None:
    packer = BatchPacker()
    for blocks in ([(4, 2), (7, 1)], [(4, 2), (9,)], [(3,), (9, 8)], [(3, 1, 2), (9, 8)], [(5,)]):
        rows = tuple(row(index, (1,), 0, own) for index, own in enumerate(blocks))
        width = max(map(len, blocks))
        expected = [[*own, *[0] * (width - len(own))] for own in blocks]
        assert packer.pack(StepPlan(0, rows), {})[0].block_tables.tolist() == expected
