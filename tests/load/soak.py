"""A server under mixed load for minutes or hours: `python -m tests.load.soak --minutes 6 --clients 24`.

Each client talks for itself: chats and completions, streamed and whole, some left in the middle, stored responses that
are continued and deleted, conversations that grow and are deleted, lists and metrics. Once a period all clients pause
and the server is looked at: memory, files, threads, tasks, blocks of the KV cache in use. Ends with status 1 where an
answer is wrong or where what is held grows: blocks, tasks, threads and files must come back to where they were after
the first third, when every pool has its threads; memory may grow by --max-growth MiB from then on.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from tests.load.asking import Answer, Asker
from tests.load.server import LoadedServer, loaded_server
from tests.load.server_settings import new_key, settings_in
from tests.parity.random_model import NINE_HEADS, write_folder

NUM_PERIODS = 12
MODEL = replace(NINE_HEADS, max_position_embeddings=2048)
WORDS = ("the", "sea", "says", "to", "every", "ship", "that", "comes", "home", "late", "tonight", "far", "out")


@dataclass(frozen=True)
class Held:
    """What the server holds while nobody asks anything."""

    memory_mib: float
    files: int
    threads: int
    tasks: int
    blocks: int


class Client:
    """One person, or one program, with a conversation of its own."""

    def __init__(self, asker: Asker, address: tuple[str, int], key: str, seed: int) -> None:
        self._asker, self._address, self._key = asker, address, key
        self._chance = random.Random(seed)
        self._session_id: str | None = None
        self._num_turns = 0
        self._response_id: str | None = None
        self.counts = Counter[str]()
        self.wrong: list[str] = []

    async def talk_until(self, end_s: float) -> None:
        acts = (self.complete, self.complete, self.chat, self.chat, self.leave, self.turn, self.turn, self.respond)
        while time.monotonic() < end_s:
            await self._chance.choice((*acts, self.look))()

    def _text(self) -> str:
        return " ".join(self._chance.choices(WORDS, k=self._chance.randint(2, 12)))

    def _sampling(self) -> dict[str, Any]:
        chance = self._chance
        return {"temperature": chance.choice([0, 1.0]), "seed": chance.randrange(100), "stream": chance.random() < 0.5}

    async def _ask(self, kind: str, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        answer = await self._asker.ask(method, path, body)
        self.counts[kind] += 1
        if answer.status != 200 or b'"error": {' in answer.body:
            self.wrong.append(f"{kind}: {answer.status} {answer.body[:300]!r}")
        return answer

    async def complete(self) -> None:
        body = {"prompt": self._text(), "max_tokens": self._chance.randint(1, 24), **self._sampling()}
        await self._ask("completion", "POST", "/v1/completions", body)

    async def chat(self) -> None:
        messages = [{"role": "user", "content": self._text()}]
        body = {"messages": messages, "max_tokens": self._chance.randint(1, 24), **self._sampling()}
        await self._ask("chat", "POST", "/v1/chat/completions", body)

    async def leave(self) -> None:
        """A stream that its client leaves in the middle."""
        body = {"prompt": self._text(), "max_tokens": 100, "ignore_eos": True, "stream": True}
        async with Asker(self._address, self._key) as asker:
            if await asker.begin("POST", "/v1/completions", body) != 200:
                self.wrong.append("a stream that was to be left did not begin")
        self.counts["left"] += 1

    async def turn(self) -> None:
        """A turn of a conversation, which ends after a few."""
        body = {"input": self._text(), "max_tokens": self._chance.randint(1, 12), **self._sampling(), "stream": False}
        if self._session_id is not None:
            body["session_id"] = self._session_id
        answer = await self._ask("turn", "POST", "/api/chat", body)
        if answer.status != 200:
            return
        self._session_id, self._num_turns = answer.json()["session_id"], self._num_turns + 1
        if self._num_turns % 5 == 0:
            await self._ask("session", "GET", f"/api/sessions/{self._session_id}")
            await self._ask("session deleted", "DELETE", f"/api/sessions/{self._session_id}")
            self._session_id = None

    async def respond(self) -> None:
        body: dict[str, Any] = {"input": self._text(), "max_output_tokens": self._chance.randint(16, 24)}
        previous, self._response_id = self._response_id, None
        if previous is not None:
            body["previous_response_id"] = previous
        answer = await self._ask("response", "POST", "/v1/responses", body)
        if previous is not None:
            await self._ask("response deleted", "DELETE", f"/v1/responses/{previous}")
        elif answer.status == 200:
            self._response_id = answer.json()["id"]

    async def look(self) -> None:
        path = self._chance.choice(["/api/sessions", "/v1/models", "/metrics", "/load", "/health/ready"])
        await self._ask("look", "GET", path)


def held(server: LoadedServer) -> Held:
    memory_mib = server.memory_bytes() / 2**20
    return Held(memory_mib, server.num_files(), server.num_threads(), server.ask("tasks"), server.ask("blocks"))


async def until_idle(server: LoadedServer) -> None:
    while server.ask("running"):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)


async def soak(server: LoadedServer, key: str, options: argparse.Namespace) -> tuple[list[Held], list[Client]]:
    askers = [Asker(server.address, key) for _ in range(options.clients)]
    looks: list[Held] = []
    for asker in askers:
        await asker.__aenter__()
    clients = [Client(asker, server.address, key, seed) for seed, asker in enumerate(askers)]
    for period in range(NUM_PERIODS):
        end_s = time.monotonic() + options.minutes * 60 / NUM_PERIODS
        await asyncio.gather(*(client.talk_until(end_s) for client in clients))
        await until_idle(server)
        looks.append(held(server))
        num_asked = sum(sum(client.counts.values()) for client in clients)
        print(f"{period + 1:2}/{NUM_PERIODS}  {num_asked:7} requests  {looks[-1]}", flush=True)
    for asker in askers:
        await asker.__aexit__(None, None, None)
    return looks, clients


def faults(looks: Sequence[Held], clients: Sequence[Client], max_growth_mib: float) -> list[str]:
    found = [sentence for client in clients for sentence in client.wrong]
    first, last = looks[len(looks) // 3], looks[-1]
    for name in ("files", "threads", "tasks", "blocks"):
        if getattr(last, name) > getattr(first, name):
            found.append(f"{name} grew from {getattr(first, name)} to {getattr(last, name)}")
    grown_mib = last.memory_mib - first.memory_mib
    if grown_mib > max_growth_mib:
        found.append(f"memory grew by {grown_mib:.1f} MiB in the last two thirds")
    return found


def plot(looks: Sequence[Held], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(astuple(looks[0])), 1, sharex=True, figsize=(7, 9))
    for axis, name in zip(axes, Held.__dataclass_fields__, strict=True):
        axis.plot(range(1, len(looks) + 1), [getattr(look, name) for look in looks], marker="o")
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("period")
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--source", help="a model; by default a tiny random one")
    parser.add_argument("--max-growth", type=float, default=16, help="MiB")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or str(write_folder(Path(folder) / "model", MODEL, 3))
        settings = settings_in(Path(folder), {"name": "soaked", "source": source, "kv_cache": {"memory": "16MiB"}})
        key = new_key(settings, "soak", "--role", "admin")
        with loaded_server(settings, "real") as server:
            looks, clients = asyncio.run(soak(server, key, options))
    counts = sum((client.counts for client in clients), Counter[str]())
    print(", ".join(f"{count} × {kind}" for kind, count in counts.most_common()))
    if options.plot:
        plot(looks, options.plot)
    found = faults(looks, clients, options.max_growth)
    print("\n".join(found[:20]) or "nothing grew, every answer was right")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
