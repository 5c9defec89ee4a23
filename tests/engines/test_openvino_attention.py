"""Attention over OpenVINO's paged cache computes what its NumPy definition says."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import openvino as ov
import pytest

from paddock.engines.openvino.lowering import MAX_CONTEXT, lower
from paddock.engines.openvino.weights import Weights
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph.ops import Attention, CacheBlocks, attention, input_tensor
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS, SEQUENCES, STARTS, TABLE, TOKENS
from tests.engines.lowered import Held

BLOCK = 32
CACHE_BLOCKS = 24
# New tokens of each of three sequences, step by step: prompts, chunks, single tokens, mixed.
MIXED = ((40, 0, 5), (1, 33, 1), (1, 1, 7), (30, 1, 1), (0, 9, 40))


class Paged:
    """One attention with its caches."""

    def __init__(
        self,
        heads: int = 4,
        kv_heads: int = 2,
        size: int = 16,
        *,
        value_size: int | None = None,
        window: int | None = None,
        cache: str = "f32",
        precision: str = "f32",
    ) -> None:
        self.heads, self.kv_heads, self.size = heads, kv_heads, size
        self.value_size = value_size or size
        self.op = Attention(size**-0.5, window)
        properties = {"KEY_CACHE_QUANT_MODE": "BY_TOKEN"} if cache == "u8" else {}
        self.compiled = ov.Core().compile_model(
            lower(self._graph(), Weights(Held({}))),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "KV_CACHE_PRECISION": cache,
                "INFERENCE_NUM_THREADS": 2,
                **properties,
            },
        )
        self.request = self.compiled.create_infer_request()
        self.caches = []
        for name in ("keys", "values"):
            port = self.compiled.input(name)
            shape = [d.get_length() for d in list(port.partial_shape)[1:]]
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([CACHE_BLOCKS, *shape]))
            self.request.set_tensor(name, tensor)
            self.caches.append(tensor)
        self.expected_caches = [
            np.zeros((CACHE_BLOCKS, BLOCK, kv_heads, n), np.float32)
            for n in (size, self.value_size)
        ]

    def soil(self) -> None:
        """What is left in memory may be anything; with every bit set, floats are NaN."""
        for tensor in self.caches:
            ctypes.memset(tensor.data.ctypes.data, 0xFF, tensor.byte_size)

    def __call__(self, step: dict[str, Array]) -> Array:
        for name, array in step.items():
            self.request.set_tensor(name, ov.Tensor(np.ascontiguousarray(array)))
        longest = (step["past_lengths"] + np.diff(step["sequence_starts"])).max()
        self.request.set_tensor(MAX_CONTEXT, ov.Tensor(np.array(longest, np.int32)))
        self.request.infer()
        made: Array = self.request.get_tensor("output_0").data.copy()
        return made

    def expected(self, step: dict[str, Array]) -> Array:
        q, k, v = (step[n] for n in "qkv")
        order = ("sequence_starts", "past_lengths", "block_table", "block_starts")
        return self.op.compute(q, k, v, *self.expected_caches, *(step[n] for n in order))

    def steps(self, plan: Sequence[Sequence[int]], seed: int = 0) -> list[dict[str, Array]]:
        """The same sequences whatever the plan, in blocks scattered over the cache."""
        count = len(plan[0])
        lengths = [sum(step[s] for step in plan) for s in range(count)]
        random = np.random.default_rng(seed)
        free = random.permutation(CACHE_BLOCKS)
        blocks = np.split(free, np.cumsum([-(-n // BLOCK) for n in lengths]))[:count]
        shapes = {
            "q": (self.heads, self.size),
            "k": (self.kv_heads, self.size),
            "v": (self.kv_heads, self.value_size),
        }
        data = {
            name: [
                np.random.default_rng([seed, s, i]).standard_normal((n, *shape)).astype(np.float32)
                for s, n in enumerate(lengths)
            ]
            for i, (name, shape) in enumerate(shapes.items())
        }
        past, made = [0] * count, []
        for step in plan:
            some = [s for s in range(count) if step[s]]
            used = [blocks[s][: -(-(past[s] + step[s]) // BLOCK)] for s in some]
            made.append(
                {
                    name: np.concatenate([data[name][s][past[s] : past[s] + step[s]] for s in some])
                    for name in shapes
                }
                | {
                    "sequence_starts": np.cumsum([0, *(step[s] for s in some)]).astype(np.int32),
                    "past_lengths": np.array([past[s] for s in some], np.int32),
                    "block_table": np.concatenate(used).astype(np.int32),
                    "block_starts": np.cumsum([0, *map(len, used)]).astype(np.int32),
                }
            )
            for s in some:
                past[s] += step[s]
        return made

    def _graph(self) -> Graph:
        def cache(name: str, size: int) -> Tensor:
            shape = (BLOCKS, BLOCK_SIZE, self.kv_heads, size)
            tensor: Tensor = CacheBlocks(name, DType.F32, shape)()
            return tensor

        with use_graph(Graph()) as graph:
            q = input_tensor("q", DType.F32, TOKENS, self.heads, self.size)
            k = input_tensor("k", DType.F32, TOKENS, self.kv_heads, self.size)
            v = input_tensor("v", DType.F32, TOKENS, self.kv_heads, self.value_size)
            out = attention(
                q,
                k,
                v,
                caches=(cache("keys", self.size), cache("values", self.value_size)),
                sequence_starts=input_tensor("sequence_starts", DType.I32, STARTS),
                past_lengths=input_tensor("past_lengths", DType.I32, SEQUENCES),
                block_table=input_tensor("block_table", DType.I32, TABLE),
                block_starts=input_tensor("block_starts", DType.I32, STARTS),
                scale=self.op.scale,
                window=self.op.window,
            )
            graph.outputs = (out,)
        return graph


def worst(paged: Paged, plan: Sequence[Sequence[int]] = MIXED) -> float:
    return max(
        float(np.abs(paged(step) - paged.expected(step)).max()) for step in paged.steps(plan)
    )


@pytest.mark.parametrize("size", [8, 16, 32, 48, 64, 80, 96, 112, 128, 256])
def test_head_sizes(size: int) -> None:
    assert worst(Paged(size=size)) < 5e-6


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 2), (14, 2), (9, 3)])
def test_shared_key_heads(heads: int, kv_heads: int) -> None:
    assert worst(Paged(heads, kv_heads)) < 5e-6


def test_values_of_another_size() -> None:
    assert worst(Paged(value_size=48)) < 5e-6


@pytest.mark.parametrize("window", [1, 2, 8, 31, 32, 33, 500])
def test_window_counts_the_token_itself(window: int) -> None:
    assert worst(Paged(window=window)) < 5e-6


@pytest.mark.parametrize(
    ("cache", "precision", "bound"),
    [("f16", "f32", 2e-3), ("u8", "f32", 0.05), ("bf16", "bf16", 0.04), ("u8", "bf16", 0.06)],
)
def test_smaller_caches(cache: str, precision: str, bound: float) -> None:
    paged = Paged(size=64, cache=cache, precision=precision)
    assert 0 < worst(paged) < bound


@pytest.mark.parametrize(
    ("cache", "precision"), [("f32", "f32"), ("f16", "f32"), ("u8", "f32"), ("bf16", "bf16")]
)
def test_what_was_left_in_the_cache_does_not_matter(cache: str, precision: str) -> None:
    clean, soiled = (Paged(cache=cache, precision=precision) for _ in range(2))
    soiled.soil()
    for step in clean.steps(MIXED):
        np.testing.assert_array_equal(clean(step), soiled(step))


@pytest.mark.parametrize("cache", ["f32", "f16", "u8"])
@pytest.mark.parametrize("chunk", [1, 7, 33, 64])
def test_chunks_make_no_difference(cache: str, chunk: int) -> None:
    """u8 keys are scaled token by token; scales of a whole block would grow with the block."""
    length = 100
    plan = [(min(chunk, length - i),) for i in range(0, length, chunk)]
    whole, chunked = Paged(cache=cache), Paged(cache=cache)
    expected = whole(whole.steps([(length,)])[0])
    found = np.concatenate([chunked(step) for step in chunked.steps(plan)])
    assert np.abs(found - expected).max() < 5e-6


@pytest.mark.parametrize("cache", ["f32", "u8"])
def test_company_makes_no_difference(cache: str) -> None:
    together, apart = Paged(cache=cache), Paged(cache=cache)
    for step in together.steps(MIXED):
        found = together(step)
        for s, past in enumerate(step["past_lengths"]):
            rows = slice(*step["sequence_starts"][s : s + 2])
            blocks = step["block_table"][slice(*step["block_starts"][s : s + 2])]
            alone = {name: step[name][rows] for name in "qkv"} | {
                "sequence_starts": np.array([0, rows.stop - rows.start], np.int32),
                "past_lengths": np.array([past], np.int32),
                "block_table": blocks,
                "block_starts": np.array([0, len(blocks)], np.int32),
            }
            assert np.abs(apart(alone) - found[rows]).max() < 5e-6
