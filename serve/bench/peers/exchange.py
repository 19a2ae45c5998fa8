"""What the parent says to an engine in its own process and back: one JSON object a line, one request at a time.

parent -> child   Opening once, then Work after Work until the end of the input
child -> parent   Ready once, then a Timing per Work; a sentence under "error" ends the child
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TextIO

from tinycluster.engine.errors import TinyclusterError

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Opening:
    """Which model, and for how much work at once. `weights` is `stored` or a format to convert to.

    `config` and `assignments` are what the settings come from; `path` is the model file of that configuration.
    """

    path: str
    weights: str
    threads: int
    max_requests: int
    max_tokens: int
    folder: str
    """For converted files."""
    config: str
    assignments: Sequence[str]
    model: str


@dataclass(frozen=True)
class Ready:
    """Which engine answers, and how it is set: what someone else needs to run it the same way."""

    version: str
    settings: str


@dataclass(frozen=True)
class Work:
    """Prompts to be answered together, greedily, with `output_len` tokens each."""

    prompts: Prompts
    output_len: int


@dataclass(frozen=True)
class Timing:
    """Seconds until every request has its first token, and from there until every request has its last."""

    prefill_s: float
    decode_s: float
    prompt_tokens: int
    decoded_tokens: int


class Peer(Protocol):
    """An engine in this process."""

    @property
    def ready(self) -> Ready: ...

    def run(self, prompts: Prompts, output_len: int) -> Timing: ...


def serve_peer(open_peer: Callable[[Opening], Peer]) -> None:
    """The main loop of a child, over standard input and output; what libraries print goes to standard error."""
    answers = _own_stdout()
    try:
        peer = open_peer(Opening(**json.loads(sys.stdin.readline())))
        _say(answers, asdict(peer.ready))
        for line in sys.stdin:
            work = Work(**json.loads(line))
            _say(answers, asdict(peer.run(work.prompts, work.output_len)))
    except TinyclusterError as error:
        _say(answers, {"error": str(error)})
    except Exception as error:
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise


def _own_stdout() -> TextIO:
    """Libraries in C write to descriptor 1 whatever sys.stdout is."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ours


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)
