"""What /metrics says of every rank: where its time goes, what it sends. cluster/rank_report.py has the definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from tinycluster.cluster.driver import Engine
from tinycluster.cluster.rank_report import RankReport

SECONDS: Sequence[tuple[str, str, Callable[[RankReport], int]]] = (
    ("rank_compute_seconds", "A rank's time in steps, but for what follows", lambda report: report.compute_ns),
    ("rank_communication_seconds", "A rank's time moving bytes to and from others", lambda r: r.communicate_ns),
    ("rank_wait_seconds", "A rank's time in steps waiting for others", lambda report: report.wait_ns),
    ("rank_idle_seconds", "A rank's time between steps", lambda report: report.idle_ns),
    ("pipeline_bubble_seconds", "The part of waiting that was for the stage before", lambda report: report.bubble_ns),
)
RANK_LABELS = ("model_name", "rank", "stage", "node")
LINK_LABELS = ("model_name", "rank", "peer")


def rank_metrics(engines: Sequence[Engine], prefix: str) -> Iterator[Metric]:
    """As the ranks reported last, at most a second ago."""
    ranks = [
        ((engine.name, str(card.rank), str(card.stage), card.place.node), engine.rank_times.report(card.rank))
        for engine in engines
        for card in engine.model.ranks
    ]
    for name, meaning, time_ns in SECONDS:
        family = CounterMetricFamily(prefix + name, meaning, labels=RANK_LABELS)
        for labels, report in ranks:
            family.add_metric(labels, time_ns(report) / 1e9)
        yield family
    sent = CounterMetricFamily(f"{prefix}link_sent_bytes", "What a rank sent to another", labels=LINK_LABELS)
    received = CounterMetricFamily(f"{prefix}link_received_bytes", "What it received from there", labels=LINK_LABELS)
    for (model, rank, *_), report in ranks:
        for link in report.links:
            sent.add_metric((model, rank, str(link.peer)), link.sent_bytes)
            received.add_metric((model, rank, str(link.peer)), link.received_bytes)
    yield from (sent, received)
