"""Random generations under a grammar: whatever the masks allow, a model may write."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinycluster.engine.request import Constraint, Grammar
from tinycluster.engine.tokenizer import Tokenizer

STRUCTURE = ('"', "}", "]", '"}', '"]', "}]", "1", ",", ":", '":', '","', "\n", "null")


def mask_bits(constraint: Constraint) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(constraint.mask(), np.uint8), bitorder="little")


def allowed(constraint: Constraint) -> list[int]:
    return [int(bit) for bit in np.flatnonzero(mask_bits(constraint))]


def walk(tokenizer: Tokenizer, grammar: Grammar, seed: int, max_tokens: int = 2000) -> list[int]:
    """Tokens up to and with the end token. Half of them are uniform over the mask, the others tend to an end."""
    rng = np.random.default_rng(seed)
    constraint = grammar.start()
    ends = np.array(tokenizer.eos_token_ids)
    closing = np.array([ids[0] for text in STRUCTURE if len(ids := tokenizer.encode_within(text)) == 1])
    ids: list[int] = []
    for _ in range(max_tokens):
        bits = mask_bits(constraint)
        lean = rng.random()
        pool = ends[bits[ends] == 1] if lean < 0.3 else closing[bits[closing] == 1] if lean < 0.6 else ends[:0]
        ids.append(int(rng.choice(pool if pool.size else np.flatnonzero(bits))))
        constraint.accept(ids[-1])
        if ids[-1] in tokenizer.eos_token_ids:
            return ids
    raise AssertionError(f"no end after {max_tokens} tokens: {tokenizer.decode(ids)!r}")
