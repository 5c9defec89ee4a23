"""Safetensors files and indices of any content: they are read, or refused by a `WeightError`."""

# What is drawn from is easier to read in full lines.

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.weights.checkpoint import INDEX, SINGLE, Checkpoint, read_index
from paddock.weights.errors import WeightError
from paddock.weights.safetensors_file import SafetensorsFile
from tests.fuzz.bounds import bounded, fuzz

NUMBERS = st.one_of(st.integers(-2, 70), st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63)]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "X",
    "",
]
NAMES = st.one_of(st.sampled_from(["a", "b.weight", "__metadata__"]), st.text(max_size=8))


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly of the form; sizes that fit each other where nothing else was drawn."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(NAMES, max_size=4)):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(
            st.one_of(st.lists(st.integers(0, 3), max_size=3), st.lists(NUMBERS, max_size=3))
        )
        size = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
        for length in shape:
            size *= length
        size = min(max(size, 0), 4096)
        entry: Any = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
        if draw(st.integers(0, 5)) == 0:
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JSON)
        if draw(st.integers(0, 9)) == 0:
            entry = draw(JSON)
        header[name] = entry
    return header


@st.composite
def files(draw: st.DrawFn) -> bytes:
    text = json.dumps(draw(headers())).encode()
    if draw(st.integers(0, 3)) == 0:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.binary(max_size=6)) + text[cut + draw(st.integers(0, 4)) :]
    length = draw(st.one_of(st.just(len(text)), NUMBERS)) % 2**64
    return length.to_bytes(8, "little") + text + bytes(draw(st.integers(0, 200)))


def _read_all(file: SafetensorsFile) -> None:
    for name, tensor in file.tensors.items():
        assert tensor.offset + tensor.nbytes <= file.size
        try:
            array = file.view(name)
            assert array.nbytes == tensor.nbytes
            file.read(name, tuple((0, length) for length in array.shape))
            file.release(name)
        except WeightError as error:
            message = str(error)
            assert "cannot be read" in message


@fuzz(300)
@given(files())
def test_any_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / SINGLE
        path.write_bytes(data)
        try:
            _read_all(SafetensorsFile(path))
        except WeightError as error:
            message = str(error)
            assert len(message) < 2000


@fuzz(150)
@given(data=st.data())
def test_two_files_of_which_one_is_right(data: st.DataObject) -> None:
    """Enough bytes for what the header says, so that what is read is more often whole."""
    header = data.draw(headers())
    text = json.dumps(header).encode()
    ends = [
        entry["data_offsets"][1]
        for entry in header.values()
        if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list)
        and len(entry["data_offsets"]) == 2 and isinstance(entry["data_offsets"][1], int)
    ]  # fmt: skip
    size = min(max([0, *ends]), 1 << 16)
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / SINGLE
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        try:
            _read_all(SafetensorsFile(path))
        except WeightError as error:
            message = str(error)
            assert len(message) < 2000


PLACES = st.one_of(
    st.sampled_from([SINGLE, "../a.safetensors", "/etc/passwd", ".safetensors", "a\0.safetensors"]),
    st.text(max_size=6).map(lambda text: text + ".safetensors"),
    JSON,
)
INDICES = st.one_of(
    st.fixed_dictionaries(
        {"weight_map": st.dictionaries(NAMES, PLACES, max_size=4)}, optional={"metadata": JSON}
    ),
    JSON,
)


@fuzz(300)
@given(INDICES, st.integers(0, 200), st.binary(max_size=3))
def test_any_index(content: Any, cut: int, junk: bytes) -> None:
    text = json.dumps(content).encode()
    if junk:
        text = text[:cut] + junk + text[cut:]
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / INDEX
        path.write_bytes(text)
        (Path(folder) / SINGLE).write_bytes((2).to_bytes(8, "little") + b"{}")
        try:
            placed = read_index(path)
        except WeightError as error:
            message = str(error)
            assert len(message) < 2000
        else:
            assert all("/" not in shard for shard in placed.values())
        (Path(folder) / SINGLE).rename(Path(folder) / "one.safetensors")
        with contextlib.suppress(WeightError):
            Checkpoint.open(folder)


def test_an_index_that_is_absurdly_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with bounded(), pytest.raises(WeightError, match="bytes"):
        read_index(path)
