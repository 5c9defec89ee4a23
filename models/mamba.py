"""Mamba: blocks of a selective state space, and nothing else.

Gu and Dao 2023, arxiv.org/abs/2312.00752.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from paddock.graph import Module, Tensor
from paddock.layers import Embedding, MambaMixer, Pipeline, RMSNorm, Step, VocabHead
from paddock.models.config import Layers, ModelConfig, Size


class MambaConfig(ModelConfig):
    vocab_size: Size = 50280
    hidden_size: Size = 768
    state_size: Size = 16
    num_hidden_layers: Layers = 32
    layer_norm_epsilon: float = Field(1e-5, ge=0, lt=1)
    expand: int = Field(2, gt=0, le=64)
    conv_kernel: int = Field(4, gt=0, le=64)
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    time_step_rank: Size | Literal["auto"] = "auto"
    tie_word_embeddings: bool = True

    max_position_embeddings: ClassVar[int] = 2**20  # a state has no longest sequence

    # How weights began, how transformers computes, and the sizes under the names of another code.
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *("chunk_size", "d_inner", "d_model", "fused_add_norm", "intermediate_size"),
            *("layer_types", "n_layer", "pad_vocab_size_multiple", "rescale_prenorm_residual"),
            *("residual_in_fp32", "rms_norm", "ssm_cfg", "time_step_floor"),
            *("time_step_init_scheme", "time_step_max", "time_step_min", "time_step_scale"),
            *("use_associative_scan", "use_mambapy"),
        }
    )

    @property
    def inner(self) -> int:
        return self.expand * self.hidden_size

    def mixer(self) -> Module:
        rank = self.time_step_rank
        return MambaMixer(
            self.hidden_size,
            inner=self.inner,
            state=self.state_size,
            rank=-(-self.hidden_size // 16) if rank == "auto" else rank,
            width=self.conv_kernel,
            activation=self.hidden_act,
            bias=self.use_bias,
            conv_bias=self.use_conv_bias,
        )


class MambaBlock(Module):
    def __init__(self, cfg: MambaConfig) -> None:
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.layer_norm_epsilon)
        self.mixer = cfg.mixer()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return x + self.mixer(self.norm(x), step)


class MambaModel(Module):
    def __init__(self, cfg: MambaConfig) -> None:
        self.embeddings = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = Pipeline(MambaBlock(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm_f = RMSNorm(cfg.hidden_size, eps=cfg.layer_norm_epsilon)

    def forward(self, step: Step) -> Tensor:
        return self.norm_f(self.layers(self.embeddings(step.token_ids), step))


class MambaForCausalLM(Module):
    Config: ClassVar[type[MambaConfig]] = MambaConfig
    weight_map: ClassVar[str] = "paddock.weights.mamba"

    def __init__(self, cfg: Any) -> None:
        self.backbone = MambaModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.backbone(step), step)
