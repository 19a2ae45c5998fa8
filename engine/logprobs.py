"""The log-probabilities of a step, for the outputs whose requests ask for them; of the model's own logits, whatever
the rules are. kernels/logprobs_reference.py defines them.

Each tensor rank works out those of the rows that it samples, and all tell each other: 32-bit numbers, so many for each
output that is asked for:

    logprob f32 | rank i32 | the most likely tokens i32 ... | their logprobs f32 ...

    N   outputs that are asked for
    K   the most tokens that any of them asks for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinycluster.engine.batch import SAMPLED, Outputs
from tinycluster.engine.request import TokenLogprobs
from tinycluster.kernels._cpu import Cpu
from tinycluster.kernels.program import F32, I32, I64, NumericalError


@dataclass(frozen=True)
class AskedLogprobs:
    """Which outputs of a step ask (N,), in order, and for how many of the most likely tokens each."""

    outputs: I64
    num_top: I64

    @staticmethod
    def of(outputs: Outputs) -> AskedLogprobs:
        asked = [row.sampling.logprobs for row in outputs.rows]
        if outputs.prompt_tokens is not None:
            for index in np.flatnonzero(outputs.prompt_tokens != SAMPLED).tolist():
                asked[index] = outputs.rows[index].sampling.prompt_logprobs
        chosen = [(index, num_top) for index, num_top in enumerate(asked) if num_top is not None]
        return AskedLogprobs(*np.array(chosen, np.int64).reshape(-1, 2).T)

    def count(self, part: slice) -> int:
        """How many of some outputs that follow each other ask."""
        return int(np.searchsorted(self.outputs, part.stop) - np.searchsorted(self.outputs, part.start))

    def width(self, vocab_size: int) -> int:
        """Numbers per output that asks."""
        return 2 + 2 * self._most(vocab_size)

    def work_out(self, cpu: Cpu, logits_OV: F32, tokens_O: I64, part: slice) -> I32:
        """The numbers (N of `part`, width), where the logits and tokens are those of `part`. NumericalError."""
        own = self.outputs[(self.outputs >= part.start) & (self.outputs < part.stop)] - part.start
        numbers = np.empty((len(own), self.width(logits_OV.shape[1])), np.int32)
        most = self._most(logits_OV.shape[1])
        logprob, rank = np.empty(len(own), np.float32), np.empty(len(own), np.int32)
        top, top_logprobs = np.empty((len(own), most), np.int32), np.empty((len(own), most), np.float32)
        # Of a request that has no token left nothing is told.
        tokens = np.maximum(tokens_O[own], 0)
        if cpu.logprobs(logits_OV, own, tokens, logprob, rank, top, top_logprobs) is not None:
            raise NumericalError("the logits of a token whose log-probability is asked for are not finite")
        numbers[:, 0], numbers[:, 1] = logprob.view(np.int32), rank
        numbers[:, 2 : 2 + most], numbers[:, 2 + most :] = top, top_logprobs.view(np.int32)
        return numbers

    def read(self, numbers: I32, vocab_size: int) -> dict[int, TokenLogprobs]:
        """By output, from the numbers of all of them."""
        most = self._most(vocab_size)
        ranks, top = numbers[:, 1].tolist(), numbers[:, 2 : 2 + most].tolist()
        as_floats = numbers.view(np.float32)
        logprobs, top_logprobs = as_floats[:, 0].tolist(), as_floats[:, 2 + most :].tolist()
        return {
            output: TokenLogprobs(logprob, rank, _pairs(ids, values, num_top))
            for output, num_top, logprob, rank, ids, values in zip(
                self.outputs.tolist(), self.num_top.tolist(), logprobs, ranks, top, top_logprobs, strict=True
            )
        }

    def _most(self, vocab_size: int) -> int:
        return min(int(self.num_top.max(initial=0)), vocab_size)


def _pairs(ids: Sequence[int], values: Sequence[float], count: int) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids[:count], values[:count], strict=True))
