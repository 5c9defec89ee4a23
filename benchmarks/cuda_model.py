"""A model of random weights, made on the GPU: what the cuda benchmarks run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paddock.engines import cuda
from paddock.engines.cuda.gpu import GPU
from paddock.engines.cuda.session import CUDASession
from paddock.graph import DType, Graph
from paddock.graph.ops import Weight
from paddock.layers import trace
from paddock.models import registry

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

_FILL = r"""
#include <cuda_bf16.h>
extern "C" __global__ void fill(__nv_bfloat16* x, long long n, unsigned seed, float size) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n;
       i += (long long)gridDim.x * blockDim.x) {
    unsigned long long z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    float sum = 0.f;  // of four uniform numbers: near enough to normal, of variance 1
    for (int j = 0; j < 4; j++) sum += ((z >> (16 * j)) & 0xffff) * (1.f / 65535.f) - 0.5f;
    x[i] = __float2bfloat16(sum * 1.7320508f * size);
  }
}
"""


class RandomWeights:
    """bf16 weights of a graph: norms about 1, matrices of size 0.02."""

    def __init__(self, graph: Graph, gpu: GPU) -> None:
        self._gpu = gpu
        self._shapes = {n.op.key: n.op for n in graph.nodes if isinstance(n.op, Weight)}
        self._fill = gpu.cupy.RawKernel(_FILL, "fill", options=("-std=c++17",))
        self.nbytes = 0

    def whole(self, name: str) -> Any:
        return self._made(name, tuple(self._shapes[name].shape))

    def part(self, name: str, part: str) -> Any:
        op = self._shapes[name]
        rows = dict(op.parts)[part]
        return self._made(f"{name}/{part}", (rows, *op.shape[1:]))

    def stored(self, name: str, part: str = "") -> Any:
        raise AssertionError(f"{name}: these weights are not quantized")

    def _made(self, name: str, shape: tuple[Any, ...]) -> Any:
        if "norm" in name:
            return self._gpu.upload(np.ones(shape, DType.BF16.numpy))
        x = self._gpu.zeros(shape, DType.BF16.numpy)
        with self._gpu.stream:
            seed = sum(name.encode()) + 131 * len(name) + hash(name) % 1000003
            self._fill(
                (1024,),
                (256,),
                (x, np.int64(x.size), np.uint32(seed % 2**32), np.float32(0.02)),
            )
        self.nbytes += x.nbytes
        return x


def opened(
    gpu: GPU,
    config: Mapping[str, Any] = LLAMA_8B,
    *,
    max_context: int = 8192,
    **options: Any,
) -> tuple[CUDASession, Graph]:
    """A session of random weights, and the graph that it runs."""
    model = registry.read(config).build()
    graph = trace(model, dtype=DType.BF16, max_context=max_context)
    engine = cuda.build(graph, {})
    return engine.open(RandomWeights(engine.graph, gpu), options, device=gpu), engine.graph
