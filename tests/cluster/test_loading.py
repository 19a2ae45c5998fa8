"""From the start of the ranks to their readiness."""

from __future__ import annotations

import pytest

from tests.cluster.engines import Line
from tests.cluster.fake_ranks import FakeRanks
from tinycluster.cluster import loading
from tinycluster.cluster.loading import await_ready
from tinycluster.cluster.messages import Heartbeat, LoadProgress, RankFailure, Ready
from tinycluster.cluster.ranks import RankLost
from tinycluster.engine.errors import UnavailableError


def test_every_rank_has_its_line_and_all_must_be_ready() -> None:
    ranks, lines = FakeRanks(2, heartbeats=True), list[Line]()

    def new_line() -> Line:
        lines.append(Line())
        return lines[-1]

    for rank in (0, 1):
        ranks.tell(rank, LoadProgress(30, 70))
        ranks.tell(rank, Heartbeat())
    for rank in (1, 0):
        ranks.tell(rank, LoadProgress(70, 70))
        ranks.tell(rank, Ready())
    await_ready(ranks, ranks.inbox, new_line)
    assert [line.label for line in lines] == ["rank 0 on node n0: loading", "rank 1 on node n1: loading"]
    assert [(line.num_bytes, line.total_bytes, line.is_finished) for line in lines] == [(70, 70, True)] * 2


@pytest.mark.parametrize("end", [RankFailure(1, -1, False, "no memory"), RankLost("no memory")])
def test_a_rank_that_fails_is_named_and_its_line_ends(end: RankFailure | RankLost) -> None:
    ranks, line = FakeRanks(2, heartbeats=True), Line()
    ranks.tell(1, LoadProgress(30, 70))
    ranks.tell(1, end)
    with pytest.raises(UnavailableError, match="rank 1 on node n1 did not start: no memory"):
        await_ready(ranks, ranks.inbox, lambda: line)
    assert line.is_finished


def test_a_silent_rank_is_named_though_others_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LOADING_SILENCE_S", 0.0)
    ranks = FakeRanks(2, heartbeats=True)
    ranks.tell(0, Ready())
    ranks.tell(1, Heartbeat())
    with pytest.raises(UnavailableError, match=r"rank 1 .*it sent nothing"):
        await_ready(ranks, ranks.inbox, Line)
