"""What the API itself costs: `python -m tests.load.overhead`. A mock engine answers at once; storage and keys are on.

One client asks each route again and again; then 2,000 requests come from 200 clients; then 500 streams idle while one
client goes on asking. What is stored waits for the disk, once for each commit: how long that takes here is measured in
the same run, and is no cost of the API. Ends with status 1 where the median of one client is above 5 ms beside that,
where a request of the 2,000 fails, or where an idle stream is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.load.asking import Answer, Asker
from tests.load.server import LoadedServer, loaded_server
from tests.load.server_settings import new_key, settings_in

MAX_MEDIAN_MS = 5.0
TEXT = "What does the sea say to the ship that it carries home tonight?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}], "temperature": 0}
ROUTES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "chat, whole": ("/v1/chat/completions", CHAT),
    "chat, streamed": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "response, stored": ("/v1/responses", {"input": TEXT, "temperature": 0}),
    "response, not stored": ("/v1/responses", {"input": TEXT, "temperature": 0, "store": False}),
    "session, whole": ("/api/chat", {"input": TEXT, "stream": False, "temperature": 0}),
    "session, streamed": ("/api/chat", {"input": TEXT, "temperature": 0}),
}
NUM_COMMITS = {"response, stored": 1, "session, whole": 2, "session, streamed": 2}


def sync_ms(folder: Path) -> float:
    """The median time of writing a block so that it outlasts a loss of power."""
    times_ms = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            times_ms.append((time.perf_counter() - began_s) * 1e3)
    return statistics.median(times_ms)


def is_good(answer: Answer) -> bool:
    return answer.status == 200 and b'"error": {' not in answer.body


def summary(answers: Sequence[Answer]) -> str:
    times_ms = sorted(answer.total_s * 1e3 for answer in answers)
    p99 = times_ms[min(len(times_ms) - 1, int(0.99 * len(times_ms)))]
    failed = [answer for answer in answers if not is_good(answer)]
    first = f", first: {failed[0].status} {failed[0].body[:200]!r}" if failed else ""
    return f"p50 {statistics.median(times_ms):7.2f} ms   p99 {p99:7.2f} ms   {len(failed)} failed{first}"


async def one_client(server: LoadedServer, key: str, num_requests: int, folder: Path) -> bool:
    is_fast = True
    for name, (path, body) in ROUTES.items():
        async with Asker(server.address, key) as asker:
            for _ in range(20):
                await asker.ask("POST", path, body)
            answers = [await asker.ask("POST", path, body) for _ in range(num_requests)]
        own_ms = statistics.median(a.total_s for a in answers) * 1e3 - NUM_COMMITS.get(name, 0) * sync_ms(folder)
        print(f"1 client     {name:22} {summary(answers)}   without the disk {own_ms:5.2f} ms", flush=True)
        is_fast &= own_ms <= MAX_MEDIAN_MS
        is_fast &= all(map(is_good, answers))
    return is_fast


async def many_clients(server: LoadedServer, key: str, num_clients: int, num_requests: int) -> bool:
    async def client(path: str, body: Mapping[str, Any]) -> list[Answer]:
        async with Asker(server.address, key) as asker:
            return [await asker.ask("POST", path, body) for _ in range(num_requests // num_clients)]

    is_whole = True
    for name, (path, body) in ROUTES.items():
        began_s = time.perf_counter()
        answers = [a for part in await asyncio.gather(*(client(path, body) for _ in range(num_clients))) for a in part]
        rate = len(answers) / (time.perf_counter() - began_s)
        print(f"{num_clients} clients  {name:22} {summary(answers)}   {rate:6.0f} requests/s", flush=True)
        is_whole &= all(map(is_good, answers))
    return is_whole


async def idle_streams(server: LoadedServer, key: str, num_streams: int, hold_s: float) -> bool:
    """Streams whose second token never comes: each gets comments that keep it alive, and others are served."""
    body = {"messages": [{"role": "user", "content": "idle"}], "stream": True}
    memory_bytes = server.memory_bytes()
    async with AsyncExitStack() as open_streams:
        idle = [await open_streams.enter_async_context(Asker(server.address, key)) for _ in range(num_streams)]
        statuses = await asyncio.gather(*(asker.begin("POST", "/v1/chat/completions", body) for asker in idle))
        path, body = ROUTES["chat, streamed"]
        async with Asker(server.address, key) as asker:
            answers, end_s = [], time.monotonic() + hold_s
            while time.monotonic() < end_s:
                answers.append(await asker.ask("POST", path, body))
                await asyncio.sleep(0.05)
        num_held = server.ask("running")
        added = (server.memory_bytes() - memory_bytes) / num_streams
        print(f"{num_streams} streams held {num_held} after {hold_s:.0f} s, {added / 1024:.0f} KiB each", flush=True)
        print(f"beside them  chat, streamed         {summary(answers)}", flush=True)
    while server.ask("running"):
        await asyncio.sleep(0.05)
    return statuses == [200] * num_streams and num_held == num_streams and all(map(is_good, answers))


async def measure(server: LoadedServer, key: str, options: argparse.Namespace, folder: Path) -> bool:
    is_fast = await one_client(server, key, options.requests, folder)
    is_whole = await many_clients(server, key, 200, 2000)
    return await idle_streams(server, key, 500, options.hold_s) and is_fast and is_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300, help="of the one client, for each route")
    parser.add_argument("--hold-s", type=float, default=40, help="how long the streams idle")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_in(Path(folder), {"name": "fake", "source": "mock"})
        key = new_key(settings, "load")
        with loaded_server(settings, "mock") as server:
            is_good = asyncio.run(measure(server, key, options, Path(folder)))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
