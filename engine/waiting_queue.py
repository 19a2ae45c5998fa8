"""Who comes next of the requests that wait. Pure: patience is counted in admissions, not in seconds.

A lower priority goes first. Among equal priorities clients take turns by the tokens that were computed for them, each
divided by its client's weight (virtual token counters: Sheng et al. 2024, "Fairness in Serving Large Language Models",
algorithm 2); within a client the oldest goes first. Whoever was passed over `patience` times goes before all of them,
so nobody waits for ever.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain

from tinycluster.engine.scheduled_request import ScheduledRequest


class WaitingQueue:
    """`weights` are the clients' shares, 1 where none is given; others may take their place at any time."""

    def __init__(self, patience: int, weights: Mapping[str, float]) -> None:
        self._patience, self.weights = patience, weights
        self._lines: dict[str, list[ScheduledRequest]] = {}
        self._served: dict[str, float] = {}
        """By client: its virtual token counter."""
        self._num_requests = Counter[str]()
        self._num_admitted = 0
        self.num_tokens = 0
        """Of the requests that wait."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[ScheduledRequest]:
        return chain.from_iterable(self._lines.values())

    def enter(self, request: ScheduledRequest) -> None:
        """A new request, which counts from here to `leave`. Its client's counter does not lag behind all others'."""
        client = request.client
        if not self._num_requests[client]:
            least = min((self._served[other] for other in self._num_requests), default=0.0)
            # Who left with no more than the least would begin at the least anyway.
            self._served = {
                other: served for other, served in self._served.items() if served > least or self._num_requests[other]
            }
            self._served.setdefault(client, least)
        self._num_requests[client] += 1
        request.num_admitted_before = self._num_admitted

    def leave(self, request: ScheduledRequest) -> None:
        """The end of a request, wherever it was."""
        self._num_requests[request.client] -= 1
        if not self._num_requests[request.client]:
            # What a client was served counts as long as others are here: to leave and come back must not pay.
            del self._num_requests[request.client]
            if not self._num_requests:
                self._served.clear()

    def serve(self, client: str, num_tokens: int) -> None:
        self._served[client] += num_tokens / self.weights.get(client, 1.0)

    def put(self, request: ScheduledRequest) -> None:
        insort(self._lines.setdefault(request.client, []), request, key=_place)
        # Tokens in flight may arrive while it waits.
        request.num_queued = request.num_tokens
        self.num_tokens += request.num_queued

    def remove(self, request: ScheduledRequest) -> None:
        line = self._lines[request.client]
        line.remove(request)
        if not line:
            del self._lines[request.client]
        self.num_tokens -= request.num_queued

    def first(self) -> ScheduledRequest | None:
        """Who is to be admitted next."""
        heads = (line[0] for line in self._lines.values())
        if len(self._lines) <= 1:
            return next(heads, None)
        return min(heads, key=self._turn)

    def admit(self, request: ScheduledRequest) -> None:
        """Take the request, which is `first`, out."""
        self.remove(request)
        self._num_admitted += 1
        # Looked at from time to time only, so that patience may last a quarter longer.
        if self._num_admitted % max(1, self._patience // 4) == 0:
            self._lift()

    def _lift(self) -> None:
        for line in self._lines.values():
            for request in line:
                if self._num_admitted - request.num_admitted_before >= self._patience:
                    request.is_lifted = True
            line.sort(key=_place)

    def _turn(self, request: ScheduledRequest) -> tuple[bool, int, float, int]:
        if request.is_lifted:
            return False, 0, 0.0, request.arrival
        return True, request.priority, self._served[request.client], request.arrival


def _place(request: ScheduledRequest) -> tuple[bool, int, int]:
    return request.place
