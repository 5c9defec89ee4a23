"""Whisper: speech to text, from thirty seconds at a time.

Radford et al. 2022, arxiv.org/abs/2212.04356.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from paddock.graph import Module, Parameter, Tensor, current_graph
from paddock.graph import ops as F
from paddock.layers import (
    ColumnLinear,
    Embedding,
    LayerNorm,
    PositionEmbedding,
    Stack,
    Step,
    VocabHead,
)
from paddock.models.bart import BartConfig, BartDecoderLayer, BartEncoderLayer
from paddock.models.config import Context, Size


class WhisperConfig(BartConfig):
    vocab_size: Size = 51865
    num_mel_bins: int = 80
    max_source_positions: Context = 1500
    max_position_embeddings: Context = 448

    norm_first: ClassVar[bool] = True

    synonyms: ClassVar[Mapping[str, str]] = {
        **BartConfig.synonyms,
        "max_target_positions": "max_position_embeddings",
    }
    ignored: ClassVar[frozenset[str]] = BartConfig.ignored | {
        *("apply_spec_augment", "classifier_proj_size", "forced_decoder_ids"),
        *("mask_feature_length", "mask_feature_min_masks", "mask_feature_prob"),
        *("mask_time_length", "mask_time_min_masks", "mask_time_prob", "median_filter_width"),
        *("use_weighted_layer_sum", "is_multilingual"),
    }

    @property
    def longest_source(self) -> int | None:
        return self.max_source_positions


class Projections(Module):
    """Queries, keys and values, or keys and values, each by itself: keys have no bias."""

    def __init__(self, hidden: int, parts: str, *, unit: int) -> None:
        if "q" in parts:
            self.q_proj = ColumnLinear(hidden, {"q": hidden}, unit=unit, bias=True)
        self.k_proj = ColumnLinear(hidden, {"k": hidden}, unit=unit)
        self.v_proj = ColumnLinear(hidden, {"v": hidden}, unit=unit, bias=True)
        self.has_q = "q" in parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [tokens, hidden] -> as many tensors as parts, [tokens, this rank's share]."""
        own = (self.q_proj,) if self.has_q else ()
        return tuple(y for linear in (*own, self.k_proj, self.v_proj) for y in linear(x))


class WhisperEncoderLayer(BartEncoderLayer):
    def __init__(self, cfg: WhisperConfig) -> None:
        super().__init__(cfg)
        unit = self.self_attn.head_dim
        self.self_attn.qkv_proj = Projections(cfg.hidden_size, "qkv", unit=unit)


class WhisperDecoderLayer(BartDecoderLayer):
    def __init__(self, cfg: WhisperConfig) -> None:
        super().__init__(cfg)
        unit = self.self_attn.head_dim
        self.self_attn.qkv_proj = Projections(cfg.hidden_size, "qkv", unit=unit)
        self.encoder_attn.kv_proj = Projections(cfg.hidden_size, "kv", unit=unit)


class Conv(Module):
    """A convolution over three neighbours in time, whose windows are laid out before it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight = Parameter((outputs, inputs, 3))
        self.bias = Parameter((outputs,))

    def windows(self, x: Tensor, there: Tensor) -> Tensor:
        """x: [n, inputs x 3], and whether there is such a place in time, 1 or 0, [n, 1]."""
        weight = F.reshape(self.weight.tensor, x.type.size(1))
        bias = F.linear(there, F.reshape(self.bias.tensor, 1))
        return F.linear(x, weight) + bias

    def neighbours(self, *xs: Tensor) -> Tensor:
        """The three neighbours, [n, inputs] each."""
        _, inputs, _ = self.weight.shape
        before, at, behind = (
            F.linear(x, F.reshape(w, inputs))
            for x, w in zip(xs, F.split(self.weight.tensor, 1, 1, 1), strict=True)
        )
        return before + at + behind + self.bias.tensor


class WhisperEncoder(Module):
    def __init__(self, cfg: WhisperConfig) -> None:
        hidden = cfg.hidden_size
        self.conv1 = Conv(cfg.num_mel_bins, hidden)
        self.conv2 = Conv(hidden, hidden)
        self.embed_positions = PositionEmbedding(cfg.max_source_positions, hidden)
        self.layers = Stack(WhisperEncoderLayer(cfg) for _ in range(cfg.num_hidden_layers))
        self.layer_norm = LayerNorm(hidden, eps=1e-5)
        self.window = 3 * cfg.num_mel_bins

    def forward(self, step: Step) -> Tensor:
        """Of `step.features`: see `paddock.runtime.audio.log_mel.windows`."""
        features = F.cast(step.features(3 * (self.window + 1)), current_graph().dtype)
        halves = F.split(features, *(self.window, 1) * 3)
        frames = (self.conv1.windows(*halves[i : i + 2]) for i in (0, 2, 4))
        x = self.conv2.neighbours(*(F.activation(frame, "gelu") for frame in frames))
        x = F.activation(x, "gelu") + self.embed_positions(step.source_positions)
        return self.layer_norm(self.layers(x, step.source))


class WhisperDecoder(Module):
    def __init__(self, cfg: WhisperConfig) -> None:
        hidden = cfg.hidden_size
        self.embed_tokens = Embedding(cfg.vocab_size, hidden)
        self.embed_positions = PositionEmbedding(cfg.max_position_embeddings, hidden)
        self.layers = Stack(WhisperDecoderLayer(cfg) for _ in range(cfg.num_decoder_layers))
        self.layer_norm = LayerNorm(hidden, eps=1e-5)

    def forward(self, source: Tensor, step: Step) -> Tensor:
        x = self.embed_tokens(step.token_ids) + self.embed_positions(step.positions)
        return self.layer_norm(self.layers(x, source, step))


class WhisperModel(Module):
    def __init__(self, cfg: WhisperConfig) -> None:
        self.encoder = WhisperEncoder(cfg)
        self.decoder = WhisperDecoder(cfg)

    def forward(self, step: Step) -> Tensor:
        return self.decoder(self.encoder(step), step)


class WhisperForConditionalGeneration(Module):
    Config: ClassVar[type[WhisperConfig]] = WhisperConfig
    weight_map: ClassVar[str] = "paddock.weights.whisper"
    reads_source: ClassVar[bool] = True
    hears: ClassVar[bool] = True

    def __init__(self, cfg: WhisperConfig) -> None:
        self.model = WhisperModel(cfg)
        self.proj_out = VocabHead(cfg.hidden_size, cfg.vocab_size)

    def forward(self, step: Step) -> Tensor:
        return self.proj_out(self.model(step), step)
