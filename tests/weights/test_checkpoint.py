from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from paddock.weights import Checkpoint, WeightError

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(folder: Path, placed: dict[str, str], stored: dict[str, list[str]]) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    for shard, names in stored.items():
        arrays = {name: np.full((2, 2), i, np.float32) for i, name in enumerate(names)}
        save_file(arrays, folder / shard)
    return folder


def test_single_file(tmp_path: Path) -> None:
    save_file({"a": np.arange(6, dtype=np.float32)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.bytes_read == 0
    assert checkpoint.tensors["a"].read(((2, 4),)).tolist() == [2.0, 3.0]
    assert checkpoint.bytes_read == 8


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"a": ONE, "b": TWO}, {ONE: ["a"], TWO: ["b"]})
    assert set(Checkpoint.open(folder).tensors) == {"a", "b"}


def test_the_single_file_wins_over_an_index(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": ONE}, {ONE: ["a"]})
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    assert set(Checkpoint.open(tmp_path).tensors) == {"x"}


@pytest.mark.parametrize(
    ("placed", "stored", "message"),
    [
        ({"a": ONE, "b": TWO}, {ONE: ["a"]}, f"names the shard '{TWO}' \\(for 'b'\\), which is n"),
        ({"a": ONE, "b": ONE}, {ONE: ["a"]}, f"places 'b' in '{ONE}', which does not hold it"),
        (
            {"a": ONE, "b": ONE, "c": TWO},
            {ONE: ["a"], TWO: ["b", "c"]},
            f"places 'b' in '{ONE}', which does not hold it; '{TWO}' does",
        ),
        (
            {"layers.0.mlp": ONE},
            {ONE: ["layers.1.mlp"]},
            "does not hold it; nearest is 'layers.1.mlp'",
        ),
        (
            {"a": ONE, "b": TWO},
            {ONE: ["a"], TWO: ["b", "a"]},
            f"'a' is in two shards, {ONE} and {TWO}",
        ),
    ],
)
def test_an_index_that_does_not_fit(
    tmp_path: Path, placed: dict[str, str], stored: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(WeightError, match=message):
        Checkpoint.open(sharded(tmp_path, placed, stored))


@pytest.mark.parametrize(
    "shard",
    [
        "../evil.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "x.bin",
        ".hidden.safetensors",
        "a\0.safetensors",
        "",
        3,
        None,
    ],
)
def test_shard_names_are_plain(tmp_path: Path, shard: Any) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightError, match=r"places 'a' in .*, which is not the name of a"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 1}', "\xff"]
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightError, match=f"{INDEX}: (not JSON|has no weight_map)"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin"], r"Python pickles \(pytorch_model.bin\).*save_pretrained"),
        ([f"{n}.pth" for n in "abcde"], r"\(a.pth, b.pth, c.pth and 2 more\)"),
        (["m.gguf"], "in llama.cpp's format"),
        (["consolidated.safetensors"], "expected model.safetensors or .*, found consolidated"),
        (["config.json"], "holds no weights"),
        ([], "holds no weights"),
    ],
)
def test_folders_without_safetensors(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(WeightError, match=message):
        Checkpoint.open(tmp_path)


def test_an_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="holds no weights"):
        Checkpoint.open(tmp_path / "absent")
