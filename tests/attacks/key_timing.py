"""Row 5 by the clock: `python -m tests.attacks.key_timing --tries 10000`. No default test, for no clock is exact.

Does the time of a refusal tell how much of a key is right? Half of the tries, in random order, begin like a good key
and differ in the last character, the others are random. Ends with status 0 if the Mann-Whitney test (1947) cannot tell
their times apart (p > 0.01). The server takes wrong keys without a bound for it.
"""

from __future__ import annotations

import argparse
import math
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from socket import create_connection

import numpy as np

from tests.attacks.conftest import FAKE
from tests.attacks.keyed import keyed_victim
from tests.attacks.wire import read_reply, request


def rank_sum_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided, by the normal approximation."""
    ranks = np.asarray([*one, *other]).argsort().argsort() + 1
    count, others = len(one), len(other)
    mean, variance = count * (count + others + 1) / 2, count * others * (count + others + 1) / 12
    return math.erfc(abs(float(ranks[:count].sum()) - mean) / math.sqrt(2 * variance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000)
    tries = parser.parse_args().tries
    chance, took_s = random.Random(5), dict[bool, list[float]]({False: [], True: []})
    options = {**FAKE, "max_wrong_keys": 2**62}
    with tempfile.TemporaryDirectory() as folder, keyed_victim(Path(folder), options) as (server, keys):
        good = keys["alice"]
        near = good[:-1] + ("A" if good[-1] != "A" else "B")
        with create_connection(server.address) as connection:
            for number in range(tries + 100):
                is_near = bool(chance.randrange(2))
                key = near if is_near else f"tc-{secrets.token_urlsafe(32)}"
                raw = request("GET", "/v1/models", f"Authorization: Bearer {key}\r\n".encode())
                began_s = time.perf_counter()
                connection.sendall(raw)
                assert read_reply(connection).status == 401
                if number >= 100:
                    took_s[is_near].append(time.perf_counter() - began_s)
    for is_near, name in ((True, "all but the last character right"), (False, "random")):
        print(f"{name}: median {1e6 * float(np.median(took_s[is_near])):.1f} us of {len(took_s[is_near])}")
    p = rank_sum_p(took_s[True], took_s[False])
    print(f"p = {p:.3f}")
    sys.exit(not p > 0.01)


if __name__ == "__main__":
    main()
