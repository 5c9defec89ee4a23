"""The layer library: what architectures are composed of."""

from paddock.layers.attention import Attention
from paddock.layers.embedding import Embedding
from paddock.layers.linear import ColumnLinear, RowLinear, VocabHead
from paddock.layers.mlp import MLP, GatedMLP
from paddock.layers.norm import LayerNorm, RMSNorm
from paddock.layers.pipeline import Pipeline
from paddock.layers.quantize import quantize
from paddock.layers.rotary import Rotary, RotaryScaling
from paddock.layers.step import Step
from paddock.layers.trace import trace

__all__ = [
    "MLP",
    "Attention",
    "ColumnLinear",
    "Embedding",
    "GatedMLP",
    "LayerNorm",
    "Pipeline",
    "RMSNorm",
    "Rotary",
    "RotaryScaling",
    "RowLinear",
    "Step",
    "VocabHead",
    "quantize",
    "trace",
]
