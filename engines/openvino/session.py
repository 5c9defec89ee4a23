"""An opened engine: the compiled model, its cache tensors, one request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import Shape

from paddock.engines.openvino.huge_pages import HugePages, anonymous_memory, taken_since
from paddock.engines.openvino.lowering import (
    BLOCK_SIZE,
    MAX_CONTEXT,
    lower,
    new_rows,
    new_source_rows,
    portable_caches,
)
from paddock.engines.openvino.portable_attention import (
    CacheRows,
    padded,
    padded_source,
    written_rows,
    written_source_rows,
)
from paddock.engines.openvino.settings import settings
from paddock.engines.openvino.weights import Weights
from paddock.engines.processor import multiplies_bf16_in_vectors
from paddock.engines.protocol import BuildError, StepInputs, WeightSource
from paddock.graph import Array, Graph
from paddock.graph.ops import Attention, CacheBlocks, CrossAttention, Input, StateSlots

_STEP = frozenset(field.name for field in fields(StepInputs))

# A step of one token in the first block.
ONE_TOKEN = StepInputs(
    token_ids=np.zeros(1, np.int64),
    positions=np.zeros(1, np.int64),
    sequence_starts=np.array([0, 1], np.int32),
    past_lengths=np.zeros(1, np.int32),
    block_table=np.zeros(1, np.int32),
    block_starts=np.array([0, 1], np.int32),
    sequence_slots=np.zeros(1, np.int32),
    logit_rows=np.zeros(1, np.int64),
    token_types=np.zeros(1, np.int64),
    source_ids=np.zeros(1, np.int64),
    source_positions=np.zeros(1, np.int64),
    source_starts=np.array([0, 1], np.int32),
    source_lengths=np.ones(1, np.int32),
    source_table=np.zeros(1, np.int32),
    source_table_starts=np.array([0, 1], np.int32),
    image_positions=np.zeros(1, np.int64),
    image_starts=np.array([0, 1], np.int32),
    image_rows=np.zeros(1, np.int64),
    image_patch_rows=np.zeros(1, np.int64),
    image_patch_columns=np.zeros(1, np.int64),
    image_area_starts=np.array([0, 1], np.int32),
    time_positions=np.zeros(1, np.int64),
    row_positions=np.zeros(1, np.int64),
    column_positions=np.zeros(1, np.int64),
)


def one_token(graph: Graph) -> StepInputs:
    """The same with features of silence or a black patch, where the graph reads such."""
    empty = {
        node.op.key: np.zeros((1, node.outputs[0].type.size(1)), np.float32)
        for node in graph.find(Input)
        if isinstance(node.op, Input) and node.op.key in ("source_features", "image_patches")
    }
    return replace(ONE_TOKEN, **empty)


class OpenVINOSession:
    """Implements `paddock.engines.protocol.Session`."""

    block_size = BLOCK_SIZE

    def __init__(
        self,
        graph: Graph,
        weights: WeightSource,
        options: Mapping[str, Any],
        *,
        piece_of: Graph | None = None,
    ) -> None:
        """`piece_of`: the graph of a rank that this one is a piece of; it is not tried here, but
        with the others (see `rank_session.py`)."""
        self.vocab_size = graph.outputs[0].type.size(-1)
        self._settings = settings(piece_of or graph, options)
        self._outputs = len(graph.outputs)
        self._weights = Weights(weights)
        keys = [op.key for n in graph.find(Input) if isinstance(op := n.op, Input)]
        self._inputs = [key for key in keys if key in _STEP]
        self._states: list[Array] = []
        self._fed: dict[str, Array] = {}
        self._caches: list[Any] = []
        self._padding_row = 0
        self._written, self._written_sources = _written(graph)
        before = anonymous_memory()
        cache_dtype = self._settings["KV_CACHE_PRECISION"]
        # Elsewhere the kernels of bf16 are others.
        in_vectors = self._settings["INFERENCE_PRECISION_HINT"] == "bf16"
        zeros = in_vectors and multiplies_bf16_in_vectors()
        model = lower(graph, self._weights, cache_dtype, zeros=zeros)
        portable = {t.node for t in portable_caches(graph)}
        sources = [(n, op) for n in graph.find(CacheBlocks) if isinstance(op := n.op, CacheBlocks)]
        self._rows = [CacheRows(op, BLOCK_SIZE, cache_dtype) for n, op in sources if n in portable]
        # Weights are repacked by the compiler and by the first inference: after both, what opening
        # costs is paid, and the pages of the files have been given back.
        with self._weights.pages.releasing():
            try:
                self._compiled = ov.Core().compile_model(model, "CPU", self._settings)
            except RuntimeError as error:
                raise BuildError(f"OpenVINO cannot compile the graph: {error}") from error
            self._request = self._compiled.create_infer_request()
            self._cache_ports = [
                self._compiled.input(op.key) for n, op in sources if n not in portable
            ]
            self.block_bytes = sum(
                prod(_block_shape(p)) * p.get_element_type().bitwidth // 8
                for p in self._cache_ports
            ) + sum(rows.block_bytes for rows in self._rows)
            self._state_ports = [
                self._compiled.input(op.key)
                for n in graph.find(StateSlots)
                if isinstance(op := n.op, StateSlots)
            ]
            self.state_bytes = sum(
                prod(_block_shape(p)) * p.get_element_type().bitwidth // 8
                for p in self._state_ports
            )
            if piece_of is None:
                self.allocate_cache(1)
                self.run(one_token(graph))
        # A piece has not repacked anything yet.
        self._huge_pages = HugePages(taken_since(before) if piece_of is None else [])
        self._huge_pages.start()

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        # Memory that nobody writes is not taken from the system before a block is used.
        self._caches, self._states = [], []
        for port in self._cache_ports:
            tensor = ov.Tensor(port.get_element_type(), Shape([blocks, *_block_shape(port)]))
            self._request.set_tensor(port, tensor)
            self._caches.append(tensor)
        for cache in self._rows:
            tensor = cache.allocate(blocks)
            self._request.set_tensor(cache.key, tensor)
            self._caches.append(tensor)
        self._padding_row = blocks * BLOCK_SIZE
        for port in self._state_ports:
            # The step's ops update the rows in place, whatever type the compiler gave them.
            width = prod(_block_shape(port)) * port.get_element_type().bitwidth // 8
            rows = np.zeros((slots, width), np.uint8)
            shape = Shape([slots, *_block_shape(port)])
            tensor = ov.Tensor(rows.reshape(-1), shape, port.get_element_type())
            self._request.set_tensor(port, tensor)
            self._states.append(rows)
            self._caches.append(tensor)

    def run(self, step: StepInputs) -> Array:
        logits: Array = self.outputs(step, {})[0].data
        return logits

    def outputs(self, step: StepInputs, given: Mapping[str, Any]) -> list[Any]:
        """The graph's outputs as OpenVINO's tensors, valid until the next call.

        `given` holds arrays or such tensors, which must live as long.
        """
        for key, value in given.items():
            held = ov.Tensor(value, shared_memory=True) if isinstance(value, np.ndarray) else value
            self._request.set_tensor(key, held)
        for key in self._inputs:
            self._feed(key, getattr(step, key))
        if self._cache_ports:
            longest = (step.past_lengths + np.diff(step.sequence_starts)).max()
            self._feed(MAX_CONTEXT, np.asarray(longest, np.int32))
        if self._rows:
            for key, array in padded(step, BLOCK_SIZE, self._padding_row).items():
                self._feed(key, array)
        if self._written_sources:
            for key, array in padded_source(step, BLOCK_SIZE, self._padding_row).items():
                self._feed(key, array)
        fresh = step.sequence_slots[step.past_lengths == 0]
        for rows in self._states:
            rows[fresh] = 0
        self._request.infer()
        if self._rows:
            at = written_rows(step, BLOCK_SIZE)
            sources = written_source_rows(step, BLOCK_SIZE) if self._written_sources else at[:0]
            for cache in self._rows:
                if cache.key in self._written:
                    cache.write(at, self._request.get_tensor(new_rows(cache.key)).data)
                if len(sources) and cache.key in self._written_sources:
                    name = new_source_rows(cache.key)
                    cache.write(sources, self._request.get_tensor(name).data)
        return [self._request.get_output_tensor(i) for i in range(self._outputs)]

    def close(self) -> None:
        self._huge_pages.stop()
        self._request = self._compiled = None
        self._cache_ports, self._caches, self._rows = [], [], []
        self._fed.clear()
        self._states, self._state_ports = [], []
        self._weights.kept.clear()

    def runtime_report(self) -> dict[str, Any]:
        """What was chosen, for benchmarks and bug reports.

        `kernels` counts nodes by "layer type, kernel, precision of its weights or arithmetic";
        `cache` is the element type and the shape of a block of the first layer's caches.
        """
        kernels: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            layer, kernel, precision = (
                info[key].astype(str) if key in info else ""
                for key in ("layerType", "primitiveType", "runtimePrecision")
            )
            if layer not in ("Const", "Input", "Output"):
                kernels[f"{layer} {kernel} {precision}"] += 1
        return {
            "engine": f"openvino {ov.__version__}",
            "settings": dict(self._settings),
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "cache": [
                f"{p.get_element_type().to_string()}{_block_shape(p)}"
                for p in self._cache_ports[:2]
            ],
            "kernels": dict(kernels.most_common()),
        }

    def _feed(self, key: str, values: Array) -> None:
        """Into the tensor of the last step where the shape is the same, which is cheaper."""
        held = self._fed.get(key)
        if held is None or held.shape != values.shape or held.dtype != values.dtype:
            self._fed[key] = held = np.array(values, order="C")
            self._request.set_tensor(key, ov.Tensor(held, shared_memory=True))
        else:
            held[...] = values


def _written(graph: Graph) -> tuple[set[str], set[str]]:
    """The cache slots into which a step's tokens go, and those into which its sources do."""
    own: set[str] = set()
    sources: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, Attention | CrossAttention):
            place = sources if isinstance(node.op, CrossAttention) else own
            place.update(
                t.node.op.key for t in node.inputs[3:5] if isinstance(t.node.op, CacheBlocks)
            )
    return own, sources


def _block_shape(port: Any) -> list[int]:
    return [d.get_length() for d in list(port.partial_shape)[1:]]
