"""tinycluster as one of the engines: ranks as threads of this process."""

from __future__ import annotations

import asyncio
import time

import tinycluster
from tinycluster.kernels._cpu import Cpu
from tinycluster.serve.bench.batch import run_batch
from tinycluster.serve.bench.peers.exchange import Opening, Prompts, Ready, Timing, serve_peer
from tinycluster.serve.llm import LLM
from tinycluster.serve.options import load


class OwnEngine:
    def __init__(self, opening: Opening) -> None:
        overrides = {
            "cluster.address": "local",
            "mesh.tensor": 1,
            "mesh.pipeline": 1,
            "weights": opening.weights,
            "threads": opening.threads,
            "limits.max_running": opening.max_requests,
        }
        self._llm = LLM(load(opening.config, overrides, opening.assignments), model=opening.model)
        cores = f"one rank of {opening.threads} threads ({Cpu(1).isa})"
        self.ready = Ready(tinycluster.__version__, f"{cores}, through the scheduler; exact")

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        timing = asyncio.run(run_batch(self._llm.engine, prompts, output_len, time.perf_counter))
        return Timing(timing.prefill_s, timing.decode_s, timing.prompt_tokens, timing.decoded_tokens)


if __name__ == "__main__":
    serve_peer(OwnEngine)
