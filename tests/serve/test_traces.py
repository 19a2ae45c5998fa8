"""Traces of requests, as a collector gets them over HTTP, with the protobuf read by its own library."""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.config import Settings
from tinycluster.engine.errors import ConfigError
from tinycluster.serve import traces as serve_traces
from tinycluster.serve.app import create_app
from tinycluster.serve.configure import configure
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.traces import RequestTraces, traced_to

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Collector:
    """`span()` is the next that came; `resource` describes who sent it."""

    def __init__(self, status: int = 200) -> None:
        self.spans: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.paths: list[str] = []
        self.resource: dict[str, str] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(self.path, body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for of_resource in request.resource_spans:
            self.resource = {kv.key: kv.value.string_value for kv in of_resource.resource.attributes}
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self.spans.put(span)

    def trace(self) -> dict[str, Any]:
        """The spans of the next request by name; its own span comes last."""
        found: dict[str, Any] = {}
        while not any(" /" in name for name in found):
            span = self.spans.get(timeout=20)
            found[span.name] = span
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def served(traces: RequestTraces, engine: FakeEngine) -> Iterator[httpx.Client]:
    registry = ModelRegistry()
    registry.add(engine)  # type: ignore[arg-type]
    app = create_app(registry)
    app.state.exchange_ends.append(traces)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(app, listener)
    server.start()
    with httpx.Client(base_url=url_of(listener), timeout=20) as client:
        yield client
    server.stop()
    registry.clear()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Spans that are not taken in time are sent again, and so come twice."""
    monkeypatch.setattr(serve_traces, "EXPORT_TIMEOUT_S", 60.0)
    with ExitStack() as stack:
        collector = Collector()
        stack.callback(collector.close)
        yield collector


def attributes(span: Any) -> dict[str, Any]:
    def value(kv: Any) -> Any:
        kind = kv.value.WhichOneof("value")
        if kind == "array_value":
            return [item.string_value for item in kv.value.array_value.values]
        return getattr(kv.value, kind)

    return {kv.key: value(kv) for kv in span.attributes}


class Scheduled(FakeEngine):
    """Its generations say when they were planned."""

    def submit_choices(self, *args: Any) -> Any:
        generations = super().submit_choices(*args)
        for generation in generations:
            generation.scheduled_s = time.monotonic()
        return generations


def test_a_request_is_a_trace_of_its_stages_in_the_callers_trace(collector: Collector) -> None:
    began_ns = time.time_ns()
    with traced_to(collector.url) as traces, served(traces, Scheduled()) as client:
        body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        headers = {"traceparent": PARENT, "tracestate": "vendor=1", "x-request-id": "mine"}
        client.post("/v1/chat/completions", json=body, headers=headers)
        spans = collector.trace()
    ended_ns = time.time_ns()
    assert collector.paths[0] == "/v1/traces"
    assert collector.resource["service.name"] == "tinycluster"
    root = spans.pop("POST /v1/chat/completions")
    assert root.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert root.trace_state == "vendor=1"
    told = attributes(root)
    assert told.pop("gen_ai.response.time_to_first_chunk") > 0
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "tinycluster.request.id": "mine",
        "gen_ai.provider.name": "tinycluster",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.response.finish_reasons": ["length"],
    }
    assert list(spans) == ["tokenize", "queue", "prefill", "decode"]
    times = [root.start_time_unix_nano]
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        times += [span.start_time_unix_nano, span.end_time_unix_nano]
    assert times == sorted(times)
    assert began_ns <= times[0]
    assert times[-1] <= root.end_time_unix_nano <= ended_ns


def test_a_refusal_is_a_trace_without_stages_and_a_fault_is_an_error(collector: Collector) -> None:
    with traced_to(collector.url) as traces, served(traces, FakeEngine()) as client:
        client.post("/v1/completions", json={"prompt": "x", "temperature": "secret words"})
        refused = collector.trace()
        client.post("/v1/completions", json={"prompt": "lost at once"})
        failed = collector.trace()
    root = refused.pop("POST /v1/completions")
    assert (refused, attributes(root)["http.response.status_code"], root.status.code) == ({}, 400, 0)
    assert "secret" not in str(root)
    root = failed["POST /v1/completions"]
    assert (attributes(root)["http.response.status_code"], root.status.code) == (503, 2)


def test_a_caller_that_does_not_sample_is_obeyed_and_reads_have_no_trace(collector: Collector) -> None:
    with traced_to(collector.url) as traces, served(traces, FakeEngine()) as client:
        client.post("/v1/completions", json={"prompt": "x"}, headers={"traceparent": UNSAMPLED})
        client.get("/v1/models")
        client.post("/v1/completions", json={"prompt": "x"}, headers={"traceparent": "garbage"})
        root = collector.trace()["POST /v1/completions"]
    assert root.parent_span_id == b""
    assert collector.spans.empty()


def test_an_unreachable_collector_costs_nothing_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began_s = time.monotonic()
        secret = f"http://me:PASSWORD@{url.removeprefix('http://')}/v1/traces?token=TOKEN"
        with traced_to(secret) as traces, served(traces, FakeEngine()) as client:
            for _ in range(5):
                assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
                traces._provider.force_flush(10_000)
        assert time.monotonic() - began_s < 60
    told = [record.getMessage() for record in caplog.records if record.name.startswith(("tinycluster", "opentel"))]
    assert told == [f"traces cannot be sent to {url}; they are dropped until they can"]


def test_without_the_extra_the_settings_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tinycluster.serve.traces", None)
    settings = Settings.model_validate(
        {
            "models": [{"name": "a", "source": "x"}],
            "cluster": {"address": "local"},
            "storage": {"url": "memory"},
            "telemetry": {"otlp_endpoint": "http://127.0.0.1:4318", "log_dir": str(tmp_path)},
        }
    )
    with pytest.raises(ConfigError, match=r"needs the extra otel: pip install 'tinycluster\[otel\]'"):
        configure(create_app(ModelRegistry()), settings)
