"""The bounded store of answers against a plain model of it."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.serve.responses_store import ResponseStore, StoredResponse, context_of, memory_of


def stored(response_id: str, size: int = 0, stops: list[str] | None = None) -> StoredResponse:
    def stop() -> None:
        assert stops is not None
        stops.append(response_id)

    response = {"id": response_id, "output": "x" * size}
    return StoredResponse(response, context_of([]), stop=None if stops is None else stop)


def ids(store: ResponseStore, client: str, candidates: str) -> str:
    return "".join(name for name in candidates if store.get(client, name) is not None)


def test_a_client_finds_its_own_and_nobody_elses() -> None:
    store = ResponseStore()
    store.put("a", stored("1"))
    assert store.get("a", "1") is not None
    assert store.get("b", "1") is None
    assert store.remove("b", "1") is None
    assert store.get("a", "1") is not None


def test_what_is_removed_is_gone_and_counts_no_more() -> None:
    store = ResponseStore()
    store.put("a", stored("1", 100))
    assert store.remove("a", "1") is not None
    assert store.get("a", "1") is None
    assert (store.num_responses, store.num_bytes) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(max_responses=3)
    for name in "123":
        store.put("a", stored(name))
    store.get("a", "1")
    store.put("a", stored("4"))
    assert ids(store, "a", "1234") == "134"


def test_the_client_that_holds_the_most_gives_way() -> None:
    store = ResponseStore(max_bytes=1500)
    store.put("modest", stored("m", 100))
    for name in "123":
        store.put("greedy", stored(name, 300))
    assert ids(store, "modest", "m") == "m"
    assert ids(store, "greedy", "123") == "23"


def test_what_is_larger_than_the_store_is_not_kept() -> None:
    store = ResponseStore(max_bytes=100)
    store.put("a", stored("1", 1000))
    assert (store.num_responses, store.num_bytes) == (0, 0)


def test_a_response_that_is_dropped_in_progress_is_stopped() -> None:
    store, stops = ResponseStore(max_responses=1), list[str]()
    store.put("a", stored("1", stops=stops))
    store.put("a", stored("1", 5, stops=stops))
    assert stops == []
    store.put("a", stored("2", stops=stops))
    assert stops == ["1"]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "remove"]), st.sampled_from("ab"), st.sampled_from("1234"), st.integers(0, 90)
    ),
    max_size=40,
)


@given(OPERATIONS)
def test_counts_are_those_of_what_is_there_and_bounds_hold(operations: list[tuple[str, str, str, int]]) -> None:
    store = ResponseStore(max_responses=4, max_bytes=600)
    for kind, client, name, size in operations:
        if kind == "put":
            store.put(client, stored(name, size))
        elif kind == "get":
            store.get(client, name)
        else:
            store.remove(client, name)
        there = [found for who in "ab" for one in "1234" if (found := store.get(who, one)) is not None]
        assert store.num_responses == len(there) <= 4
        assert store.num_bytes == sum(memory_of(one.response) for one in there) <= 600


@pytest.mark.parametrize(
    "value", [[[] for _ in range(500)], [{} for _ in range(500)], list(range(1000, 1500)), [{"a": [1.5, "b"]}] * 9]
)
def test_memory_is_estimated_from_above(value: object) -> None:
    tracemalloc.start()
    copy = json.loads(json.dumps(value))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert copy == value
    assert used - 2000 <= memory_of(value)
