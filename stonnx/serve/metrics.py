"""Counters of a server, for Prometheus. Labels have values from known sets only, so that series do not grow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stonnx._batcher.workers import RunReport
from stonnx.serve.context import Call

if TYPE_CHECKING:
    from stonnx.serve.models import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_TOKENS = (8, 16, 32, 64, 128, 256, 320, 512, 1024, 2048, 4096, 8192)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# The label of unknown routes and models: with labels of their own, clients could create series.
OTHER = "other"

# The names of routes in the metrics of text-embeddings-inference.
_TEI_METHODS = {
    "/embed": "single",
    "/embed_all": "single",
    "/embed_sparse": "single",
    "/v1/embeddings": "batch",
    "/embeddings": "batch",
    "/rerank": "batch",
    "/predict": "batch",
    "/similarity": "batch",
}


class Metrics:
    """All metrics of a server.

    Args:
        tei: Whether to add the metrics of text-embeddings-inference, under its names.
    """

    def __init__(self, *, tei: bool = False) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "stonnx_requests", "Requests, by route, model and status.", ("route", "model", "code"), registry=registry
        )
        self.seconds = Histogram(
            "stonnx_request_seconds", "From a request to its response.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.tokenize = Histogram(
            "stonnx_tokenize_seconds", "Until the texts were tokenized.", buckets=_SECONDS, registry=registry
        )
        self.queue = Histogram(
            "stonnx_queue_seconds", "From then until the first text ran.", buckets=_SECONDS, registry=registry
        )
        self.run = Histogram("stonnx_run_seconds", "A run of a graph.", buckets=_SECONDS, registry=registry)
        self.run_tokens = Histogram("stonnx_run_tokens", "Tokens of a run.", buckets=_TOKENS, registry=registry)
        self.run_texts = Histogram("stonnx_run_texts", "Texts of a run.", buckets=_TEXTS, registry=registry)
        self.tokens = Counter("stonnx_tokens", "Tokens that ran.", registry=registry)
        self.padded_tokens = Counter("stonnx_padded_tokens", "The same with padding.", registry=registry)
        self.texts = Counter("stonnx_texts", "Texts of requests.", ("model",), registry=registry)
        self.truncated = Counter("stonnx_texts_truncated", "Texts that lost their end.", registry=registry)
        self.failed = Counter("stonnx_texts_failed", "Texts whose run failed.", registry=registry)
        self.rejected = Counter("stonnx_rejected", "Requests that were not answered.", ("reason",), registry=registry)
        self.disconnected = Counter(
            "stonnx_disconnected", "Requests whose client left before the response.", registry=registry
        )
        self.in_progress = Gauge("stonnx_requests_in_progress", "Requests in progress.", registry=registry)
        self.reloads = Counter("stonnx_reloads", "Models that were replaced.", registry=registry)
        self.probes = Counter("stonnx_probes", "Probes of bundles.", ("result",), registry=registry)
        for result in ("passed", "failed"):
            self.probes.labels(result)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._tei = _TeiMetrics(registry) if tei else None

    def watch(self, models: Models) -> None:
        """Read the load of these models' queues, and the facts about the models."""
        self.registry.register(_QueueCollector(models, tei=self._tei is not None))

    def report(self, run: RunReport) -> None:
        """Count a run. The thread that ran it calls this."""
        self.run.observe(run.seconds)
        self.run_tokens.observe(run.tokens)
        self.run_texts.observe(run.texts)
        self.tokens.inc(run.tokens)
        self.padded_tokens.inc(run.padded_tokens)
        if run.failed_texts:
            self.failed.inc(run.failed_texts)
        if self._tei is not None:
            self._tei.report(run)

    def request(self, route: str, call: Call | None, code: int, started: float) -> None:
        """Count a request that is over."""
        model = OTHER if call is None or call.served is None else call.served.name
        seconds = time.perf_counter() - started
        self.requests.labels(route, model, str(code)).inc()
        self.seconds.labels(route).observe(seconds)
        if call is not None and call.answers:
            self.texts.labels(model).inc(call.texts)
            self.truncated.inc(len(call.truncated))
            self.tokenize.observe(call.tokenize_seconds)
            self.queue.observe(call.queue_seconds)
        if self._tei is not None and route in _TEI_METHODS:
            self._tei.request(_TEI_METHODS[route], call, code, seconds)

    def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        text: bytes = generate_latest(self.registry)
        return text


