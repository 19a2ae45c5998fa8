"""The driver's thread over ranks that a test plays."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import prompt_of, read
from tests.cluster.fake_ranks import FakeRanks, engine_over
from tests.parity.tiny_tokenizer import EOS_TOKEN_ID
from tinycluster.cluster.driver import Engine
from tinycluster.cluster.messages import Heartbeat, RankFailure
from tinycluster.cluster.ranks import RankLost
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import (
    ContextLengthError,
    DeadlineError,
    QueueFullError,
    RequestError,
    UnavailableError,
)
from tinycluster.engine.request import PENDING, PromptProgress, RequestOptions, SamplingParams
from tinycluster.engine.tokenizer import Tokenizer

FOUR = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return open_checkpoint(tiny_model).tokenizer()


@contextmanager
def running(ranks: FakeRanks, tokenizer: Tokenizer, **options: Any) -> Iterator[Engine]:
    engine = engine_over(ranks, tokenizer, **options)
    try:
        yield engine
    finally:
        engine.close()


def test_the_next_step_is_with_the_ranks_before_this_one_ended(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer) as engine:
        engine.submit(prompt_of(5), FOUR)
        first, second = ranks.next_plan(), ranks.next_plan()
        assert first.rows[0].tokens == tuple(prompt_of(5))
        assert second.rows[0].tokens == (PENDING,)


def test_text_is_the_decoded_tokens_and_ends_with_length(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        answer = read(engine.submit(prompt_of(5), FOUR))
    assert answer.token_ids == [7, 8, 9, 10]
    assert answer.text == tokenizer.decode(answer.token_ids)
    assert answer.finish_reason == "length"


def test_the_text_of_an_ending_token_is_not_shown(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        stopped = read(engine.submit(prompt_of(5), SamplingParams(max_tokens=9, stop_token_ids=(8,))))
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == ([7, 8], "stop", 8)
    assert stopped.text == tokenizer.decode([7])


def test_the_end_of_sequence_ends_a_request(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer) as engine:
        generation = engine.submit(prompt_of(5), SamplingParams(max_tokens=9))
        ranks.answer(ranks.next_plan(), token=EOS_TOKEN_ID)
        answer = read(generation)
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("", "stop", None)


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_a_request_and_frees_its_place(tokenizer: Tokenizer, include: bool) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    stop = tokenizer.decode([8, 9])
    sampling = SamplingParams(max_tokens=40, stop=(stop,), include_stop_str_in_output=include)
    with running(ranks, tokenizer) as engine:
        answer = read(engine.submit(prompt_of(5), sampling))
        assert engine.num_running == 0
    assert (answer.finish_reason, answer.stop_reason, answer.token_ids) == ("stop", stop, [7, 8, 9])
    assert answer.text == tokenizer.decode([7, 8, 9] if include else [7])


def test_an_aborted_request_gives_its_place_to_the_next(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer, max_waiting=0) as engine:
        generations = [engine.submit(prompt_of(5), FOUR) for _ in range(4)]
        with pytest.raises(QueueFullError):
            engine.submit(prompt_of(5), FOUR)
        generations[0].abort()
        assert [delta.finish_reason for delta in generations[0]] == ["abort"]
        engine.submit(prompt_of(5), FOUR)


def test_leaving_the_iteration_aborts_the_request(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        deltas = iter(engine.submit(prompt_of(5), SamplingParams(max_tokens=50, ignore_eos=True)))
        next(deltas)
        deltas.close()  # type: ignore[attr-defined]
        assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_what_can_never_be_answered_is_refused_at_once(tokenizer: Tokenizer) -> None:
    with running(FakeRanks(1), tokenizer) as engine:
        with pytest.raises(ContextLengthError, match="64"):
            engine.submit(prompt_of(64), FOUR)
        with pytest.raises(RequestError, match="stop"):
            engine.submit(prompt_of(4), SamplingParams(stop=("",)))
        assert engine.num_waiting == 0


@pytest.mark.parametrize(
    ("first", "then", "blamed"),
    [
        ((1, RankLost("its process ended")), None, "rank 1 on node n1: its process ended"),
        ((0, RankFailure(0, 3, False, "no memory")), None, "rank 0 on node n0: no memory"),
        ((0, RankFailure(0, 3, True, "rank 1 left")), (1, RankLost("its process ended")), "rank 1 on node n1"),
        ((0, RankFailure(0, 3, True, "rank 1 left")), (1, RankFailure(1, 3, False, "no memory")), "rank 1 on node n1"),
    ],
)
def test_a_lost_rank_ends_every_request_with_the_cause_and_a_remedy(
    tokenizer: Tokenizer, first: tuple[int, Any], then: tuple[int, Any] | None, blamed: str
) -> None:
    ranks, failures = FakeRanks(2), queue.SimpleQueue[UnavailableError]()
    with running(ranks, tokenizer, on_failure=failures.put) as engine:
        generations = [engine.submit(prompt_of(5), FOUR) for _ in range(6)]
        ranks.tell(*first)
        if then is not None:
            ranks.tell(*then)
        for generation in generations:
            with pytest.raises(UnavailableError, match=f"{blamed}.*restart"):
                list(generation)
        assert blamed in str(failures.get(timeout=60))
        assert ranks.num_closed > 0
        with pytest.raises(UnavailableError, match=blamed):
            engine.submit(prompt_of(5), FOUR)
        with pytest.raises(UnavailableError, match=blamed):
            engine.check_ready()
    assert failures.empty()


def test_a_rank_that_breaks_the_order_of_steps_ends_the_engine(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer) as engine:
        generation = engine.submit(prompt_of(5), FOUR)
        ranks.answer(replace(ranks.next_plan(), step_id=9))
        with pytest.raises(UnavailableError, match="step 9"):
            list(generation)


def test_a_step_that_does_not_end_is_a_failure(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    late = pytest.raises(UnavailableError, match="step 0 did not end")
    with running(ranks, tokenizer, step_timeout_s=0.01) as engine, late:
        list(engine.submit(prompt_of(5), FOUR))


def test_closing_ends_waiting_readers(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    engine = engine_over(ranks, tokenizer)
    generation = engine.submit(prompt_of(5), FOUR)
    engine.close()
    engine.close()
    with pytest.raises(UnavailableError, match="stopping"):
        list(generation)


def test_readiness_is_a_step_through_all_ranks_and_is_not_counted(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer) as engine:
        checks = [threading.Thread(target=engine.check_ready) for _ in range(3)]
        for check in checks:
            check.start()
        plan = ranks.next_plan()
        assert (len(plan.rows), plan.num_tokens) == (1, 1)
        assert (engine.num_running, engine.num_waiting) == (0, 0)
        ranks.answer(plan)
        for check in checks:
            check.join(60)
        assert ranks.plans.empty()


def test_events_of_a_rank_without_news_are_no_harm(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1, heartbeats=True)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        ranks.tell(0, Heartbeat())
        assert len(read(engine.submit(prompt_of(5), FOUR)).token_ids) == 4


def test_choices_are_taken_all_or_none(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer, max_waiting=0) as engine:
        with pytest.raises(QueueFullError):
            engine.submit_choices(prompt_of(5), [FOUR] * 5)
        assert (engine.num_running, engine.num_waiting) == (0, 0)
        assert len(engine.submit_choices(prompt_of(5), [FOUR] * 4)) == 4
        assert engine.statistics.num_rejections == 1


def test_a_request_that_runs_out_of_time_ends_with_its_own_error_and_frees_its_blocks(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer) as engine:
        late = engine.submit(prompt_of(5), FOUR, RequestOptions(timeout_s=0.01))
        with pytest.raises(DeadlineError):
            read(late)
        assert engine.cache_use.num_used == 0
        assert engine.statistics.num_finished("abort") == 1


def test_the_cache_use_adds_up_whatever_happened(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        for first in range(3):
            read(engine.submit(prompt_of(40, first=first), FOUR))
        use = engine.cache_use
    assert use.num_free + use.num_used + use.num_cached == use.num_blocks
    assert use.num_used == 0


def test_first_tokens_say_how_much_of_the_prompt_was_cached(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        deltas = list(engine.submit(prompt_of(5), FOUR))
    assert [delta.progress for delta in deltas] == [PromptProgress(5, 0, 5), None, None, None]
    assert engine.statistics.num_prefix_queries == 5


def test_a_leaked_block_is_noticed_when_the_engine_is_idle(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = FakeRanks(1)
    ranks.answer_everything()
    with running(ranks, tokenizer) as engine:
        read(engine.submit(prompt_of(5), FOUR))
        read(engine.submit(prompt_of(5), FOUR))
        assert engine.statistics.num_leaked_blocks == 0
        engine._scheduler.pool.allocate(2)
        read(engine.submit(prompt_of(5), FOUR))
    assert engine.statistics.num_leaked_blocks == 2
    assert "2 blocks of the KV cache belong to nobody" in caplog.text


def test_a_full_engine_says_so_before_a_request_is_made(tokenizer: Tokenizer) -> None:
    ranks = FakeRanks(1)
    with running(ranks, tokenizer, max_waiting=0) as engine:
        for _ in range(4):
            engine.check_room()
            engine.submit(prompt_of(5), FOUR)
        with pytest.raises(QueueFullError):
            engine.check_room()
        assert engine.statistics.num_rejections == 1
