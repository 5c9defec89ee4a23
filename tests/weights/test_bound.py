"""Bound weights: what is written, what is referenced, and what is noticed on opening."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from paddock.graph import Array, DType, Mesh, Parameter, Parts, QuantFormat, Shard
from paddock.weights import (
    BoundWeights,
    Checkpoint,
    Fuse,
    Tie,
    WeightError,
    prove,
    write,
)
from paddock.weights.quantize import dequantize_rows, quantize_rows

INT8, INT4 = QuantFormat(DType.I8), QuantFormat(DType.I4, 16)
RULES = (
    Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"}),
    Tie("head.weight", to="embed.weight"),
)


def arrays(dtype: Any = ml_dtypes.bfloat16, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    shapes = {
        "embed.weight": (40, 32),
        "attn.q_proj.weight": (16, 32),
        "attn.k_proj.weight": (8, 32),
        "attn.v_proj.weight": (8, 32),
        "attn.o_proj.weight": (32, 16),
        "norm.weight": (32,),
    }
    return {
        n: random.standard_normal(s).astype(np.float32).astype(dtype) for n, s in shapes.items()
    }


def slots(quant: QuantFormat | None = None) -> dict[str, Parameter]:
    qkv = Shard(0, Parts({"q": 16, "k": 8, "v": 8}, 4, True))
    return {
        "embed.weight": Parameter((40, 32)),
        "attn.qkv_proj.weight": Parameter((32, 32), qkv, quantizable=True, quant=quant),
        "attn.o_proj.weight": Parameter((32, 16), Shard(1, Parts({"in": 16})), quant=quant),
        "norm.weight": Parameter((32,)),
        "head.weight": Parameter((40, 32), Shard(0, Parts({"vocab": 40})), quant=quant),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(arrays(), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bound").mkdir()
    return tmp_path / "bound"


def bind(
    checkpoint: Path,
    folder: Path,
    dtype: DType = DType.BF16,
    quant: QuantFormat | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> dict[str, Any]:
    opened = Checkpoint.open(checkpoint)
    binding = prove(slots(quant), opened.tensors, RULES, mesh, tied=True)
    return write(binding, folder, dtype, **options)


def test_what_equals_the_checkpoint_is_not_copied(checkpoint: Path, folder: Path) -> None:
    manifest = bind(checkpoint, folder)
    source = arrays()
    assert manifest["referenced_bytes"] == sum(a.nbytes for a in source.values())
    assert manifest["bytes"] == (folder / "weights.safetensors").stat().st_size < 2000
    weights = BoundWeights.open(folder)
    for part in "qkv":
        found = weights.part("attn.qkv_proj.weight", part)
        np.testing.assert_array_equal(found, source[f"attn.{part}_proj.weight"])
        where = weights.location("attn.qkv_proj.weight", part)
        assert where.path == checkpoint / "model.safetensors"
        assert where.mapping[where.offset : where.offset + where.nbytes] == found.tobytes()
        assert np.shares_memory(found, np.frombuffer(where.mapping, np.uint8))
    joined = np.concatenate([source[f"attn.{p}_proj.weight"] for p in "qkv"])
    np.testing.assert_array_equal(weights.whole("attn.qkv_proj.weight"), joined)
    for name, slot in (("embed", "embed"), ("embed", "head"), ("norm", "norm")):
        np.testing.assert_array_equal(weights.whole(f"{slot}.weight"), source[f"{name}.weight"])
    assert weights.whole("embed.weight").dtype == ml_dtypes.bfloat16


def test_another_type_is_converted(checkpoint: Path, folder: Path) -> None:
    manifest = bind(checkpoint, folder, DType.F32)
    assert manifest["references"] == {}
    weights = BoundWeights.open(folder)
    for name, array in arrays().items():
        if "qkv" not in name and "_proj" not in name:
            np.testing.assert_array_equal(weights.whole(name), array.astype(np.float32))
    joined = np.concatenate([arrays()[f"attn.{p}_proj.weight"] for p in "qkv"]).astype(np.float32)
    whole = weights.whole("attn.qkv_proj.weight")
    np.testing.assert_array_equal(whole, joined)
    for part, rows in {"q": slice(0, 16), "k": slice(16, 24), "v": slice(24, 32)}.items():
        found = weights.part("attn.qkv_proj.weight", part)
        np.testing.assert_array_equal(found, joined[rows])
        assert np.shares_memory(found, whole)  # a view of its rows


def test_narrowing_rounds_to_nearest(tmp_path: Path, folder: Path) -> None:
    checkpoint = tmp_path / "f32"
    checkpoint.mkdir()
    save_file(arrays(np.float32), checkpoint / "model.safetensors")
    for dtype in (DType.BF16, DType.F16):
        bind(checkpoint, folder, dtype)
        found = BoundWeights.open(folder).whole("norm.weight")
        np.testing.assert_array_equal(found, arrays(np.float32)["norm.weight"].astype(dtype.numpy))


@pytest.mark.parametrize("quant", [INT8, INT4], ids=str)
def test_quantized(checkpoint: Path, folder: Path, quant: QuantFormat) -> None:
    bind(checkpoint, folder, DType.BF16, quant)
    weights = BoundWeights.open(folder)
    joined = np.concatenate([arrays()[f"attn.{p}_proj.weight"] for p in "qkv"]).astype(np.float32)
    integers, scales = quantize_rows(joined, quant)
    found = weights.whole("attn.qkv_proj.weight")
    assert found.dtype == quant.dtype.numpy
    assert weights.dtype("attn.qkv_proj.weight") is quant.dtype
    np.testing.assert_array_equal(found.astype(np.int8), integers)
    np.testing.assert_array_equal(weights.whole("attn.qkv_proj.scale"), scales)
    k = weights.part("attn.qkv_proj.weight", "k").astype(np.int8)
    np.testing.assert_array_equal(k, integers[16:24])
    np.testing.assert_array_equal(weights.part("attn.qkv_proj.scale", "k"), scales[16:24])
    packed = weights.stored("attn.qkv_proj.weight", "k")
    assert np.shares_memory(packed, weights.stored("attn.qkv_proj.weight"))
    assert packed.nbytes == k.size * quant.dtype.bits // 8
    # The tied head is quantized, the embedding that it equals is not.
    assert weights.whole("embed.weight").dtype == ml_dtypes.bfloat16
    table = arrays()["embed.weight"].astype(np.float32)
    head = dequantize_rows(
        weights.whole("head.weight").astype(np.int8), weights.whole("head.scale")
    )
    assert np.abs(head - table).max() < (0.05 if quant is INT8 else 0.5)


def test_a_slot_with_a_type_of_its_own(checkpoint: Path, folder: Path) -> None:
    own = {"norm.weight": Parameter((32,), dtype=DType.F32)}
    tensors = Checkpoint.open(checkpoint).tensors
    binding = prove(own, {"norm.weight": tensors["norm.weight"]}, ())
    write(binding, folder, DType.BF16)
    assert BoundWeights.open(folder).whole("norm.weight").dtype == np.float32


@pytest.mark.parametrize("quant", [None, INT8, QuantFormat(DType.I4, 8)], ids=str)
def test_ranks_hold_their_shares(
    checkpoint: Path, tmp_path: Path, quant: QuantFormat | None
) -> None:
    source = {n: a.astype(np.float32) for n, a in arrays().items()}
    for mesh in Mesh(tp=2).ranks():
        folder = tmp_path / f"rank-{mesh.tp_rank}"
        folder.mkdir()
        bind(checkpoint, folder, DType.F32, quant, mesh)
        weights = BoundWeights.open(folder)
        for part, size in (("q", 16), ("k", 8), ("v", 8)):
            rows = slice(mesh.tp_rank * size // 2, (mesh.tp_rank + 1) * size // 2)
            found = weights.part("attn.qkv_proj.weight", part)
            expected = source[f"attn.{part}_proj.weight"][rows]
            if quant is None:
                np.testing.assert_array_equal(found, expected)
            else:
                scales = weights.part("attn.qkv_proj.scale", part)
                close = dequantize_rows(found.astype(np.int8), scales)
                assert np.abs(close - expected).max() < 0.5
        if quant is None:
            columns = slice(mesh.tp_rank * 8, mesh.tp_rank * 8 + 8)
            found = weights.whole("attn.o_proj.weight")
            np.testing.assert_array_equal(found, source["attn.o_proj.weight"][:, columns])


@pytest.mark.parametrize("quant", [None, INT8, INT4], ids=str)
def test_the_same_again_is_the_same_bytes(
    checkpoint: Path, tmp_path: Path, quant: QuantFormat | None
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, elsewhere)
    os.utime(elsewhere / "model.safetensors", (1, 1))
    files, contents = [], []
    for i, (source, threads) in enumerate([(checkpoint, 1), (elsewhere, 4)]):
        folder = tmp_path / str(i)
        folder.mkdir()
        contents.append(bind(source, folder, DType.BF16, quant, threads=threads)["content"])
        files.append((folder / "weights.safetensors").read_bytes())
    assert files[0] == files[1]
    assert contents[0] == contents[1]


def test_other_weights_have_another_content(checkpoint: Path, folder: Path) -> None:
    first = bind(checkpoint, folder)["content"]
    changed = arrays()
    changed["norm.weight"][3] += 1
    save_file(changed, checkpoint / "model.safetensors")
    assert bind(checkpoint, folder)["content"] != first


def test_the_file_is_plain_safetensors(checkpoint: Path, folder: Path) -> None:
    """Any reader of the format can open it; arrays lie at multiples of 64 bytes."""
    bind(checkpoint, folder, DType.F32, INT4)
    with safe_open(folder / "weights.safetensors", "numpy") as library:
        names = set(library.keys())
        assert {"attn.qkv_proj.weight", "attn.qkv_proj.scale", "embed.weight"} <= names
        assert library.get_tensor("attn.qkv_proj.weight").dtype == np.uint8
        slots_ = json.loads(library.metadata()["paddock.slots"])
    assert slots_["attn.qkv_proj.weight"]["dtype"] == "i4"
    weights = BoundWeights.open(folder)
    assert all(weights.location(name).offset % 64 == 0 for name in names)


def test_progress(checkpoint: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    thread = threading.get_ident()

    def report(done: int, total: int) -> None:
        assert threading.get_ident() == thread
        seen.append((done, total))

    bind(checkpoint, folder, progress=report)
    size = sum(a.nbytes for a in arrays().values()) + arrays()["embed.weight"].nbytes
    assert seen[-1] == (size, size)


def test_verify_finds_damage(checkpoint: Path, folder: Path) -> None:
    bind(checkpoint, folder, DType.F32)
    BoundWeights.open(folder).verify()
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightError, match=r": \S+: its data is damaged; build again"):
        BoundWeights.open(folder).verify()


# The checkpoint under a reference.


def test_a_touched_checkpoint_is_the_same(checkpoint: Path, folder: Path) -> None:
    bind(checkpoint, folder)
    os.utime(checkpoint / "model.safetensors", (1, 1))
    assert BoundWeights.open(folder).whole("norm.weight").shape == (32,)


@pytest.mark.parametrize("how", ["data", "size"])
def test_a_changed_checkpoint_is_noticed(checkpoint: Path, folder: Path, how: str) -> None:
    bind(checkpoint, folder)
    changed = arrays()
    if how == "data":
        changed["norm.weight"][3] += 1
    else:
        changed["more"] = changed["norm.weight"]
    save_file(changed, checkpoint / "model.safetensors")
    with pytest.raises(WeightError, match=r"model.safetensors: this file of the checkpoint chang"):
        BoundWeights.open(folder)


def test_a_moved_checkpoint(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    bind(checkpoint, folder)
    moved = checkpoint.rename(tmp_path / "moved")
    with pytest.raises(WeightError, match=r"was bound and is gone; put it back, or build again"):
        BoundWeights.open(folder)
    assert BoundWeights.open(folder, moved).whole("norm.weight").shape == (32,)


def test_a_misaligned_tensor_is_copied(tmp_path: Path, folder: Path) -> None:
    header = json.dumps(
        {
            "flag": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
            "norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    data = b"\1" + np.array([1.5, 2.5], np.float32).tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    tensors = {n: t for n, t in Checkpoint.open(tmp_path).tensors.items() if n != "flag"}
    manifest = write(prove({"norm.weight": Parameter((2,))}, tensors, ()), folder, DType.F32)
    assert manifest["references"] == {}
    assert BoundWeights.open(folder).whole("norm.weight").tolist() == [1.5, 2.5]


# Damage to the folder itself.


def test_damaged_folders(checkpoint: Path, folder: Path) -> None:
    with pytest.raises(WeightError, match=r"weights.json: cannot be read: No such file"):
        BoundWeights.open(folder)
    bind(checkpoint, folder, DType.F32)
    good, text = (
        (folder / "weights.safetensors").read_bytes(),
        (folder / "weights.json").read_text(),
    )

    def damaged(data: bytes, manifest: str, message: str) -> None:
        (folder / "weights.safetensors").write_bytes(data)
        (folder / "weights.json").write_text(manifest)
        with pytest.raises(WeightError, match=message):
            BoundWeights.open(folder)

    damaged(good[:-5], text, "do not lie within")
    damaged(good + b"x", text, "belong to none")
    damaged(b"", text, "too few for a safetensors file")
    damaged(good, text[:-20], "is damaged; build again")
    damaged(good, "[]", "version None, this Paddock has 1")
    damaged(good, text.replace('"version": 1', '"version": 2'), "version 2, this Paddock has 1")
    damaged(good, '{"version": 1}', "is damaged: it has no header_sha256")
    other = good.replace(b'\\"axis\\":1', b'\\"axis\\":0')
    assert other != good
    damaged(other, text, "is not the file that weights.json describes")
    header = json.loads(text)
    length = 8 + int.from_bytes(other[:8], "little")
    header["header_sha256"] = hashlib.sha256(other[:length].replace(b"axis", b"exis")).hexdigest()
    damaged(other.replace(b"axis", b"exis"), json.dumps(header), "its table of slots is damaged")


def test_names_that_are_not_there(checkpoint: Path, folder: Path) -> None:
    bind(checkpoint, folder, DType.F32)
    weights = BoundWeights.open(folder)
    with pytest.raises(WeightError, match=r"holds no 'norm.wight'; nearest is 'norm.weight'"):
        weights.whole("norm.wight")
    with pytest.raises(WeightError, match=r"attn.qkv_proj.weight has 'q', 'k', 'v', not 'x'"):
        weights.part("attn.qkv_proj.weight", "x")


# What goes wrong while writing.


def test_nonfinite_weights_are_named(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "bad"
    checkpoint.mkdir()
    bad = arrays()
    bad["norm.weight"][3] = np.nan
    bad["attn.k_proj.weight"][0, 0] = np.inf
    save_file(bad, checkpoint / "model.safetensors")
    for dtype, quant in (
        (DType.BF16, None),
        (DType.F32, None),
        (DType.F16, INT8),
        (DType.F32, INT4),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            manifest = bind(checkpoint, folder, dtype, quant)
        assert manifest["nonfinite"] == ["attn.qkv_proj.weight", "norm.weight"]
        (record,) = caplog.records
        assert record.getMessage().startswith(
            "attn.qkv_proj.weight and 1 more slots: weights that are NaN or infinite"
        )
        if quant:  # what is not finite is taken as 0, its neighbours stay
            weights = BoundWeights.open(folder)
            assert np.isfinite(weights.whole("attn.qkv_proj.scale")).all()
            row = weights.part("attn.qkv_proj.weight", "k")[0].astype(np.int8)
            assert row[0] == 0
            assert row[1:].any()


def test_overflow_on_conversion_is_named(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"norm.weight": np.array([1e6, 1], np.float32)}, tmp_path / "model.safetensors")
    tensors = Checkpoint.open(tmp_path).tensors
    manifest = write(prove({"norm.weight": Parameter((2,))}, tensors, ()), folder, DType.F16)
    assert manifest["nonfinite"] == ["norm.weight"]
    assert "norm.weight: weights that are NaN" in caplog.text


def test_a_disk_that_fills_up_leaves_nothing(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.pwrite, 0

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    bind(checkpoint, folder, DType.F32)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(WeightError, match=r"cannot be written: no room for .* GB \(No space left"):
        bind(checkpoint, folder, DType.F32, INT8)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_limit_on_file_size(checkpoint: Path, folder: Path) -> None:
    """The kernel refuses, before anything is converted."""
    script = (
        "import sys, resource; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import importlib.util as u\n"
        "spec = u.spec_from_file_location('t', sys.argv[2]); t = u.module_from_spec(spec)\n"
        "sys.modules['t'] = t; spec.loader.exec_module(t)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: t.bind(Path(sys.argv[3]), Path(sys.argv[4]), t.DType.F32)\n"
        "except t.WeightError as error: print(error)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), __file__, str(checkpoint), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "cannot be written: no room for" in done.stdout, done.stderr
    assert list(folder.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB of memory as a file system, where this user may mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
def test_a_disk_that_is_too_small(
    tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """It is noticed before anything is converted, whether or not the disk says what is free."""
    if not told:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pytest.fail("it was written to"))
    save_file({"x": np.zeros((256, 256), np.float32)}, tmp_path / "model.safetensors")
    binding = prove({"x": Parameter((256, 256))}, Checkpoint.open(tmp_path).tensors, ())
    with pytest.raises(WeightError, match=r"no room for 0\.00 GB"):
        write(binding, tiny_disk, DType.F64)
    assert list(tiny_disk.iterdir()) == []


def test_an_interrupt_leaves_nothing(checkpoint: Path, folder: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bind(checkpoint, folder, DType.F32, progress=interrupt)
    assert list(folder.iterdir()) == []


def test_odd_columns_do_not_pack(tmp_path: Path, folder: Path) -> None:
    save_file({"x": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    slot = Parameter((2, 3), quantizable=True, quant=QuantFormat(DType.I4))
    binding = prove({"x": slot}, Checkpoint.open(tmp_path).tensors, ())
    with pytest.raises(WeightError, match="x: 3 columns do not pack two int4 to a byte"):
        write(binding, folder, DType.F32)


def test_memory_stays_bounded(tmp_path: Path, folder: Path) -> None:
    """Converting 64 MB takes a few chunks of memory, beside pages that the system may drop."""
    script = (
        "import sys, resource, numpy as np; from pathlib import Path\n"
        "from paddock.graph import DType, Parameter, QuantFormat\n"
        "from paddock.weights import Checkpoint, prove, write\n"
        "def anonymous():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return int(text.split('RssAnon:')[1].split()[0]) / 1e3\n"
        "slots = {'x.weight': Parameter((4096, 4096), quant=QuantFormat(DType.I4, 128))}\n"
        "binding = prove(slots, Checkpoint.open(sys.argv[1]).tensors, ())\n"
        "peak, before = 0, anonymous()\n"
        "def watch(done, total):\n"
        "    global peak; peak = max(peak, anonymous() - before)\n"
        "write(binding, sys.argv[2], DType.F32, progress=watch, threads=2)\n"
        "print(peak)\n"
    )
    x = np.zeros((4096, 4096), np.float32)
    x[:, ::7] = 1
    save_file({"x.weight": x}, tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24, "MB of anonymous memory"


def test_parts_in_tensors_of_their_own_are_joined_for_the_whole(
    checkpoint: Path, folder: Path
) -> None:
    """As a fused bias beside a quantized weight is read."""
    bind(checkpoint, folder, DType.F32)
    weights = BoundWeights.open(folder)
    parts = [weights.stored("attn.qkv_proj.weight", part) for part in "qkv"]
    np.testing.assert_array_equal(weights.stored("attn.qkv_proj.weight"), np.concatenate(parts))
