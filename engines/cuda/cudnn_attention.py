"""cuDNN's attention over the paged cache, through nvidia-cudnn-frontend: optional, and faster.

It takes queries and keys of 64 or 128 in f16 or bf16 without windows or caps; everything else, and
machines without the package, run on kernels of ours. A plan is built for each shape (0.1 s, the
first 1.5 s) and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddock.graph import DType


@dataclass(frozen=True)
class Problem:
    """What a plan is built for. `queries` 1: one token a sequence, else packed, up to so many."""

    dtype: DType
    sequences: int
    queries: int
    heads: int
    kv_heads: int
    size: int
    block_size: int
    blocks: int  # in the cache
    max_blocks: int  # of one sequence
    scale: float


class CuDNN:
    """Plans by problem, on one stream."""

    def __init__(self, cudnn: Any, stream: int, allocate: Any) -> None:
        self._cudnn, self._allocate = cudnn, allocate
        self._handle = cudnn.create_handle()
        cudnn.set_stream(handle=self._handle, stream=stream)
        self._plans: dict[Problem, tuple[Any, dict[str, Any], Any]] = {}

    def run(self, problem: Problem, addresses: dict[str, int]) -> None:
        """Enqueue. `addresses` of q, k, v, o, table, queries, lengths and, packed, offsets."""
        if problem not in self._plans:
            self._plans[problem] = self._built(problem)
        graph, tensors, workspace = self._plans[problem]
        given = addresses | {"table_v": addresses["table"], "o_offsets": addresses["offsets"]}
        pack = {tensor: given[name] for name, tensor in tensors.items()}
        graph.execute(pack, workspace.data.ptr, handle=self._handle)

    def _built(self, p: Problem) -> tuple[Any, dict[str, Any], Any]:
        kinds = self._cudnn.data_type
        kind = {DType.F16: kinds.HALF, DType.BF16: kinds.BFLOAT16}[p.dtype]
        graph = self._cudnn.pygraph(
            io_data_type=kind,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self._handle,
        )

        def tensor(name: str, dim: list[int], stride: list[int], of: Any) -> Any:
            return graph.tensor(name=name, dim=dim, stride=stride, data_type=of)

        row = p.heads * p.size
        dim, stride = [p.sequences, p.heads, p.queries, p.size], [row * p.queries, p.size, row, 1]
        held = [p.blocks, p.kv_heads, p.block_size, p.size]
        head = p.block_size * p.size
        held_stride = [p.kv_heads * head, head, p.size, 1]
        each = [p.sequences, 1, 1, 1]
        pages, pages_stride = [p.sequences, 1, p.max_blocks, 1], [p.max_blocks, p.max_blocks, 1, 1]
        t = {
            "q": tensor("q", dim, stride, kind),
            "k": tensor("k", held, held_stride, kind),
            "v": tensor("v", held, held_stride, kind),
            "table": tensor("table", pages, pages_stride, kinds.INT32),
            "table_v": tensor("table_v", pages, pages_stride, kinds.INT32),
            "queries": tensor("queries", each, [1, 1, 1, 1], kinds.INT32),
            "lengths": tensor("lengths", each, [1, 1, 1, 1], kinds.INT32),
        }
        packed = p.queries > 1
        if packed:
            for name in ("offsets", "o_offsets"):
                t[name] = tensor(name, [p.sequences + 1, 1, 1, 1], [1, 1, 1, 1], kinds.INT64)
            t["q"].set_ragged_offset(t["offsets"])
        o, _ = graph.sdpa(
            name="attention",
            q=t["q"],
            k=t["k"],
            v=t["v"],
            is_inference=True,
            attn_scale=p.scale,
            use_padding_mask=True,
            seq_len_q=t["queries"],
            seq_len_kv=t["lengths"],
            paged_attention_k_table=t["table"],
            paged_attention_v_table=t["table_v"],
            paged_attention_max_seq_len_kv=p.max_blocks * p.block_size,
            **({"use_causal_mask_bottom_right": True} if packed else {}),
        )
        o.set_output(True).set_dim(dim).set_stride(stride)
        if packed:
            o.set_ragged_offset(t["o_offsets"])
        t["o"] = o
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        return graph, t, self._allocate(max(graph.get_workspace_size(), 1))
