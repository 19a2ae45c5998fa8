"""Requests as OpenTelemetry traces, sent by OTLP over HTTP in the background. Needs the extra `otel`.

POST /v1/chat/completions    from arrival until everything that was asked for has ended
├ tokenize                   from the body's end until the prompt is token ids
├ queue                      until its first step
├ prefill                    until the first token
└ decode                     until the last token

A request's spans are made when it has ended, from the times that it left behind: until then it costs nothing more.
Names of attributes are those of the semantic conventions for HTTP servers and generative AI where they exist.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

import tinycluster
from tinycluster.cluster.web_address import origin_of
from tinycluster.serve.exchange import Exchange

log = logging.getLogger(__name__)

EXPORT_TIMEOUT_S = 2.0
EXPORT_PERIOD_S = 1.0
CLOSE_WITHIN_S = 3.0
OPERATIONS = {"/v1/completions": "text_completion"}
"""gen_ai.operation.name of a route; all others are chats."""


class RequestTraces:
    """Told of the end of every exchange."""

    def __init__(self, exporter: SpanExporter, *, period_s: float = EXPORT_PERIOD_S) -> None:
        resource = Resource.create({"service.name": "tinycluster", "service.version": tinycluster.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=period_s * 1e3))
        self._tracer = self._provider.get_tracer("tinycluster", tinycluster.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.method in ("GET", "HEAD") and exchange.status < 400:
            return
        root = self._tracer.start_span(
            f"{exchange.method} {exchange.route or ''}".rstrip(),
            self._propagator.extract(_carrier(exchange)),
            SpanKind.SERVER,
            attributes=_attributes(exchange),
            start_time=exchange.started_at_ns,
        )
        if exchange.status >= 500:
            root.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(root)
        for name, start_s, end_s in _stages(exchange):
            self._child(exchange, name, inside, start_s, end_s)
        root.end(_at_ns(exchange, exchange.ended_s))

    def close(self) -> None:
        """Send what waits, in bounded time."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN_S)

    def _child(self, exchange: Exchange, name: str, inside: Context, start_s: float, end_s: float) -> None:
        span: Span = self._tracer.start_span(name, inside, start_time=_at_ns(exchange, start_s))
        span.end(_at_ns(exchange, end_s))


def _stages(exchange: Exchange) -> Iterator[tuple[str, float, float]]:
    """Those that the request went through, one after the other."""
    marks = (
        ("tokenize", exchange.read_s, exchange.tokenized_s),
        ("queue", exchange.tokenized_s, exchange.scheduled_s),
        ("prefill", exchange.scheduled_s or exchange.tokenized_s, exchange.first_token_s),
        ("decode", exchange.first_token_s, exchange.last_token_s),
    )
    for name, start_s, end_s in marks:
        if start_s is not None and end_s is not None:
            yield name, start_s, max(start_s, end_s)


def _attributes(exchange: Exchange) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "tinycluster.request.id": exchange.id,
    }
    if exchange.route is not None:
        attributes["http.route"] = exchange.route
    if exchange.key_name:
        attributes["tinycluster.key.name"] = exchange.key_name
    if not exchange.num_answers or exchange.model is None:
        return attributes
    if exchange.first_token_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = exchange.first_token_s - exchange.started_s
    return attributes | {
        "gen_ai.provider.name": "tinycluster",
        "gen_ai.operation.name": OPERATIONS.get(exchange.route or "", "chat"),
        "gen_ai.request.model": exchange.model,
        "gen_ai.response.model": exchange.model,
        "gen_ai.usage.input_tokens": exchange.num_prompt_tokens,
        "gen_ai.usage.output_tokens": exchange.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": exchange.num_cached_tokens,
        "gen_ai.response.finish_reasons": sorted(exchange.finish_reasons),
    }


def _carrier(exchange: Exchange) -> dict[str, str]:
    wanted = (b"traceparent", b"tracestate")
    return {name.decode(): value.decode("latin-1") for name, value in exchange.headers if name in wanted}


def _at_ns(exchange: Exchange, time_s: float) -> int:
    """On the wall clock, which may be set while a request runs: only its start is read from it."""
    return exchange.started_at_ns + int((time_s - exchange.started_s) * 1e9)


class OnceLogged(SpanExporter):
    """Says once that the collector cannot be reached, and once that it can again. Spans in between are lost."""

    def __init__(self, exporter: SpanExporter, origin: str) -> None:
        self._exporter, self._origin = exporter, origin
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            log.warning("traces cannot be sent to %s; they are dropped until they can", self._origin)
        elif self._is_failing and not is_failing:
            log.warning("traces are sent to %s again", self._origin)
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


@contextmanager
def traced_to(endpoint: str) -> Iterator[RequestTraces]:
    """`endpoint` is a collector's base URL, as of OTEL_EXPORTER_OTLP_ENDPOINT, or the whole one."""
    url = endpoint.rstrip("/")
    url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
    # The exporter itself complains about every attempt.
    theirs = logging.getLogger("opentelemetry")
    before = theirs.level
    theirs.setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S)
    traces = RequestTraces(OnceLogged(exporter, origin_of(url)))
    try:
        yield traces
    finally:
        traces.close()
        theirs.setLevel(before)
