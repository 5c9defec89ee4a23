"""OpenTelemetry traces of requests, where `server.otlp_endpoint` is set (extra `otel`).

A span for each request, part of the caller's trace where a `traceparent` header says so, with the
attributes of OpenTelemetry's HTTP and generative-AI conventions. Prompts and answers are in none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddock.graph.errors import PaddockError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class TracingError(PaddockError):
    """Traces are asked for and cannot be made."""


def provider(endpoint: str, version: str) -> TracerProvider:
    """Sends spans to an OTLP/HTTP endpoint, from a thread of its own.

    Raises `TracingError` where OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingError(
            "server.otlp_endpoint is set, and OpenTelemetry is not installed: pip install"
            " 'paddock[otel]'"
        ) from None
    made = TracerProvider(
        resource=Resource.create({"service.name": "paddock", "service.version": version})
    )
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return made


class Traces:
    """Middleware: a span for each generating request."""

    def __init__(self, app: ASGIApp, *, provider: TracerProvider, model: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._model = model
        self._tracer = provider.get_tracer("paddock.server")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope.get("path", ""))
        if scope["type"] != "http" or operation is None:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        parent = self._propagator.extract(dict(Headers(scope=scope)))
        context = scope["paddock.context"]
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": scope["path"],
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": self._model,
            "paddock.request_id": context.request_id,
        }
        with self._tracer.start_as_current_span(
            f"{operation} {self._model}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
        ) as span:

            async def observe(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                elif message.get("body") and not context.first_byte_seen:
                    context.first_byte_seen = True
                    span.add_event("first byte")
                await send(message)

            await self._app(scope, receive, observe)
            if context.usage is not None:
                span.set_attribute("gen_ai.usage.input_tokens", context.usage.prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", context.usage.completion_tokens)
            if context.error is not None:
                span.set_attribute("error.type", context.error)
                span.set_status(Status(StatusCode.ERROR))
