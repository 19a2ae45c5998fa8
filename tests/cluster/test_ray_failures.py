"""Lost ranks and lost drivers: every request ends with a clear error, and nothing is left behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.engines import prompt_of, settings_for
from tests.cluster.processes import WAIT_S, rank_pids, shared_memory_files, watched
from tinycluster.cluster.launch import start_engine
from tinycluster.engine.errors import UnavailableError
from tinycluster.engine.request import SamplingParams

pytestmark = pytest.mark.usefixtures("ray_address")
LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
DRIVER = """
import sys
from pathlib import Path
from tests.cluster.engines import engine_for, prompt_of
from tests.cluster.processes import rank_pids
from tinycluster.engine.request import SamplingParams

engine = engine_for(Path(sys.argv[1]), address="auto", mesh={"tensor": 2})
print(*rank_pids(engine), flush=True)
while True:
    list(engine.submit(prompt_of(5), SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_rank_ends_all_requests_and_leaves_nothing(tiny_model: Path, signal_number: signal.Signals) -> None:
    before, failures = shared_memory_files(), queue.SimpleQueue[UnavailableError]()
    limits = {"max_model_len": 128, "max_running": 1}
    settings = settings_for(tiny_model, address="auto", mesh={"tensor": 2}, limits=limits)
    engine = start_engine(settings.models[0], settings, on_failure=failures.put)
    with closing(engine), watched(pids := rank_pids(engine)) as processes:
        # One runs and 19 wait, so that none can end before the rank does.
        readers = [iter(engine.submit(prompt_of(5), LONG)) for _ in range(20)][::-1]
        next(readers[-1])
        processes.send(1, signal_number)
        lost = rf"lost rank 1 on node [\d.]+ \(process {pids[1]}\): .*; restart the server"
        for reader in readers[:-1]:
            with pytest.raises(UnavailableError, match=lost):
                next(reader)
        assert str(pids[1]) in str(failures.get(timeout=WAIT_S))
        with pytest.raises(UnavailableError, match=lost):
            engine.check_ready()
        assert processes.all_ended()
    assert shared_memory_files() == before


def test_ranks_end_with_a_driver_that_is_killed(tiny_model: Path, ray_address: str) -> None:
    before = shared_memory_files()
    environment = {**os.environ, "RAY_ADDRESS": ray_address, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [sys.executable, "-c", DRIVER, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as driver:
        assert driver.stdout is not None
        with watched(map(int, driver.stdout.readline().split())) as processes:
            driver.kill()
            assert processes.all_ended()
    assert shared_memory_files() == before
