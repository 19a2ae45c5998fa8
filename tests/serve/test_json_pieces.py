"""JSON that is written in pieces is the JSON that is written at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from tinycluster.serve.json_pieces import PIECE_BYTES, pieces_of

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(VALUES, st.integers(0, 5))
def test_the_pieces_together_are_what_is_written_at_once(value: Any, depth: int) -> None:
    written = b"".join(pieces_of(value, depth))
    assert json.loads(written) == value
    assert len(written) <= len(json.dumps(value).encode())
    if depth == 0:
        assert written == JSONResponse(value).body


@pytest.mark.parametrize("num_messages", [0, 1, 1000])
def test_no_piece_is_much_longer_than_a_message(num_messages: int) -> None:
    messages = [{"id": str(number), "text": "é" * 500} for number in range(num_messages)]
    pieces = list(pieces_of({"title": "t", "messages": messages}, 2))
    assert json.loads(b"".join(pieces)) == {"title": "t", "messages": messages}
    assert all(PIECE_BYTES <= len(piece) < PIECE_BYTES + 1100 for piece in pieces[:-1])
    assert len(pieces[-1]) < PIECE_BYTES
