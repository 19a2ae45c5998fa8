"""`tinycluster serve` over Ray with the real model: both fronts, a lost rank, a Ray of its own and a joined one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.serve.server_process import STOP_LIMIT_S, own_environment, running_server
from tinycluster.serve.openapi_cluster import ClusterSnapshot

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def ask(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        answer = api.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=20)
        stream = api.chat.completions.create(
            model="smollm2", messages=FRANCE, temperature=0, max_tokens=20, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content
    return answer.choices[0].message.content or ""


def test_a_lost_rank_ends_the_stream_with_an_error_and_the_server_with_exit_code_1(smollm2_path: Path) -> None:
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with own_environment() as environment, running_server("smollm2", "--port", "0", environment=environment) as server:
        assert "Paris" in ask(server.url)
        assert httpx.get(f"{server.url}/health/ready", timeout=30).status_code == 200
        rank_pid = int(re.findall(r"rank 1 on node .* \(process (\d+)\)", server.errors())[0])
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as stream:
            events = (line for line in stream.iter_lines() if line)
            next(events)
            os.kill(rank_pid, signal.SIGKILL)
            *_, last, done = events
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], done) == ("service_unavailable", "data: [DONE]")
        assert "rank 1" in error["message"]
        assert server.wait(STOP_LIMIT_S) == 1
        assert server.rest_of_stdout() == ""
        assert f"error: {error['message']}" in server.errors().splitlines()


def resident_bytes(pid: int) -> int:
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss"].split()[0]) * 1024


def test_a_rank_needs_little_more_memory_than_its_weights_and_its_cache(smollm2_path: Path) -> None:
    cache_bytes, spare_bytes = 32 * 2**20, 150 * 10**6
    options = ["--set", "kv_cache.memory=32MiB", "--set", "limits.max_model_len=1024", "--port", "0"]
    body = {"prompt": "The sea is wide. " * 190, "max_tokens": 16, "ignore_eos": True}
    with own_environment() as environment, running_server("smollm2", *options, environment=environment) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        assert answer["usage"]["prompt_tokens"] > 900
        ranks = re.findall(r"rank \d on node .* \(process (\d+)\): loading: ([\d.]+) MB in", server.errors())
        assert len(ranks) == 2
        for pid, megabytes in ranks:
            assert resident_bytes(int(pid)) <= float(megabytes) * 10**6 + cache_bytes + spare_bytes


@contextmanager
def started_ray() -> Iterator[dict[str, str]]:
    """A Ray as `ray start` leaves it; yields the environment in which `address: auto` finds it."""
    with own_environment() as environment:
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
        options = ["--port=0", "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000"]
        ray = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True)
        assert ray.stdout is not None
        try:
            while "Ray runtime started" not in (line := ray.stdout.readline()):
                assert line, "ray start ended"
            yield environment
        finally:
            ray.terminate()
            ray.wait()
            ray.stdout.close()


# Ray takes its time to remove what has ended.
IS_EMPTY = """
import os, pathlib, ray, time
address = pathlib.Path(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster").read_text()
ray.init(address=address, logging_level="ERROR")
def left():
    groups = {group["state"] for group in ray.util.placement_group_table().values()}
    return ray.util.list_named_actors(all_namespaces=True), groups - {"REMOVED"}
end_s = time.monotonic() + 60
while any(left()) and time.monotonic() < end_s:
    time.sleep(0.1)
print(*left())
"""


def check_cluster_view(shown: dict[str, Any]) -> None:
    ClusterSnapshot.model_validate(shown)
    (model,), (node,) = shown["models"], shown["nodes"]
    assert (model["name"], model["state"], node["is_alive"]) == ("smollm2", "ready", True)
    assert [rank["node_id"] for rank in model["ranks"]] == [node["id"]] * len(model["ranks"])
    assert node["ranks"] == [{"model": "smollm2", "rank": rank["rank"]} for rank in model["ranks"]]
    assert len({rank["pid"] for rank in model["ranks"]}) == len(model["ranks"]) > 0


def test_a_ray_that_was_there_stays_and_the_proxy_answers(smollm2_path: Path) -> None:
    with started_ray() as environment:
        with running_server("smollm2", "--port", "0", "--front", "proxy", environment=environment) as server:
            assert "Paris" in ask(server.url)
            refused = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": FRANCE, "n": True})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
            check_cluster_view(httpx.get(f"{server.url}/api/cluster", timeout=30).json())
            assert server.stop(signal.SIGTERM) == 0
            assert server.rest_of_stdout() == ""
        left = subprocess.run(
            [sys.executable, "-c", IS_EMPTY], env=environment, capture_output=True, text=True, check=True
        )
        assert left.stdout == "[] set()\n"
