"""What a rank says once a second of where its time went and of what it sent, as a message.

report   clock_ns, compute_ns, communicate_ns, wait_ns, idle_ns, bubble_ns (all i64), links u32, then the links
link     peer u32, sent_bytes u64, received_bytes u64
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tinycluster.cluster.reader import Reader

_REPORT = struct.Struct("<6qI")
_LINK = struct.Struct("<IQQ")


@dataclass(frozen=True)
class LinkBytes:
    """What a rank sent to rank `peer` and received from it since the start: payload, without headers.

    What lies in memory that both ranks see counts as sent by the one that wrote it to the one that reads it.
    """

    peer: int
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True)
class RankReport:
    """Where a rank's time went since it was ready, in nanoseconds; every number only grows.

    A rank is in a step from the moment it takes a plan until the step's result is sent. In a step it waits for other
    ranks (`wait_ns`), moves bytes to and from them (`communicate_ns`), or computes: `compute_ns` is all the rest, the
    Python between operations included. Outside of steps it waits for the next plan (`idle_ns`). So the four add up to
    the time since it was ready.

    `bubble_ns` is the part of `wait_ns` in which a pipeline stage waits for the activations of the stage before it:
    its step is in flight, and it has nothing to compute. It is 0 for the first stage, whose wait for a plan is idle_ns.

    `clock_ns` is the rank's own monotonic clock when it made the report.
    """

    clock_ns: int
    compute_ns: int
    communicate_ns: int
    wait_ns: int
    idle_ns: int
    bubble_ns: int
    links: tuple[LinkBytes, ...] = ()


def encode_report(report: RankReport) -> bytes:
    times = (report.compute_ns, report.communicate_ns, report.wait_ns, report.idle_ns, report.bubble_ns)
    head = _REPORT.pack(report.clock_ns, *times, len(report.links))
    return head + b"".join(_LINK.pack(link.peer, link.sent_bytes, link.received_bytes) for link in report.links)


def decode_report(reader: Reader) -> RankReport:
    """ProtocolError for what `encode_report` does not write."""
    clock_ns, compute_ns, communicate_ns, wait_ns, idle_ns, bubble_ns, num_links = reader.fields(_REPORT)
    links = _LINK.iter_unpack(reader.take(num_links * _LINK.size))
    told = tuple(LinkBytes(*link) for link in links)
    return RankReport(clock_ns, compute_ns, communicate_ns, wait_ns, idle_ns, bubble_ns, told)
