"""What this machine can do at most, measured in the same run as what is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinycluster.engine.errors import ConfigError
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.serve.bench.client import Clock

# Several times the last-level cache of any processor in common use.
READ_BYTES = 512 * 2**20
COMMON_CACHE_BYTES = 32 * 2**20
CACHE_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Limits:
    """Of one instruction set. Dot products run out of registers; a product of bytes counts as one MAC."""

    isa: str
    read_gb_per_s_one_thread: float
    read_gb_per_s: float
    integer_gmac_per_s: float
    float_gmac_per_s: float

    def best(self, other: Limits) -> Limits:
        """The larger of each figure: a busy machine only ever measures too little."""
        return Limits(
            self.isa,
            max(self.read_gb_per_s_one_thread, other.read_gb_per_s_one_thread),
            max(self.read_gb_per_s, other.read_gb_per_s),
            max(self.integer_gmac_per_s, other.integer_gmac_per_s),
            max(self.float_gmac_per_s, other.float_gmac_per_s),
        )


def check_isa(isa: str) -> str:
    """`auto` or the name of an instruction set that this machine has. ConfigError."""
    names = supported_isas()
    if isa not in ("auto", *names):
        raise ConfigError(f"--isa must be auto or one of {', '.join(names)} on this machine, got {isa}")
    return isa


def measure_limits(isa: str, num_threads: int, *, repetitions: int, clock: Clock = time.perf_counter) -> Limits:
    """The best of several repetitions of each probe, on one thread and on all."""
    values = np.ones(READ_BYTES // 4, np.float32)
    one, all_threads = Cpu(1, isa), Cpu(num_threads, isa)
    return Limits(
        isa=all_threads.isa,
        read_gb_per_s_one_thread=4 * _best_rate(lambda: one.read_values(values), repetitions, clock),
        read_gb_per_s=4 * _best_rate(lambda: all_threads.read_values(values), repetitions, clock),
        integer_gmac_per_s=_best_rate(all_threads.integer_dots, 4 * repetitions, clock),
        float_gmac_per_s=_best_rate(all_threads.float_dots, 4 * repetitions, clock),
    )


def _best_rate(probe: Callable[[], float], repetitions: int, clock: Clock) -> float:
    """Billions a second of what the probe counts."""
    probe()
    best = 0.0
    for _ in range(repetitions):
        start_s = clock()
        count = probe()
        best = max(best, count / (clock() - start_s) / 1e9)
    return best


def cache_bytes(size_file: Path = CACHE_SIZE) -> int:
    """The last-level cache of the first core, as Linux tells it (`36608K`)."""
    try:
        text = size_file.read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return COMMON_CACHE_BYTES
