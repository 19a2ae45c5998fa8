"""Does a long conversation still answer at once? `python -m tests.load.turns --source MODEL`.

Conversations of ten turns through POST /api/chat, others talking in between, so that the cache has reason to forget.
The time to the first token of each turn stands beside those of three prompts of random tokens: as many as the turn's
new ones alone; the same behind as many cached ones, which shows what the conversation itself costs; and all of them
where the cache knows nothing of them. No turn is as quick as its new tokens alone: they attend to the cached ones,
which takes a third as many multiplications for 944 of them as all of SmolLM2's layers do, and these in float32. Ends
with status 1 where the tenth turn pays more than a twentieth of what its cached tokens would cost anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.load.asking import Answer, Asker
from tests.load.server import LoadedServer, loaded_server
from tests.load.server_settings import new_key, settings_in

NUM_TURNS = 10
WORDS = ("sea", "ship", "storm", "harbour", "light", "rope", "wind", "captain", "island", "anchor", "tide", "gull")


class Turn(NamedTuple):
    num_prompt_tokens: int
    num_cached_tokens: int
    ttft_ms: float
    alone_ms: float
    behind_ms: float
    cold_ms: float


def done(answer: Answer) -> dict[str, Any]:
    """The data of a stream's last event but [DONE]."""
    assert answer.status == 200, answer.body
    events = [part for part in answer.body.decode().split("\n\n") if part.startswith("event: done")]
    return dict(json.loads(events[-1].partition("data: ")[2]))


def question(chance: random.Random, num_words: int) -> str:
    return f"Tell me a short story about {' and '.join(chance.choices(WORDS, k=num_words))}."


async def first_token_ms(asker: Asker, prompt: Sequence[int]) -> float:
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True}
    return (await asker.ask("POST", "/v1/completions", body)).first_s * 1e3


async def conversation(server: LoadedServer, key: str, chance: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    async with Asker(server.address, key) as asker, Asker(server.address, key) as other:
        vocab_size = (await asker.ask("GET", "/v1/models")).json()["data"][0]["vocab_size"]
        body: dict[str, Any] = {"temperature": 0, "max_tokens": 80}
        for _ in range(NUM_TURNS):
            ended = done(await asker.ask("POST", "/api/chat", {**body, "input": question(chance, 3)}))
            usage, body["session_id"] = ended["message"]["usage"], ended["session"]["id"]
            num_prompt, num_cached = usage["prompt_tokens"], usage["cached_tokens"]
            whole, new, alone = (
                chance.choices(range(300, vocab_size), k=length)
                for length in (num_prompt, num_prompt - num_cached, num_prompt - num_cached)
            )
            alone_ms = await first_token_ms(other, alone)
            cold_ms = await first_token_ms(other, whole)
            behind_ms = await first_token_ms(other, whole[:num_cached] + new)
            turns.append(Turn(num_prompt, num_cached, usage["ttft_ms"], alone_ms, behind_ms, cold_ms))
    return turns


async def measure(server: LoadedServer, key: str, num_conversations: int) -> list[list[Turn]]:
    chance = random.Random(7)
    await conversation(server, key, chance)
    return [await conversation(server, key, chance) for _ in range(num_conversations)]


def show(conversations: Sequence[Sequence[Turn]]) -> Turn:
    """The medians of the tenth turn."""
    print("turn  prompt  cached   TTFT ms   new tokens alone   behind cached   whole prompt cold")
    for number, of_turn in enumerate(zip(*conversations, strict=True), start=1):
        turn = Turn(*map(statistics.median, zip(*of_turn, strict=True)))
        print(
            f"{number:4}  {turn.num_prompt_tokens:6.0f}  {turn.num_cached_tokens:6.0f}  {turn.ttft_ms:8.1f}"
            f"  {turn.alone_ms:17.1f}  {turn.behind_ms:14.1f}  {turn.cold_ms:18.1f}"
        )
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--conversations", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_in(
            Path(folder), {"name": "turns", "source": options.source, "kv_cache": {"memory": "256MiB"}}
        )
        key = new_key(settings, "turns")
        with loaded_server(settings, "real") as server:
            conversations = asyncio.run(measure(server, key, options.conversations))
    turn = show(conversations)
    alone, behind = turn.ttft_ms / turn.alone_ms, turn.ttft_ms / turn.behind_ms
    paid = (turn.ttft_ms - turn.alone_ms) / (turn.cold_ms - turn.alone_ms)
    print(f"turn {NUM_TURNS}: {alone:.2f} × its new tokens alone, {behind:.2f} × those behind as many cached ones;")
    print(f"{paid:.1%} of what the cached tokens would cost anew")
    sys.exit(0 if paid <= 0.05 else 1)


if __name__ == "__main__":
    main()
