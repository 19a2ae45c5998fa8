"""Whether steps still go through all ranks: an idle engine runs one token for the question."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from tinycluster.cluster.generation import Generation
from tinycluster.cluster.health import READY_WINDOW_S, Watch
from tinycluster.engine.errors import QueueFullError, UnavailableError
from tinycluster.engine.request import SamplingParams

_ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


class Probe:
    """Any thread may ask; at most one request at a time is made for all of them."""

    def __init__(
        self, name: str, watch: Watch, submit: Callable[[Sequence[int], SamplingParams], Generation], token_id: int
    ) -> None:
        self._name, self._watch, self._submit, self._token_id = name, watch, submit, token_id
        self._lock = threading.Lock()
        self.is_running = False

    def check(self) -> None:
        """UnavailableError unless a forward pass went through all ranks within the last READY_WINDOW_S."""
        with self._lock:
            if not self._watch.is_fresh(time.monotonic()):
                self._run()

    def _run(self) -> None:
        try:
            generation = self._submit([self._token_id], _ONE_TOKEN)
            self.is_running = True
            for _ in generation.iterate(READY_WINDOW_S):
                pass
        except (TimeoutError, QueueFullError):
            if not self._watch.is_fresh(time.monotonic()):
                raise UnavailableError(f"{self._name} computed nothing within {READY_WINDOW_S:.0f} s") from None
        finally:
            self.is_running = False
