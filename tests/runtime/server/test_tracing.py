"""Traces as a real OTLP collector gets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.server.serving import Serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/v1/traces", got
        listening.shutdown()
        thread.join()


def test_requests_are_spans_of_the_callers_trace(
    environment: dict[str, str], server_home: Path, collector: tuple[str, list[bytes]]
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
    )

    endpoint, got = collector
    with Serving(environment, server_home, "demo", f"server.otlp_endpoint={endpoint}") as server:
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": "a private question"}],
            "max_tokens": 4,
        }
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        status, answered, _ = server.ask("/v1/chat/completions", body, headers)
        assert status == 200
        assert server.ask("/v1/completions", {"model": "other", "prompt": "A"})[0] == 404
        assert server.ask("/v1/models")[0] == 200
    spans = [
        span
        for data in got
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"chat demo", "text_completion demo"}
    chat = by_name["chat demo"]
    assert chat.trace_id.hex() == TRACE
    assert chat.parent_span_id.hex() == PARENT
    found = {a.key: a.value.string_value or a.value.int_value for a in chat.attributes}
    assert found["http.response.status_code"] == 200
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["paddock.request_id"] == answered["x-request-id"]
    assert [event.name for event in chat.events] == ["first byte"]
    assert not any(b"private question" in data for data in got)
