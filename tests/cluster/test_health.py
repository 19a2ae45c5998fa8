"""When a rank counts as lost, on a clock that the test turns."""

from __future__ import annotations

from tinycluster.cluster.health import LateStep, SilentRank, Watch


def watch_of(num_ranks: int = 2, *, has_heartbeats: bool = True, step_timeout_s: float = 20.0) -> Watch:
    return Watch(num_ranks, step_timeout_s, has_heartbeats, now_s=100.0)


def run_clock(watch: Watch, until_s: float, beating: tuple[int, ...]) -> SilentRank | LateStep | None:
    """Check every half second; the ranks of `beating` are heard each time."""
    while watch.now_s < until_s:
        now_s = watch.now_s + 0.5
        for rank in beating:
            watch.heard(rank, now_s)
        if (verdict := watch.check(now_s)) is not None:
            return verdict
    return None


def test_a_silent_rank_is_named_within_six_seconds() -> None:
    watch = watch_of(3)
    assert run_clock(watch, 110, beating=(0, 1, 2)) is None
    verdict = run_clock(watch, 200, beating=(0, 2))
    assert verdict == SilentRank(1, 5.5)
    assert watch.now_s <= 116


def test_threads_may_be_silent() -> None:
    assert run_clock(watch_of(has_heartbeats=False), 200, beating=()) is None


def test_a_step_that_does_not_end_is_late_though_all_ranks_beat() -> None:
    watch = watch_of()
    watch.step_sent(4, 100.0)
    watch.step_sent(5, 100.0)
    assert run_clock(watch, 200, beating=(0, 1)) == LateStep(4, 20.5)


def test_the_time_of_a_step_counts_from_the_end_of_the_one_before() -> None:
    watch = watch_of()
    watch.step_sent(4, 100.0)
    watch.step_sent(5, 100.0)
    assert run_clock(watch, 115, beating=(0, 1)) is None
    watch.step_done(115.0)
    assert run_clock(watch, 134, beating=(0, 1)) is None
    assert isinstance(run_clock(watch, 137, beating=(0, 1)), LateStep)


def test_an_idle_engine_is_never_late() -> None:
    watch = watch_of()
    watch.step_sent(0, 100.0)
    watch.step_done(101.0)
    assert run_clock(watch, 300, beating=(0, 1)) is None


def test_a_driver_that_stood_still_blames_nobody() -> None:
    watch = watch_of()
    watch.step_sent(0, 100.0)
    assert watch.check(100.5) is None
    assert watch.check(1000.0) is None
    assert run_clock(watch, 1004, beating=()) is None
    assert isinstance(run_clock(watch, 1010, beating=()), SilentRank)


def test_a_pass_is_fresh_for_ten_seconds() -> None:
    watch = watch_of()
    assert not watch.is_fresh(100.0)
    watch.step_sent(0, 100.0)
    watch.step_done(101.0)
    assert watch.is_fresh(111.0)
    assert not watch.is_fresh(111.5)
