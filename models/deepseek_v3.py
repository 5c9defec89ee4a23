"""DeepSeek-V3: V2 whose router scores by sigmoids, with a bias that balances the experts.

arxiv.org/abs/2412.19437.
"""

from typing import ClassVar, Literal

from pydantic import Field

from paddock.graph.ops import Route
from paddock.models.config import Context, Size
from paddock.models.deepseek_v2 import DeepseekConfig, DeepseekV2ForCausalLM
from paddock.models.llama import LlamaConfig


class DeepseekV3Config(DeepseekConfig):
    max_position_embeddings: Context = 4096
    first_k_dense_replace: int = Field(3, ge=0)
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = 256
    n_shared_experts: Size = 1
    num_experts_per_tok: Size = 8
    n_group: Size | None = 8
    topk_group: Size | None = 4
    topk_method: str | None = "noaux_tc"
    norm_topk_prob: bool = True
    scoring_func: Literal["sigmoid"] = "sigmoid"
    routed_scaling_factor: float = 2.5
    rope_interleave: bool = True

    correction: ClassVar[bool] = True
    # The layer that predicts a second token is left unread.
    ignored: ClassVar[frozenset[str]] = DeepseekConfig.ignored | {
        "num_mtp_layers",
        "num_nextn_predict_layers",
    }

    @property
    def interleaves(self) -> bool:
        return self.rope_interleave

    def route(self) -> Route:
        return sigmoid_route(
            self.num_experts_per_tok,
            groups=self.n_group or 1,
            kept_groups=self.topk_group or 1,
            normalize=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )


def sigmoid_route(
    chosen: int, *, groups: int, kept_groups: int, normalize: bool, scale: float
) -> Route:
    """A group counts by its two best experts; GLM-4.5 routes so, too."""
    return Route(
        chosen,
        "sigmoid",
        normalize=normalize,
        epsilon=1e-20,
        scale=scale,
        groups=groups,
        kept_groups=kept_groups,
        group_best=2 if groups > 1 else 1,
    )


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = DeepseekV3Config
