"""One line of the server's log per request, when it has ended. No text of a user, no key and no secret is in it.

id              also the response's x-request-id
key             the name of the key that asked, - without keys
route, status   the route as it is declared; 499 where the client left before an answer
ttft_ms         from the request's arrival to its first token
tpot_ms         per token after the first
finish          stop, length, content_filter, abort, error: of all choices
Successful reads (GET, HEAD) have no line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tinycluster.cluster.log_file import LogFile
from tinycluster.cluster.log_lines import Field, console_line, json_line
from tinycluster.serve.exchange import Exchange


@dataclass(frozen=True)
class RequestLog:
    """Told of the end of every exchange."""

    file: LogFile
    is_json: bool
    clock: Callable[[], float] = time.time

    def __call__(self, exchange: Exchange) -> None:
        if exchange.method in ("GET", "HEAD") and exchange.status < 400:
            return
        line = json_line if self.is_json else console_line
        level = "ERROR" if exchange.status >= 500 else "INFO"
        self.file.write(line(self.clock(), level, "requests", "", fields_of(exchange)))


def fields_of(exchange: Exchange) -> dict[str, Field]:
    fields: dict[str, Field] = {
        "id": exchange.id,
        "key": exchange.key_name or None,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "duration_ms": _ms(exchange.ended_s - exchange.started_s),
    }
    if not exchange.num_answers:
        return fields
    first_s, per_token_s = exchange.first_token_s, exchange.time_per_output_token_s
    return fields | {
        "model": exchange.model,
        "prompt_tokens": exchange.num_prompt_tokens,
        "cached_tokens": exchange.num_cached_tokens,
        "completion_tokens": exchange.num_completion_tokens,
        "ttft_ms": None if first_s is None else _ms(first_s - exchange.started_s),
        "tpot_ms": None if per_token_s is None else _ms(per_token_s),
        "finish": ",".join(sorted(exchange.finish_reasons)),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
