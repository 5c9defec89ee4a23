"""An opened engine: the compiled model, its cache tensors, one request."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import Shape

from paddock.engines.openvino.lowering import MAX_CONTEXT, lower
from paddock.engines.openvino.weights import Weights
from paddock.engines.protocol import BuildError, StepInputs, WeightSource
from paddock.graph import Array, DType, Graph
from paddock.graph.ops import CacheBlocks, Dequantize, Input

BLOCK_SIZE = 32  # fixed by the CPU plugin's paged attention


class OpenVINOSession:
    """Implements `paddock.engines.protocol.Session`."""

    block_size = BLOCK_SIZE

    def __init__(self, graph: Graph, weights: WeightSource, options: Mapping[str, Any]) -> None:
        self.vocab_size = graph.outputs[0].type.size(-1)
        self._weights = Weights(weights)
        model = lower(graph, self._weights)
        settings = _settings(graph, options)
        try:
            self._compiled = ov.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BuildError(f"OpenVINO cannot compile the graph: {error}") from error
        self._request = self._compiled.create_infer_request()
        self._inputs = [n.op.key for n in graph.find(Input) if isinstance(n.op, Input)]
        self._cache_ports = [
            self._compiled.input(n.op.key)
            for n in graph.find(CacheBlocks)
            if isinstance(n.op, CacheBlocks)
        ]
        self.block_bytes = sum(
            prod(_block_shape(port)) * port.get_element_type().size for port in self._cache_ports
        )
        self._caches: list[Any] = []

    def allocate_cache(self, blocks: int) -> None:
        self._caches = []
        for port in self._cache_ports:
            tensor = ov.Tensor(port.get_element_type(), Shape([blocks, *_block_shape(port)]))
            self._request.set_tensor(port, tensor)
            self._caches.append(tensor)

    def run(self, step: StepInputs) -> Array:
        longest = int((step.past_lengths + np.diff(step.sequence_starts)).max())
        for key in self._inputs:
            self._request.set_tensor(key, ov.Tensor(getattr(step, key), shared_memory=True))
        self._request.set_tensor(MAX_CONTEXT, ov.Tensor(np.array(longest, np.int32)))
        self._request.infer()
        logits: Array = self._request.get_output_tensor(0).data
        return logits

    def close(self) -> None:
        del self._request, self._compiled, self._caches, self._cache_ports
        self._weights.kept.clear()


def _settings(graph: Graph, options: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of the CPU plugin. bf16 is computed in bf16; f32 and integers in f32."""
    quantized = next(graph.find(Dequantize), None) is not None
    precision = "bf16" if graph.dtype is DType.BF16 and not quantized else "f32"
    cache = options.get("cache_dtype") or "auto"
    if cache == "auto":
        cache = "u8" if quantized else precision
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": cache,
    }
    if cache == "u8":
        # By channel, a block's scales change as it grows, and the text with how it was chunked.
        settings["KEY_CACHE_QUANT_MODE"] = "BY_TOKEN"
    if options.get("threads"):
        settings["INFERENCE_NUM_THREADS"] = int(options["threads"])
    return settings


def _block_shape(port: Any) -> list[int]:
    return [d.get_length() for d in list(port.partial_shape)[1:]]
