"""A checkpoint in a folder, bound for one rank as a recipe would bind it."""

from __future__ import annotations

import importlib
from pathlib import Path

from paddock.graph import DType, Mesh, Module
from paddock.models.registry import Architecture
from paddock.weights import BoundWeights, Checkpoint, prove, write


def bound(
    model: Module,
    architecture: Architecture,
    folder: Path,
    out: Path,
    mesh: Mesh,
    dtype: DType = DType.F32,
) -> BoundWeights:
    """One rank's weights; `out` is made, and holds what is not read from the checkpoint."""
    binding = prove(
        dict(model.named_parameters()),
        Checkpoint.open(folder).tensors,
        importlib.import_module(architecture.weight_map).HUGGING_FACE,
        mesh,
        tied=bool(getattr(architecture.config, "tie_word_embeddings", False)),
    )
    out.mkdir()
    write(binding, out, dtype)
    return BoundWeights.open(out, folder)
