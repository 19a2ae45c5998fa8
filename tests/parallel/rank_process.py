"""One rank in a process of its own, for test_processes.py: sums until told to stop, or until the group breaks.

Reads one JSON object from stdin, prints one JSON object per line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from tinycluster.parallel.communicator import CollectiveError, Communicator
from tinycluster.parallel.shared_memory import SharedMemoryCommunicator
from tinycluster.parallel.tcp import TcpCommunicator, TcpListener


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def open_group(kind: str, rank: int, size: int) -> Communicator:
    listener = TcpListener("127.0.0.1")
    say(address=listener.address)
    task = json.loads(sys.stdin.readline())
    if kind == "tcp":
        addresses = [(host, port) for host, port in task["addresses"]]
        return TcpCommunicator(rank, listener, addresses, secret=bytes.fromhex(task["secret"]), epoch=1, timeout_s=60.0)
    listener.close()
    return SharedMemoryCommunicator(task["secret"], rank, size, timeout_s=60.0)


def sum_forever(communicator: Communicator, rank: int, size: int) -> None:
    num_calls = 0
    while True:
        for n in (1, 576, 100_003):
            x = np.arange(n, dtype=np.int64) * (rank + 1) + num_calls
            communicator.all_reduce(x)
            expected = np.arange(n, dtype=np.int64) * (size * (size + 1) // 2) + size * num_calls
            if not np.array_equal(x, expected):
                say(error="wrong sum")
                return
            num_calls += 1
        if num_calls == 30:
            say(ready=True)


def main(kind: str, rank: int, size: int) -> None:
    communicator = open_group(kind, rank, size)
    try:
        sum_forever(communicator, rank, size)
    except CollectiveError as error:
        say(error=str(error))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