class _QueueCollector(Collector):
    """The load of the queues at the moment of reading."""

    def __init__(self, models: Models, *, tei: bool) -> None:
        self._models, self._tei = models, tei

    def collect(self) -> Iterator[Metric]:
        """The queues of all devices."""
        loads = {device: scheduler.load() for device, scheduler in self._models.schedulers.items()}
        tokens = GaugeMetricFamily("stonnx_queued_tokens", "Tokens that wait.", labels=("device", "lane"))
        texts = GaugeMetricFamily("stonnx_queued_texts", "Texts that wait.", labels=("device",))
        running = GaugeMetricFamily("stonnx_running_tokens", "Tokens of the runs in progress.", labels=("device",))
        speed = GaugeMetricFamily(
            "stonnx_tokens_per_second", "Tokens a second that a full queue computes, measured.", labels=("device",)
        )
        cancelled = GaugeMetricFamily(
            "stonnx_texts_cancelled_total", "Texts that were dropped before they ran.", labels=("device",)
        )
        for device, load in loads.items():
            tokens.add_metric((device, "interactive"), load.queued_tokens)
            tokens.add_metric((device, "bulk"), load.queued_bulk_tokens)
            texts.add_metric((device,), load.queued_texts)
            running.add_metric((device,), load.running_tokens)
            speed.add_metric((device,), load.tokens_per_second or 0.0)
            cancelled.add_metric((device,), load.cancelled_texts)
        info = GaugeMetricFamily(
            "stonnx_model_info", "The models.", labels=("model", "task", "precision", "device", "source")
        )
        for served in self._models:
            running_info = served.model.info
            labels = (served.name, served.task, running_info.precision, running_info.device, running_info.source)
            info.add_metric(labels, 1.0)
        yield from (tokens, texts, running, speed, cancelled, info)
        if self._tei:
            total = sum(load.queued_texts for load in loads.values())
            yield GaugeMetricFamily("te_queue_size", "Texts that wait.", value=total)


class _TeiMetrics:
    """The names of text-embeddings-inference 1.9, for its dashboards."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, "As in text-embeddings-inference.", buckets=buckets, registry=registry)

        self._requests = Counter("te_request_count", "Requests.", ("method",), registry=registry)
        self._success = Counter("te_request_success", "Answered.", ("method",), registry=registry)
        self._failure = Counter("te_request_failure", "Not answered.", ("err",), registry=registry)
        self._duration = histogram("te_request_duration", _SECONDS)
        self._tokenization = histogram("te_request_tokenization_duration", _SECONDS)
        self._queue = histogram("te_request_queue_duration", _SECONDS)
        self._inference = histogram("te_request_inference_duration", _SECONDS)
        self._length = histogram("te_request_input_length", tuple(map(float, _TOKENS)))
        self._batch_texts = histogram("te_batch_next_size", tuple(map(float, _TEXTS)))
        self._batch_tokens = histogram("te_batch_next_tokens", tuple(map(float, _TOKENS)))

    def report(self, run: RunReport) -> None:
        self._batch_texts.observe(run.texts)
        self._batch_tokens.observe(run.tokens)

    def request(self, method: str, call: Call | None, code: int, seconds: float) -> None:
        self._requests.labels(method).inc()
        if code >= 400:
            kinds = {413: "validation", 422: "validation", 400: "validation", 429: "overloaded", 424: "inference"}
            self._failure.labels(kinds.get(code, "unhealthy")).inc()
            return
        self._success.labels(method).inc()
        self._duration.observe(seconds)
        if call is not None and call.answers:
            self._tokenization.observe(call.tokenize_seconds)
            self._queue.observe(call.queue_seconds)
            self._inference.observe(call.run_seconds)
            for answer in call.answers:
                for tokens in answer.tokens:
                    self._length.observe(tokens)
