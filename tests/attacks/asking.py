"""Requests as JSON, and what a refusal of one of their fields looks like."""

from __future__ import annotations

import json
from typing import Any

from tests.attacks.contract import Victim
from tests.attacks.wire import Reply, exchange, request

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def post(server: Victim, path: str, body: Any) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server.address, request("POST", path, body=content))


def rejected(reply: Reply, *params: str) -> str:
    """A 400 that blames one of these fields, or any where none is named; its message."""
    error = reply.error()
    assert (reply.status, error["type"]) == (400, "invalid_request_error"), reply
    if params:
        assert (error["param"] or "").split(".")[0].split("[")[0] in params, error
    assert len(error["message"]) < 1000
    return str(error["message"])
