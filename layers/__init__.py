"""The layer library: what architectures are composed of."""

from paddock.layers.activation import ACTIVATIONS, activate
from paddock.layers.attention import Attention
from paddock.layers.bidirectional import BidirectionalAttention, RelativeBiases
from paddock.layers.cross_attention import CrossAttention
from paddock.layers.delta_net import GatedDeltaNet
from paddock.layers.embedding import Embedding, PositionEmbedding
from paddock.layers.experts import Experts, GroupedLinear, MixtureOfExperts, Router
from paddock.layers.heads import Linear, read_rows
from paddock.layers.latent_attention import LatentAttention
from paddock.layers.linear import ColumnLinear, ReplicatedLinear, RowLinear, VocabHead
from paddock.layers.mlp import MLP, GatedMLP
from paddock.layers.norm import HeadwiseLayerNorm, JointRMSNorm, LayerNorm, RMSNorm
from paddock.layers.pipeline import Pipeline
from paddock.layers.post_norm import PostNormBlock
from paddock.layers.quantize import quantize
from paddock.layers.recurrent import (
    CausalConv,
    GatedRecurrentBlock,
    GatedRMSNorm,
    Mamba2Mixer,
    MambaMixer,
)
from paddock.layers.rotary import AxialRotary, Rotary, RotaryScaling, SectionedRotary
from paddock.layers.sinusoids import Sinusoids
from paddock.layers.stack import Stack
from paddock.layers.step import Step
from paddock.layers.tower import PatchEmbedding, TowerGatedMLP, TowerMLP
from paddock.layers.trace import trace, trace_modules

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Attention",
    "AxialRotary",
    "BidirectionalAttention",
    "CausalConv",
    "ColumnLinear",
    "CrossAttention",
    "Embedding",
    "Experts",
    "GatedDeltaNet",
    "GatedMLP",
    "GatedRMSNorm",
    "GatedRecurrentBlock",
    "GroupedLinear",
    "HeadwiseLayerNorm",
    "JointRMSNorm",
    "LatentAttention",
    "LayerNorm",
    "Linear",
    "Mamba2Mixer",
    "MambaMixer",
    "MixtureOfExperts",
    "PatchEmbedding",
    "Pipeline",
    "PositionEmbedding",
    "PostNormBlock",
    "RMSNorm",
    "RelativeBiases",
    "ReplicatedLinear",
    "Rotary",
    "RotaryScaling",
    "Router",
    "RowLinear",
    "SectionedRotary",
    "Sinusoids",
    "Stack",
    "Step",
    "TowerGatedMLP",
    "TowerMLP",
    "VocabHead",
    "activate",
    "quantize",
    "read_rows",
    "trace",
    "trace_modules",
]
