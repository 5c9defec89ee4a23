"""Checkpoints: download, read, bind to a model's slots, quantize, keep as bound weights."""

from paddock.weights.bind import Binding, BoundPart, BoundSlot, prove
from paddock.weights.bound import BoundWeights, Location
from paddock.weights.checkpoint import Checkpoint
from paddock.weights.errors import WeightError
from paddock.weights.hub import LocalCheckpoint, fetch
from paddock.weights.rules import (
    Add,
    Body,
    Fold,
    Fuse,
    Ignore,
    Interleave,
    MinusExp,
    Mxfp4,
    Older,
    Rename,
    Rule,
    Split,
    Stack,
    Tie,
    Transpose,
    UnitRows,
    Where,
)
from paddock.weights.safetensors_file import SafetensorsFile, TensorInfo
from paddock.weights.write import write

__all__ = [
    "Add",
    "Binding",
    "Body",
    "BoundPart",
    "BoundSlot",
    "BoundWeights",
    "Checkpoint",
    "Fold",
    "Fuse",
    "Ignore",
    "Interleave",
    "LocalCheckpoint",
    "Location",
    "MinusExp",
    "Mxfp4",
    "Older",
    "Rename",
    "Rule",
    "SafetensorsFile",
    "Split",
    "Stack",
    "TensorInfo",
    "Tie",
    "Transpose",
    "UnitRows",
    "WeightError",
    "Where",
    "fetch",
    "prove",
    "write",
]
