"""Rules that one family each needs, on tensors small enough to write down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from paddock.graph import Array, Mesh, Parameter, Parts, Shard
from paddock.weights import Checkpoint, Interleave, UnitRows, WeightError, prove


def stored(folder: Path, **arrays: Array) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    return Checkpoint.open(folder)


def qkv(rows: int) -> Parameter:
    return Parameter((3 * rows, 2), Shard(0, Parts({"q": rows, "k": rows, "v": rows}, 2, True)))


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_groups_that_are_not_heads(tp: int, tmp_path: Path) -> None:
    """CodeGen: four groups of (q, v, k), of two heads each, whatever the number of ranks."""
    parts = {
        p: np.arange(32, dtype=np.float32).reshape(16, 2) + 100 * i for i, p in enumerate("qkv")
    }
    groups = [parts[p][4 * g : 4 * g + 4] for g in range(4) for p in ("q", "v", "k")]
    checkpoint = stored(tmp_path, weight=np.concatenate(groups))
    rule = Interleave("weight", ("q", "v", "k"), groups=4)
    for mesh in Mesh(tp=tp).ranks():
        found = prove({"weight": qkv(16)}, checkpoint.tensors, [rule], mesh).load("weight")
        rows = slice(16 // tp * mesh.tp_rank, 16 // tp * (mesh.tp_rank + 1))
        np.testing.assert_array_equal(found, np.concatenate([parts[p][rows] for p in "qkv"]))


def test_groups_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, weight=np.zeros((48, 2), np.float32))
    rule = Interleave("weight", ("q", "v", "k"), groups=5)
    with pytest.raises(WeightError, match="do not take turns in 5 groups"):
        prove({"weight": qkv(16)}, checkpoint.tensors, [rule])


@pytest.mark.parametrize("shard", [None, Shard(0, Parts({"rows": 6})), Shard(1, Parts({"in": 4}))])
def test_rows_of_length_one(shard: Shard | None, tmp_path: Path) -> None:
    """The length is the whole row's, also where a rank holds some of its columns."""
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    values[2] = 0  # has no direction, and stays
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    truth = values / np.where(lengths == 0, 1, lengths)
    checkpoint = stored(tmp_path, weight=values)
    slot = {"weight": Parameter((6, 4), shard)}
    shares = [
        prove(slot, checkpoint.tensors, [UnitRows("weight")], mesh).load("weight")
        for mesh in Mesh(tp=2).ranks()
    ]
    whole = shares[0] if shard is None else np.concatenate(shares, shard.dim)
    np.testing.assert_allclose(whole, truth, rtol=1e-6)
