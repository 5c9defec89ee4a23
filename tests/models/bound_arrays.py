"""A checkpoint's arrays, cut for one rank: an engine's `WeightSource` without the weights room."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paddock.graph import Array, DType, Mesh, Module, Parameter, QuantFormat
from paddock.graph.ops import scale_name

_PARTS = {"qkv_proj": "{}_proj", "gate_up_proj": "{}_proj"}


class BoundArrays:
    """This rank's shares of the slots of `model`, in `dtype` or in the slots' own formats."""

    def __init__(
        self,
        model: Module,
        checkpoint: Mapping[str, Array],
        mesh: Mesh | None = None,
        dtype: DType = DType.F32,
    ) -> None:
        model.assign_names()
        self.slots = dict(model.named_parameters())
        self.read: set[str] = set()
        self._scales = {scale_name(name): name for name, s in self.slots.items() if s.quant}
        self._checkpoint, self._mesh, self._dtype = checkpoint, mesh or Mesh(), dtype

    def whole(self, name: str) -> Array:
        slot = self.slots[self._scales.get(name, name)]
        axis = slot.shard.dim if slot.shard else 0
        return np.concatenate([self.part(name, part) for part in slot.parts], axis)

    def part(self, name: str, part: str) -> Array:
        slot_name = self._scales.get(name, name)
        self.read.add(slot_name)
        slot = self.slots[slot_name]
        array = self._checkpoint[self._tensor(slot_name, part, slot)]
        share = array[slot.local_slice(part, self._mesh)]
        if slot.quant is None:
            return share.astype(self._dtype.numpy)
        integers, scales = quantized(share, slot.quant)
        return scales if name in self._scales else integers

    def stored(self, name: str, part: str = "") -> Array:
        array = self.part(name, part) if part else self.whole(name)
        if array.dtype != DType.I4.numpy:
            return array
        pairs = array.astype(np.int8).view(np.uint8).reshape(len(array), -1, 2) & 0xF
        return pairs[..., 0] | pairs[..., 1] << 4

    def _tensor(self, name: str, part: str, slot: Parameter) -> str:
        if name == "lm_head.weight" and name not in self._checkpoint:
            return "model.embed_tokens.weight"
        for fused, pattern in _PARTS.items():
            if fused in name and len(slot.parts) > 1:
                return name.replace(fused, pattern.format(part))
        return name


def quantized(weight: Array, quant: QuantFormat) -> tuple[Array, Array]:
    """Stored [rows, columns] and scales [rows, groups], nearest to the weight."""
    if quant.dtype is DType.F8E4M3:
        scales = (np.abs(weight).max(-1, keepdims=True) / 448).astype(quant.scale.numpy)
        stored = np.clip(weight / scales.astype(np.float32), -448, 448)
        return stored.astype(quant.dtype.numpy), scales
    groups = 1 if quant.group is None else weight.shape[1] // quant.group
    grouped = weight.reshape(len(weight), groups, -1)
    largest = 127 if quant.dtype is DType.I8 else 7
    scales = (np.abs(grouped).max(-1) / largest).astype(quant.scale.numpy)
    integers = np.rint(grouped / scales.astype(np.float32)[..., None])
    integers = np.clip(integers, -largest, largest).reshape(weight.shape)
    return integers.astype(np.int8).astype(quant.dtype.numpy), scales
