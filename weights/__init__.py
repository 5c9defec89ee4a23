"""Checkpoints: download, read, bind to a model's slots, quantize, keep as bound weights."""

from paddock.weights.bind import Binding, BoundPart, BoundSlot, prove
from paddock.weights.checkpoint import Checkpoint
from paddock.weights.errors import WeightError
from paddock.weights.rules import (
    Add,
    Fuse,
    Ignore,
    Interleave,
    Rename,
    Rule,
    Split,
    Stack,
    Tie,
    Transpose,
)
from paddock.weights.safetensors_file import SafetensorsFile, TensorInfo

__all__ = [
    "Add",
    "Binding",
    "BoundPart",
    "BoundSlot",
    "Checkpoint",
    "Fuse",
    "Ignore",
    "Interleave",
    "Rename",
    "Rule",
    "SafetensorsFile",
    "Split",
    "Stack",
    "TensorInfo",
    "Tie",
    "Transpose",
    "WeightError",
    "prove",
]
