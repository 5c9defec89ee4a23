"""The CPU plugin's properties for a graph: precision of arithmetic, of the cache, threads."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

from paddock.engines.openvino.paged_attention import takes
from paddock.engines.processor import multiplies_bf16_in_vectors
from paddock.engines.protocol import BuildError, Rounding
from paddock.graph import DType, Graph
from paddock.graph.ops import Attention, CrossAttention, Dequantize, StateSlots

# By the precision of arithmetic: what the plugin's paged attention takes; what it was found to
# compute wrongly or to refuse is left out.
CACHE_DTYPES = {"f32": ("f32", "f16", "u8"), "bf16": ("bf16", "u8")}

LARGEST_GROUP = 128
"""Inputs that share a scale, at most, when activations are rounded to 8 bits."""


def settings(graph: Graph, options: Mapping[str, Any]) -> dict[str, Any]:
    """Properties to compile with. `options`: `cache_dtype` ("auto" or a type), `threads`."""
    group = _activation_group(graph)
    # The kernels of recurrent layers keep states as activations are: in bf16, what is added up over
    # a sequence would be rounded at each step.
    keeps_state = next(graph.find(StateSlots), None) is not None
    cache = options.get("cache_dtype") or "auto"
    precision = "f32"
    if graph.dtype is DType.BF16 and not keeps_state:
        # Integer products come out the same either way; what lies between them is faster in bf16.
        mixed = _four_bits(graph) and multiplies_bf16_in_vectors()
        if not group or (mixed and cache in ("auto", *CACHE_DTYPES["bf16"])):
            precision = "bf16"
    if cache == "auto":
        cache = "f16" if group and precision == "f32" else precision
    if cache not in CACHE_DTYPES[precision]:
        raise BuildError(
            f"engine.cache_dtype={cache}: beside arithmetic in {precision} OpenVINO's paged"
            f" attention keeps {', '.join(CACHE_DTYPES[precision])}"
        )
    reads_source = next(graph.find(CrossAttention), None) is not None
    if cache == "u8" and (reads_source or any(not takes(n.op) for n in graph.find(Attention))):
        others = ", ".join(c for c in CACHE_DTYPES[precision] if c != "u8")
        raise BuildError(
            f"engine.cache_dtype=u8: this model's attention has a soft cap, biases or a source,"
            f" which OpenVINO's own kernel lacks, and Paddock's form of it keeps {others}"
        )
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": cache,
        # Two processes would otherwise share the first cores and leave the others idle.
        "ENABLE_CPU_PINNING": False,
    }
    if cache == "u8":
        # By channel, a block's scales change as it grows, and the text with how it was chunked.
        properties["KEY_CACHE_QUANT_MODE"] = "BY_TOKEN"
    if group:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    if options.get("threads"):
        properties["INFERENCE_NUM_THREADS"] = int(options["threads"])
    return properties


def rounding(graph: Graph, options: Mapping[str, Any]) -> Rounding:
    """What these properties make the plugin round."""
    properties = settings(graph, options)
    precision, cache = (
        DType(properties[key]) for key in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
    )
    group = properties.get("DYNAMIC_QUANTIZATION_GROUP_SIZE")
    return Rounding(precision, group, None if cache is precision else cache)


def _four_bits(graph: Graph) -> bool:
    return any(node.inputs[0].dtype is DType.I4 for node in graph.find(Dequantize))


def _activation_group(graph: Graph) -> int:
    """Activations meet quantized weights in 8 bits, for which there are integer kernels: how many
    share a scale. 0 where no weights are quantized.

    As many as weights do is fastest; where they are more, or more than there are inputs, kernels
    fall back to others which take twice the time.
    """
    group, quantized = LARGEST_GROUP, False
    for node in graph.find(Dequantize):
        columns, groups = node.inputs[0].type.size(-1), node.inputs[1].type.size(-1)
        width = columns // groups if groups > 1 else 1 << (columns.bit_length() - 1)
        group, quantized = gcd(group, width), True
    return group if quantized else 0
