"""A peer for tests, in a process of its own: its speed and its end are in the model name that it is opened with."""

from __future__ import annotations

import sys

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.peers.exchange import Opening, Prompts, Ready, Timing, serve_peer


class EchoPeer:
    """Takes one second per prompt token and half a second per decoded one."""

    def __init__(self, opening: Opening) -> None:
        if opening.model == "unreadable":
            raise ConfigError("this file is not for me")
        print("libraries are talkative")
        self._opening = opening
        self.ready = Ready("1.5", f"{opening.threads} threads, {opening.weights}")

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        if self._opening.model == "fragile":
            print("the arithmetic unit is on fire", file=sys.stderr)
            sys.exit(3)
        num_tokens, num_decoded = sum(map(len, prompts)), len(prompts) * (output_len - 1)
        return Timing(1.0 * num_tokens, 0.5 * num_decoded, num_tokens, num_decoded)


if __name__ == "__main__":
    serve_peer(EchoPeer)
