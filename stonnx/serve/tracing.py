"""W3C trace context: the caller's trace id in the log, and spans to OTLP/HTTP with the extra ``trace``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import stonnx
from stonnx._errors import MissingDependencyError
from stonnx.serve.context import Call

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_NANOSECONDS = 1_000_000_000


def trace_id_of(headers: Mapping[str, str]) -> str | None:
    """The trace that a request belongs to."""
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return found.group(1) if found and found.group(1) != "0" * 32 else None


class Tracing:
    """Spans of requests; without an endpoint, nothing but the caller's trace id.

    Args:
        endpoint: The receiver of spans, as ``http://localhost:4318/v1/traces``. None: spans are not sent.

    Raises:
        MissingDependencyError: The extra ``trace`` is not installed.
    """

    def __init__(self, endpoint: str | None = None, *, exporter: Any = None) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        if endpoint is None and exporter is None:
            return
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(endpoint=endpoint)
        except ImportError as error:
            raise MissingDependencyError(
                f'otlp_endpoint needs {error.name or error}, which is not installed: pip install "stonnx[trace]"'
            ) from error
        resource = Resource.create({"service.name": "stonnx", "service.version": stonnx.__version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("stonnx.serve")

    def start(self, method: str, path: str, headers: Mapping[str, str]) -> Any:
        """The span of a request, a child of the caller's."""
        if self._tracer is None:
            return None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        span = self._tracer.start_span(f"{method} {path}", context=parent, kind=SpanKind.SERVER)
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.route", path)
        return span

    def end(self, span: Any, call: Call, code: int) -> None:
        """End the span of a request. The parts of the request become spans of their own."""
        if span is None:
            return
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span.set_attribute("http.response.status_code", code)
        if call.served is not None:
            span.set_attribute("stonnx.model", call.served.name)
        if call.answers:
            span.set_attribute("stonnx.texts", call.texts)
            span.set_attribute("stonnx.tokens", call.tokens)
            context = set_span_in_context(span)
            start = int(span.start_time)
            parts = (
                ("tokenize", call.tokenize_seconds),
                ("queue", call.queue_seconds),
                ("run", call.run_seconds),
            )
            for name, seconds in parts:
                end = start + int(seconds * _NANOSECONDS)
                self._tracer.start_span(name, context=context, start_time=start).end(end_time=end)
                start = end
        if code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def trace_id(self, span: Any, headers: Mapping[str, str]) -> str | None:
        """The trace id for the log."""
        return trace_id_of(headers) if span is None else format(span.get_span_context().trace_id, "032x")

    def close(self) -> None:
        """Send the remaining spans."""
        if self._provider is not None:
            self._provider.shutdown()
