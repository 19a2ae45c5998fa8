"""Who comes next: priorities, turns between clients, and patience that ends."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from tinycluster.engine.prefix_cache import root
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.scheduled_request import ScheduledRequest
from tinycluster.engine.waiting_queue import WaitingQueue


class Crowd:
    """A queue and the numbers of those that arrive."""

    def __init__(self, patience: int = 1000, weights: Mapping[str, float] = {}) -> None:
        self.queue = WaitingQueue(patience, weights)
        self._numbers = itertools.count()

    def arrive(self, client: str = "", priority: int = 0, num_tokens: int = 10) -> int:
        number = next(self._numbers)
        request = ScheduledRequest(
            number, [1] * num_tokens, SamplingParams(), 0, 100, number, [root("", "")], priority, client
        )
        self.queue.enter(request)
        self.queue.put(request)
        return number

    def admit(self) -> ScheduledRequest | None:
        request = self.queue.first()
        if request is not None:
            self.queue.admit(request)
        return request

    def serve_all(self) -> Iterator[ScheduledRequest]:
        """Everybody in turn, each served as many tokens as it has."""
        while (request := self.admit()) is not None:
            self.queue.serve(request.client, len(request.tokens))
            yield request
            self.queue.leave(request)


def test_the_lower_priority_goes_first_and_among_equals_who_came_first() -> None:
    crowd = Crowd()
    for priority in (0, 5, -1, 0, -1):
        crowd.arrive(priority=priority)
    assert [request.request_id for request in crowd.serve_all()] == [2, 4, 0, 3, 1]
    assert crowd.queue.first() is None
    assert len(crowd.queue) == crowd.queue.num_tokens == 0


def test_a_client_with_many_requests_does_not_go_before_one_with_few() -> None:
    crowd = Crowd()
    for _ in range(6):
        crowd.arrive("many")
    for _ in range(2):
        crowd.arrive("few")
    assert [request.client for request in crowd.serve_all()] == ["many", "few", "many", "few", *["many"] * 4]


def test_turns_go_by_tokens_and_not_by_requests() -> None:
    crowd = Crowd()
    for _ in range(4):
        crowd.arrive("long", num_tokens=30)
    for _ in range(8):
        crowd.arrive("short", num_tokens=10)
    served = Counter[str]()
    for request in itertools.islice(crowd.serve_all(), 8):
        served[request.client] += len(request.tokens)
        assert abs(served["long"] - served["short"]) <= 30


@pytest.mark.parametrize("weight", [2.0, 3.0, 0.5])
def test_clients_are_served_in_proportion_to_their_weights(weight: float) -> None:
    crowd = Crowd(weights={"heavy": weight})
    for _ in range(400):
        crowd.arrive("heavy")
        crowd.arrive("light")
    served = Counter(request.client for request in itertools.islice(crowd.serve_all(), 300))
    # A turn more or less at either end.
    assert abs(served["heavy"] - weight * served["light"]) <= weight + 1


def test_who_comes_late_is_not_given_what_others_were_served_before() -> None:
    crowd = Crowd()
    for _ in range(30):
        crowd.arrive("early")
    serving = crowd.serve_all()
    for _ in range(10):
        next(serving)
    for _ in range(10):
        crowd.arrive("late")
    following = [request.client for request in itertools.islice(serving, 8)]
    assert Counter(following) == {"early": 4, "late": 4}


def test_to_leave_and_come_back_does_not_pay() -> None:
    crowd = Crowd()
    crowd.arrive("greedy", num_tokens=100)
    for _ in range(5):
        crowd.arrive("patient")
    serving = crowd.serve_all()
    assert next(serving).client == "greedy"
    assert next(serving).client == "patient"
    crowd.arrive("greedy")
    assert [request.client for request in serving] == [*["patient"] * 4, "greedy"]


def test_many_clients_that_come_and_go_leave_nothing_behind() -> None:
    crowd = Crowd()
    crowd.arrive("stays", num_tokens=1)
    for number in range(200):
        crowd.arrive(f"client {number}", num_tokens=1)
        assert crowd.queue.first() is not None
        request = next(request for request in crowd.queue if request.client != "stays")
        crowd.queue.admit(request)
        crowd.queue.leave(request)
    assert len(crowd.queue._served) <= 3


@pytest.mark.parametrize("patience", [1, 4, 16])
def test_nobody_is_passed_for_ever(patience: int) -> None:
    crowd = Crowd(patience)
    late = crowd.arrive(priority=100)
    for passed in range(patience + patience // 4 + 1):
        crowd.arrive(priority=-5)
        admitted = crowd.admit()
        assert admitted is not None
        crowd.queue.leave(admitted)
        if admitted.request_id == late:
            assert passed >= patience
            return
    pytest.fail(f"passed more than {patience} times")


def test_of_two_that_were_passed_too_often_the_older_goes_first_whatever_its_client_was_served() -> None:
    crowd = Crowd(patience=2)
    first = crowd.arrive("old", priority=3)
    second = crowd.arrive("new", priority=3)
    crowd.queue.serve("old", 10_000)
    admitted = []
    for _ in range(4):
        crowd.arrive("new", priority=0)
        admitted.append(crowd.admit())
    assert [request.request_id for request in admitted if request is not None] == [2, 3, first, second]
