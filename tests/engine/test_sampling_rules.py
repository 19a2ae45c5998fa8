"""The ranges of sampling parameters, at their ends: what is outside is refused with the field's name."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan

import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.sampling_rules import check_sampling

VOCABULARY = 100
ALL = tuple(range(VOCABULARY))
UNBOUNDED = {"ignore_eos", "include_stop_str_in_output", "return_logits_digest", "skip_special_tokens"}
RANGES: list[tuple[str, list[object], list[object]]] = [
    ("temperature", [0, 2, 0.3], [-0.1, 2.1, nan, inf]),
    ("top_k", [-1, 0, 1, 10**9], [-2, -5]),
    ("top_p", [1, 1e-9], [0, 1.1, -1, nan]),
    ("min_p", [0, 1], [-0.1, 1.1, nan]),
    ("seed", [None, 0, 2**63 - 1], [-1, 2**63]),
    ("max_tokens", [None, 1], [0, -1]),
    ("min_tokens", [0, 1, 10**6], [-1]),
    ("stop", [(), ("a", "b", "c", "d"), ("x" * 1024,)], [("a", ""), ("a", "b", "c", "d", "e"), ("x" * 1025,), ("\0",)]),
    ("stop_token_ids", [(), (0, 99), ALL], [(-1,), (100,), (5,) * 1025]),
    ("presence_penalty", [-2, 2, 0.1], [-2.1, 2.1, nan, inf]),
    ("frequency_penalty", [-2, 2, 0.1], [-2.1, 2.1, nan, -inf]),
    ("repetition_penalty", [0.001, 1, 1.3, 1000], [0, -1, 0.0009, 1001, nan, inf]),
    (
        "logit_bias",
        [(), ((0, -100), (99, 100.0)), ((3, 0.5),) * 1024],
        [((100, 1),), ((-1, 1),), ((0, 101),), ((0, -100.5),), ((0, nan),), ((3, 0.5),) * 1025],
    ),
    (
        "bad_words",
        [(), ((0,), (99, 1)), ((1,) * 64,), ((1,),) * 1024],
        [((),), ((1, 100),), ((-1,),), ((1,) * 65,), ((1,),) * 1025],
    ),
    ("allowed_token_ids", [None, (0,), ALL], [(), (100,), (-1,), (*ALL, 5)]),
    ("logprobs", [None, 0, 20], [-1, 21]),
    ("prompt_logprobs", [None, 0, 20], [-1, 21]),
]


@pytest.mark.parametrize(("field", "good", "bad"), RANGES, ids=[field for field, _, _ in RANGES])
def test_sampling_parameters_out_of_range_are_named(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        check_sampling(SamplingParams(**{field: value}), VOCABULARY)  # type: ignore[arg-type]
    for value in bad:
        with pytest.raises(RequestError, match=f"^{field} must be ") as error:
            check_sampling(SamplingParams(**{field: value}), VOCABULARY)  # type: ignore[arg-type]
        assert error.value.param == field
        assert len(str(error.value)) < 200


def test_every_parameter_that_has_a_range_is_checked() -> None:
    assert {field.name for field in fields(SamplingParams)} == {field for field, _, _ in RANGES} | UNBOUNDED


def test_fewer_tokens_than_the_most_may_be_asked_for_at_least() -> None:
    check_sampling(SamplingParams(min_tokens=5, max_tokens=5), VOCABULARY)
    with pytest.raises(RequestError, match="min_tokens must be at most max_tokens = 4, got 5"):
        check_sampling(SamplingParams(min_tokens=5, max_tokens=4), VOCABULARY)
