"""Limits of a key, by a clock that the tests set."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.clock import Clock
from tinycluster.engine.errors import RequestError, TinyclusterError
from tinycluster.serve.errors import ErrorReply, HttpError
from tinycluster.serve.key_limits import Account, Bucket, Limits, duration
from tinycluster.serve.wrong_keys import WINDOW_S, WrongKeys


@dataclass(eq=False)
class Request:
    errors: list[TinyclusterError] = field(default_factory=list)

    def refuse(self, error: TinyclusterError) -> None:
        self.errors.append(error)


def refusal(account: Account) -> ErrorReply:
    with pytest.raises(HttpError) as refused:
        account.check_in()
    assert (refused.value.reply.status, refused.value.reply.code) == (429, "rate_limit_exceeded")
    return refused.value.reply


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30),
)
def test_a_bucket_never_gives_more_than_its_minutes(per_minute: int, steps: list[tuple[float, int]]) -> None:
    """Over any time t no more than one burst and what has flowed in: n + n t / 60."""
    bucket, now_s, taken = Bucket(per_minute, 0.0), 0.0, 0
    for passed_s, wanted in steps:
        now_s += passed_s
        for _ in range(wanted):
            if bucket.wait_s(1, now_s) == 0:
                bucket.take(1, now_s)
                taken += 1
        assert taken <= per_minute + per_minute * now_s / 60 + 1e-6
        assert 0 <= bucket.level(now_s) <= per_minute


def test_after_the_wait_that_it_tells_a_bucket_has_what_was_asked_for() -> None:
    bucket = Bucket(6, 0.0)
    bucket.take(6, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(10)
    assert bucket.wait_s(1, 9.9) > 0
    assert bucket.wait_s(1, 10.0) == pytest.approx(0, abs=1e-9)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    bucket = Bucket(60, 100.0)
    bucket.take(30, 100.0)
    assert bucket.level(50.0) == 30
    assert bucket.level(101.0) == 31


def test_requests_beyond_a_minutes_worth_wait_for_the_next() -> None:
    clock = Clock()
    account = Account(Limits(requests_per_minute=3), clock)
    for _ in range(3):
        account.check_in()
    assert refusal(account).headers == {"retry-after": "20"}
    assert account.headers()["x-ratelimit-remaining-requests"] == "0"
    assert account.headers()["x-ratelimit-reset-requests"] == "1m0s"
    clock.now_s += 20
    account.check_in()
    refusal(account)


def test_a_long_answer_is_paid_for_by_waiting_after_it() -> None:
    clock = Clock()
    account, request = Account(Limits(tokens_per_minute=100), clock), Request()
    account.check_in()
    account.begin(request, 1, 49)
    account.end(request, 100)
    assert refusal(account).headers == {"retry-after": "30"}
    assert account.headers()["x-ratelimit-remaining-tokens"] == "0"
    clock.now_s += 30
    account.check_in()
    assert account.headers() == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "1",
        "x-ratelimit-reset-tokens": "59.4s",
    }


def test_prompts_are_paid_for_when_they_begin() -> None:
    """Of many requests that come together, the first takes what there is."""
    account = Account(Limits(tokens_per_minute=10), Clock())
    for _ in range(3):
        account.check_in()
    account.check_running(1)
    account.begin(Request(), 1, 200)
    with pytest.raises(HttpError, match="10 tokens per minute"):
        account.check_running(1)


def test_every_answer_of_a_request_runs() -> None:
    account, request = Account(Limits(max_running=4), Clock()), Request()
    account.check_running(3)
    account.begin(request, 3, 1)
    account.check_running(1)
    with pytest.raises(HttpError, match="4 running answers"):
        account.check_running(2)
    account.end(request, 1)
    account.check_running(4)
    with pytest.raises(RequestError, match="asks for 5 answers at once; the limit of this key is 4"):
        account.check_running(5)


def test_no_more_run_at_once_than_may() -> None:
    account = Account(Limits(max_running=2), Clock())
    first, second = Request(), Request()
    account.begin(first, 1, 1)
    account.check_in()
    account.begin(second, 1, 1)
    assert refusal(account).headers == {"retry-after": "1"}
    account.end(first, 10)
    account.check_in()


def test_what_runs_is_refused_with_the_key() -> None:
    account, requests = Account(Limits(), Clock()), [Request(), Request()]
    for request in requests:
        account.begin(request, 1, 1)
    account.end(requests[0], 1)
    error = TinyclusterError("no")
    account.refuse_running(error)
    assert [request.errors for request in requests] == [[], [error]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (59.9994, "1m0s"), (150, "2m30s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_wrong_keys_of_one_address_are_counted_apart_from_all_others() -> None:
    wrong = WrongKeys(max_tries=3)
    assert [wrong.count("192.0.2.1", now_s) for now_s in (0, 1, 2)] == [0, 0, 0]
    assert wrong.count("192.0.2.1", 3) == WINDOW_S - 3
    assert wrong.count("192.0.2.2", 3) == 0
    assert wrong.count("192.0.2.1", WINDOW_S) == 0


def test_the_addresses_of_one_ipv6_network_count_together() -> None:
    wrong = WrongKeys(max_tries=1)
    assert wrong.count("2001:db8::1", 0) == 0
    assert wrong.count("2001:db8::ffff:2", 0) > 0
    assert wrong.count("2001:db8:0:1::1", 0) == 0


def test_an_ipv4_address_is_the_same_on_a_socket_for_both_kinds() -> None:
    wrong = WrongKeys(max_tries=1)
    assert wrong.count("::ffff:192.0.2.1", 0) == 0
    assert wrong.count("192.0.2.1", 0) > 0
    assert wrong.count("::ffff:192.0.2.2", 0) == 0


def test_of_what_is_no_address_little_is_kept() -> None:
    wrong = WrongKeys()
    wrong.count("x" * 100_000, 0)
    assert [len(address) for address in wrong._tries] == [64]


def test_a_bounded_number_of_addresses_is_remembered() -> None:
    wrong = WrongKeys(max_tries=1, max_addresses=10)
    for number in range(1000):
        wrong.count(f"address {number}", 0)
    assert len(wrong._tries) == 10
    assert wrong.count("address 999", 1) > 0
