"""A checkpoint on disk, bound by its family's weight map for one rank: a `WeightSource`."""

from __future__ import annotations

import importlib
from pathlib import Path

from paddock.graph import Array, DType, Mesh, Module
from paddock.models.registry import Architecture
from paddock.weights import Binding, Checkpoint, prove
from paddock.weights.source import cast


class BoundCheckpoint:
    """This rank's shares of the slots of `model`, unquantized, in `dtype`."""

    def __init__(
        self,
        architecture: Architecture,
        model: Module,
        folder: Path,
        mesh: Mesh | None = None,
        dtype: DType = DType.F32,
    ) -> None:
        model.assign_names()
        self.binding: Binding = prove(
            dict(model.named_parameters()),
            Checkpoint.open(folder).tensors,
            importlib.import_module(architecture.weight_map).HUGGING_FACE,
            mesh,
            tied=bool(getattr(architecture.config, "tie_word_embeddings", False)),
        )
        self.read: set[str] = set()
        self._dtype = dtype

    def whole(self, name: str) -> Array:
        self.read.add(name)
        return self.binding.load(name, self._dtype)

    def part(self, name: str, part: str) -> Array:
        self.read.add(name)
        bound = next(p for p in self.binding.slots[name].parts if p.name == part)
        return cast(bound.source.read(bound.box), self._dtype)

    def stored(self, name: str, part: str = "") -> Array:
        return self.part(name, part) if part else self.whole(name)
