"""Row 60 by the clock: `python -m tests.attacks.timing --samples 300`. No default test, for no clock is exact.

Does the time to an answer's first token tell key B that key A has asked the same prompt? In every sample A asks a new
prompt; then, in random order, B asks it, B asks one that nobody has asked, and A asks its own again. The samples' pairs
are compared by Wilcoxon's signed-rank test (1945). Ends with status 0 if B's two times cannot be told apart (p > 0.01)
while A's own, which the cache makes short, can be.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.attacks.asking import COMPLETIONS
from tests.attacks.contract import Victim, victim
from tests.attacks.wire import exchange, request
from tests.parity.random_model import NINE_HEADS, write_folder

NUM_PROMPT_TOKENS = 1000
MODEL = replace(NINE_HEADS, max_position_embeddings=2048)


def first_token_s(server: Victim, key: str, prompt: Sequence[int]) -> float:
    body = json.dumps({"prompt": prompt, "max_tokens": 1}).encode()
    raw = request("POST", COMPLETIONS, f"Authorization: Bearer {key}\r\n".encode(), body=body)
    began_s = time.perf_counter()
    assert exchange(server.address, raw).status == 200
    return time.perf_counter() - began_s


def sample(server: Victim, chance: random.Random) -> dict[str, float]:
    asked, new = ([chance.randrange(5, 300) for _ in range(NUM_PROMPT_TOKENS)] for _ in range(2))
    first_token_s(server, "A", asked)
    questions = [("of A", "B", asked), ("cold", "B", new), ("own", "A", asked)]
    chance.shuffle(questions)
    return {name: first_token_s(server, key, prompt) for name, key, prompt in questions}


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided, by the normal approximation: good from 20 pairs on. Times have no ties to speak of."""
    values = np.asarray(differences)
    ranks = np.abs(values).argsort().argsort() + 1
    count = len(values)
    mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
    return math.erfc(abs(float(ranks[values > 0].sum()) - mean) / math.sqrt(2 * variance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    options = parser.parse_args()
    chance = random.Random(60)
    with tempfile.TemporaryDirectory() as folder:
        source = str(write_folder(Path(folder, "model"), MODEL, 3))
        limits, cache = {"max_model_len": 2048}, {"memory": "16MiB"}
        model = {"name": "tiny", "source": source, "limits": limits, "kv_cache": cache, "threads": 1}
        with victim({"engine": "real", "model": model}) as server:
            samples = [sample(server, chance) for _ in range(options.samples)]
    for name in ("cold", "of A", "own"):
        print(f"{name}: median {1000 * float(np.median([each[name] for each in samples])):.2f} ms")
    p_of_a, p_own = (signed_rank_p([each[name] - each["cold"] for each in samples]) for name in ("of A", "own"))
    print(f"B's time for A's prompt against a cold one: p = {p_of_a:.3f}; A's own against it: p = {p_own:.1e}")
    sys.exit(not (p_of_a > 0.01 > p_own))


if __name__ == "__main__":
    main()
