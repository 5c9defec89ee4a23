"""`/metrics` for Prometheus, under vLLM's names where they mean the same.

So dashboards made for vLLM show Paddock, and a Kubernetes inference gateway finds what it asks for:
the queue's length (`vllm:num_requests_waiting`), running requests, the use of the cache
(`vllm:kv_cache_usage_perc`) and its size (`vllm:cache_config_info`). What vLLM has no name for
begins with `paddock:`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paddock.runtime.encoders.encoder import Encoder
from paddock.runtime.loop import Loop
from paddock.runtime.scheduling.request import FinishReason, Request
from paddock.runtime.stats import StepReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1, 2.5)
_REQUEST_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}


class Metrics:
    """Counts what the loop tells; a `Listener` of it, called in its thread."""

    def __init__(self, loop: Loop, model: str, block_size: int) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(loop, model, block_size))
        self._label = model

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, what, ["model_name"], buckets=buckets, registry=self._registry)
            return made.labels(model)

        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN_S
        )
        self._between = histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of a sequence.", _BETWEEN_S
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the end.", _REQUEST_S
        )
        self._queued = histogram(
            "vllm:request_queue_time_seconds", "From arrival to the first step.", _REQUEST_S
        )
        self._prompt = histogram("vllm:request_prompt_tokens", "Of one request.", _TOKENS)
        self._generated = histogram(
            "vllm:request_generation_tokens", "Of one request, all its continuations.", _TOKENS
        )
        self._per_step = histogram("vllm:iteration_tokens_total", "Tokens of one step.", _TOKENS)
        self._step = histogram("paddock:step_seconds", "One step of the engine loop.", _BETWEEN_S)
        self._success = Counter(
            "vllm:request_success",
            "Finished requests, by why they finished.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        for reason in sorted(set(_REASONS.values())):
            self._success.labels(model, reason)

    def on_step(self, report: StepReport) -> None:
        self._per_step.observe(report.tokens)
        self._step.observe(report.run_s + report.overhead_s)

    def on_finish(self, request: Request) -> None:
        self._whole.observe(request.finished_at - request.arrival)
        if request.first_scheduled is not None:
            self._queued.observe(request.first_scheduled - request.arrival)
        self._prompt.observe(request.prompt_length)
        self._generated.observe(sum(sequence.generated for sequence in request.sequences))
        firsts = [one.token_times[0] for one in request.sequences if one.token_times]
        if firsts:
            self._first_token.observe(min(firsts) - request.arrival)
        for sequence in request.sequences:
            for earlier, later in pairwise(sequence.token_times):
                self._between.observe(later - earlier)
        reason = request.finish_reason
        self._success.labels(self._label, _REASONS[reason] if reason else "abort").inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class EncoderMetrics:
    """Of an encoder's loop; the same names where they mean the same."""

    def __init__(self, encoder: Encoder, model: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EncoderNow(encoder, model))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EncoderNow(Collector):
    def __init__(self, encoder: Encoder, model: str) -> None:
        self._encoder = encoder
        self._model = model

    def collect(self) -> Iterator[Metric]:
        now = self._encoder.stats()
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting", "Sequences in the queue.", labels=["model_name"]
        )
        waiting.add_metric([self._model], now.waiting)
        yield waiting
        for name, what, value in (
            ("vllm:prompt_tokens", "Tokens encoded.", now.tokens),
            ("paddock:sequences", "Sequences encoded.", now.sequences),
            ("paddock:steps", "Steps of the encoder's loop.", now.steps),
            ("paddock:failed_steps", "Steps that ended in an error.", now.failed_steps),
        ):
            total = CounterMetricFamily(name, what, labels=["model_name"])
            total.add_metric([self._model], value)
            yield total


class _Now(Collector):
    """What is read from the loop when it is asked for."""

    def __init__(self, loop: Loop, model: str, block_size: int) -> None:
        self._loop = loop
        self._model = model
        self._block_size = block_size

    def collect(self) -> Iterator[Metric]:
        now = self._loop.stats()
        for name, what, value in (
            ("vllm:num_requests_running", "Sequences in the batch.", now.running),
            ("vllm:num_requests_waiting", "Sequences in the queue.", now.waiting),
            ("vllm:kv_cache_usage_perc", "Fraction of the cache that is held.", now.cache_use),
            ("vllm:gpu_cache_usage_perc", "The same under its older name.", now.cache_use),
            ("paddock:queued_prompt_tokens", "Prompt tokens in the queue.", now.queued_tokens),
            ("paddock:generation_tokens_per_second", "Over the last seconds.", now.tokens_per_s),
            ("paddock:engine_stalled_seconds", "Since the last step.", self._loop.stalled_s),
        ):
            yield self._gauge(name, what, value)
        for name, what, value in (
            ("vllm:prompt_tokens", "Prompt tokens admitted.", now.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", now.generated_tokens),
            ("vllm:num_preemptions", "Sequences that gave their blocks up.", now.preemptions),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", now.prompt_tokens),
            ("vllm:prefix_cache_hits", "Of these, found.", now.prompt_tokens_hit),
            ("paddock:steps", "Steps of the engine loop.", now.steps),
            ("paddock:failed_steps", "Steps that ended in an error.", now.failed_steps),
        ):
            total = CounterMetricFamily(name, what, labels=["model_name"])
            total.add_metric([self._model], value)
            yield total
        cache = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The cache's size, as labels.",
            labels=["model_name", "block_size", "num_gpu_blocks"],
        )
        cache.add_metric([self._model, str(self._block_size), str(now.blocks)], 1)
        yield cache

    def _gauge(self, name: str, what: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, what, labels=["model_name"])
        gauge.add_metric([self._model], value)
        return gauge
