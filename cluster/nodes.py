"""The machines that a cluster consists of, and the one that this process runs on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinycluster.cluster.cores import node_cores

THIS = "local"
"""The id of this machine where no Ray gives it one."""


@dataclass(frozen=True)
class Node:
    """`num_cpus` and `memory_bytes` are what the node offers to ranks."""

    node_id: str
    name: str
    address: str
    num_cpus: float
    memory_bytes: int
    is_alive: bool = True


ListNodes = Callable[[], Sequence[Node]]
"""May ask another process and take its time."""


def this_machine() -> tuple[Node, ...]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (Node(THIS, platform.node(), "127.0.0.1", float(node_cores().num_usable), memory_bytes),)
