"""Llama whose residual sum and the norm behind it are one op, with a CUDA kernel of its own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph import Array, CudaSource, GraphError, Launch, Op, Tensor, TensorType
from paddock.graph import ops as F
from paddock.layers import Step
from paddock.models import llama, registry

KERNEL = r"""
extern "C" __global__ void add_rms_norm(
    const T* x, const T* y, const T* weight, T* sum, T* normed, int size, float eps) {
  __shared__ float room[33];
  const i64 row = (i64)blockIdx.x * size;
  float squares = 0.f;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    T total = narrow<T>(wide(x[row + i]) + wide(y[row + i]));
    sum[row + i] = total;
    squares += wide(total) * wide(total);
  }
  const float factor = rsqrtf(block_sum(squares, room) / size + eps);
  for (int i = threadIdx.x; i < size; i += blockDim.x)
    normed[row + i] = narrow<T>(wide(sum[row + i]) * factor * wide(weight[i]));
}
"""


def launch(op: "AddRMSNorm", x: TensorType, *rest: TensorType) -> Launch:
    """A block of threads for each token."""
    return Launch((x.size(0),), 256, (np.int32(x.size(1)), np.float32(op.eps)))


@dataclass(frozen=True)
class AddRMSNorm(Op):
    """x + y, and the RMSNorm of it: Zhang and Sennrich 2019, arxiv.org/abs/1910.07467."""

    eps: float

    cuda_source: ClassVar[CudaSource | None] = CudaSource(KERNEL, "add_rms_norm", launch)

    def infer(
        self, x: TensorType, y: TensorType, weight: TensorType
    ) -> tuple[TensorType, TensorType]:
        if x.rank != 2 or x != y or weight.dtype is not x.dtype:
            raise GraphError(
                f"expected x and y [tokens, size] and weight [size]: {x}, {y}, {weight}"
            )
        return x, F.RMSNorm(self.eps).infer(x, weight)

    def compute(self, x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
        total = F.Add().compute(x, y)
        return total, F.RMSNorm(self.eps).compute(total, weight)

    def expand(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = F.add(x, y)
        return total, F.rms_norm(total, weight, self.eps)


class FusedBlock(llama.LlamaBlock):
    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), step) * self.residual
        norm = self.post_attention_layernorm
        x, y = AddRMSNorm(norm.eps)(x, y, norm.weight.tensor)
        return x + self.mlp(y) * self.residual


class LlamaForCausalLM(llama.LlamaForCausalLM):
    Block = FusedBlock


registry.register("LlamaForCausalLM", __name__)
