"""A load generator for any OpenAI-compatible server: streams answers, notes when each part arrives.

The server counts the tokens (`stream_options.include_usage`): a part of a stream may hold none, one or several.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.metrics import Record
from tinycluster.serve.bench.workload import BenchRequest
from tinycluster.serve.options import authorization

Clock = Callable[[], float]
Send = Callable[[BenchRequest], Awaitable[Record]]

# More requests than sockets wait in the client, and their wait counts as TTFT: they were due.
MAX_SOCKETS = 512
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Target:
    """Where requests go and what each of them carries beside its prompt."""

    endpoint: str
    model: str
    ignore_eos: bool = False
    temperature: float = 0.0

    @property
    def is_chat(self) -> bool:
        return self.endpoint.rstrip("/").endswith("/chat/completions")

    def body(self, request: BenchRequest) -> dict[str, Any]:
        """The JSON of one streaming request; a chat takes text only."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.output_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if not self.is_chat:
            return body | {"prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt)}
        if not isinstance(request.prompt, str):
            raise ConfigError("prompts of token ids need --endpoint /v1/completions; a chat takes text")
        return body | {"messages": [{"role": "user", "content": request.prompt}]}


class EventReader:
    """Server-sent events from bytes cut anywhere: push bytes, get the payloads of complete `data:` lines."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, received: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


class Answer:
    """What one stream has said so far."""

    def __init__(self) -> None:
        self.chunk_times_s: list[float] = []
        self.end_s: float | None = None
        self.is_finished = False
        self.usage: Mapping[str, Any] | None = None
        self.error: str | None = None

    def take(self, payload: bytes, now_s: float) -> None:
        if payload == b"[DONE]":
            return
        part = json.loads(payload)
        if error := part.get("error"):
            self.error = str(error.get("message", error)) if isinstance(error, dict) else str(error)
            return
        self.usage = part.get("usage") or self.usage
        for choice in part.get("choices") or ():
            self._take_choice(choice, now_s)

    def _take_choice(self, choice: Mapping[str, Any], now_s: float) -> None:
        delta = choice.get("delta") or {}
        finish_reason = choice.get("finish_reason")
        has_text = bool(choice.get("text") or any(value for key, value in delta.items() if key != "role"))
        # A part without text is still a token (half a character, a special token) unless it only opens or ends.
        if has_text or (not finish_reason and "role" not in delta) or (finish_reason and not self.chunk_times_s):
            self.chunk_times_s.append(now_s)
        self.is_finished = self.is_finished or finish_reason is not None
        self.end_s = now_s

    def record(self, start_s: float, now_s: float) -> Record:
        error = self.error or self._what_is_missing()
        if error is not None or self.usage is None or self.end_s is None:
            return Record(start_s, now_s, error=error)
        return Record(
            start_s,
            self.end_s,
            tuple(self.chunk_times_s),
            prompt_tokens=int(self.usage["prompt_tokens"]),
            output_tokens=int(self.usage["completion_tokens"]),
        )

    def _what_is_missing(self) -> str | None:
        if not self.is_finished:
            return "the stream ended without a finish_reason"
        if self.usage is None:
            return "the server sent no usage although stream_options.include_usage asked for it"
        return None


class Client:
    """Streams single requests to the target and turns whatever happens into a Record, never an exception."""

    def __init__(self, http: httpx.AsyncClient, target: Target, clock: Clock) -> None:
        self._http, self._target, self._clock = http, target, clock

    async def send(self, request: BenchRequest) -> Record:
        body = self._target.body(request)
        start_s = self._clock()
        try:
            answer = await self._stream(body)
        except (httpx.HTTPError, ValueError) as error:
            return Record(start_s, self._clock(), error=_reason(error))
        return answer.record(start_s, self._clock())

    async def _stream(self, body: Mapping[str, Any]) -> Answer:
        answer, events = Answer(), EventReader()
        async with self._http.stream("POST", self._target.endpoint, json=body) as response:
            if response.status_code != httpx.codes.OK:
                answer.error = _refusal(response.status_code, await response.aread())
                return answer
            async for received in response.aiter_bytes():
                now_s = self._clock()
                for payload in events.push(received):
                    answer.take(payload, now_s)
        return answer


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _refusal(status: int, content: bytes) -> str:
    message = content[:200].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        message = json.loads(content)["error"]["message"]
    return f"HTTP {status}: {message}"


def open_http(
    base_url: str, *, max_concurrency: int | None, timeout_s: float, key: str | None = None
) -> httpx.AsyncClient:
    """A connection pool of at most MAX_SOCKETS; a request that waits for a socket waits as long as it must."""
    num_sockets = min(max_concurrency or MAX_SOCKETS, MAX_SOCKETS)
    return httpx.AsyncClient(
        base_url=base_url,
        headers=authorization(key),
        limits=httpx.Limits(max_connections=num_sockets, max_keepalive_connections=num_sockets),
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
        trust_env=False,
    )


async def served_models(http: httpx.AsyncClient) -> tuple[Mapping[str, Any], ...]:
    """The entries of `/v1/models`; ConfigError where no server answers, nothing where it has no such route."""
    try:
        response = await http.get("/v1/models")
        if response.status_code == 401:
            raise ConfigError(f"{http.base_url} wants a key that it knows: --api-key-file FILE")
        return tuple(response.json()["data"]) if response.is_success else ()
    except httpx.TransportError as error:
        raise ConfigError(f"no server answers at {http.base_url}: {_reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{http.base_url} does not speak the OpenAI API: /v1/models holds no list") from error


async def run_load(
    send: Send,
    requests: Sequence[BenchRequest],
    arrivals_s: Iterable[float],
    *,
    max_concurrency: int | None,
    clock: Clock,
    on_done: Callable[[int], None] = lambda steps: None,
) -> tuple[tuple[Record, ...], float]:
    """Send every request at its arrival time, at most `max_concurrency` at once; their records and the seconds taken.

    With a limit the load is closed: a request that is due waits outside the server until another one ends.
    """
    gate = asyncio.Semaphore(max_concurrency or max(1, len(requests)))

    async def send_one(request: BenchRequest) -> Record:
        async with gate:
            record = await send(request)
        on_done(1)
        return record

    started_s = clock()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for request, arrival_s in zip(requests, arrivals_s, strict=True):
            await asyncio.sleep(max(0.0, started_s + arrival_s - clock()))
            tasks.append(group.create_task(send_one(request)))
    return tuple(task.result() for task in tasks), clock() - started_s
