from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from paddock.graph import Array
from paddock.weights import SafetensorsFile, WeightError
from paddock.weights.safetensors_file import MAX_HEADER

Header = dict[str, Any]


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


GOOD: Header = {
    "__metadata__": {"format": "pt"},
    "b": entry("F16", [3], 16, 22),
    "a": entry("F32", [2, 2], 0, 16),
    "empty": entry("BF16", [0, 7], 16, 16),
}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    random_ = np.random.default_rng(0)
    arrays: dict[str, Array] = {
        "f64": random_.standard_normal((3, 5)),
        "f32": random_.standard_normal((2, 3, 4)).astype(np.float32),
        "f16": random_.standard_normal(7).astype(np.float16),
        "bf16": random_.standard_normal((4, 4)).astype(ml_dtypes.bfloat16),
        "f8": random_.standard_normal((4, 4)).astype(ml_dtypes.float8_e4m3fn),
        "i64": random_.integers(-9, 9, (2, 2)),
        "u8": random_.integers(0, 255, 11).astype(np.uint8),
        "flag": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"who": "test"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"who": "test"}
    assert set(file.tensors) == set(arrays)
    for name, array in arrays.items():
        info = file.tensors[name]
        assert info.shape == array.shape
        for found in (info.read(), file.view(name)):
            assert found.dtype == array.dtype
            assert found.tobytes() == array.tobytes()
    assert file.bytes_read == sum(array.nbytes for array in arrays.values())


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    file = SafetensorsFile(file_of(tmp_path / "x.safetensors", GOOD, bytes(22)))
    assert list(file.tensors) == ["a", "empty", "b"]
    with safe_open(tmp_path / "x.safetensors", "numpy") as library:
        assert set(library.keys()) == set(file.tensors)


def test_a_slice_reads_its_own_bytes_alone(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int32).reshape(6, 10)
    save_file({"x": array}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    part = file.read("x", ((1, 4), (7, 9)))
    np.testing.assert_array_equal(part, array[1:4, 7:9])
    assert part.flags.owndata
    assert file.bytes_read == part.nbytes == 24


def test_views_are_not_copies_and_cannot_be_written(tmp_path: Path) -> None:
    save_file({"x": np.arange(4, dtype=np.int32)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    view = file.view("x")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    assert np.shares_memory(view, np.frombuffer(file.map(), np.uint8))
    assert file.bytes_read == 0


def test_data_survives_release(tmp_path: Path) -> None:
    array = np.arange(100_000, dtype=np.int32)
    save_file({"x": array}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    view = file.view("x")
    view.sum()
    file.release("x")
    np.testing.assert_array_equal(view, array)


def test_odd_offsets(tmp_path: Path) -> None:
    """Writers need not align tensors."""
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    data = b"\x07" + np.array([1.5, -2.0], np.float32).tobytes()
    file = SafetensorsFile(file_of(tmp_path / "x.safetensors", header, data))
    assert file.tensors["b"].read().tolist() == [1.5, -2.0]


def without(name: str) -> Header:
    return {key: value for key, value in GOOD.items() if key != name}


BAD: list[tuple[str, Header | bytes, int, int | None, str]] = [
    # case, header, bytes of data, announced length, message
    ("huge header", GOOD, 22, MAX_HEADER + 1, "announce a header of 100000001 bytes"),
    ("absurd header", GOOD, 22, (1 << 64) - 1, "announce a header of 18446744073709551615"),
    ("header past the end", GOOD, 22, 10_000, "is said to be 10000 bytes long, but the file ends"),
    ("not JSON", b"{nope}", 0, None, "not a safetensors file: its header: Expecting"),
    ("not UTF-8", b'{"\xff": 1}', 0, None, "its header: 'utf-8' codec"),
    ("not an object", b"[1, 2]", 0, None, "header is not a JSON object"),
    ("empty header", b"", 0, None, "its header: Expecting value"),
    ("NaN", b'{"a": NaN}', 0, None, "NaN is not JSON"),
    ("deep", b"[" * 200_000, 0, None, "not a safetensors file: its header"),
    ("long number", b'{"a": ' + b"9" * 5000 + b"}", 0, None, "not a safetensors file"),
    (
        "twice",
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        1,
        None,
        "the header names 'a' twice",
    ),
    ("a field twice", b'{"a":{"dtype":"U8","dtype":"I8"}}', 0, None, "names 'dtype' twice"),
    ("metadata", {"__metadata__": {"a": 1}}, 0, None, "__metadata__ is not an object of strings"),
    ("metadata list", {"__metadata__": []}, 0, None, "__metadata__ is not an object of strings"),
    ("no name", {"": entry("U8", [1], 0, 1)}, 1, None, "'': not a tensor's name"),
    ("long name", {"x" * 2000: entry("U8", [1], 0, 1)}, 1, None, "found 2000"),
    ("control", {"a\nb": entry("U8", [1], 0, 1)}, 1, None, r"'a\\nb': not a tensor's name"),
    ("surrogate", b'{"\\ud800": {}}', 0, None, "not a tensor's name"),
    ("entry", {"a": [1]}, 0, None, "'a': its entry is not {dtype, shape, data_offsets}"),
    ("extra field", {"a": {**entry("U8", [1], 0, 1), "x": 1}}, 1, None, "its entry is not"),
    ("dtype", {"a": entry("F7", [1], 0, 1)}, 1, None, "'a': unknown dtype 'F7'; the format has"),
    ("dtype type", {"a": entry([], [1], 0, 1)}, 1, None, r"unknown dtype \[\]"),  # type: ignore[arg-type]
    ("negative", {"a": entry("U8", [-1], 0, 1)}, 1, None, r"shape \[-1\] is not a list"),
    ("float", {"a": entry("U8", [1.0], 0, 1)}, 1, None, r"shape \[1.0\] is not a list"),
    ("bool", {"a": entry("U8", [True], 0, 1)}, 1, None, r"shape \[True\] is not a list"),
    ("huge", {"a": entry("U8", [1 << 63], 0, 1)}, 1, None, "shape .* is not a list"),
    ("product", {"a": entry("F32", [1 << 31, 1 << 33], 0, 16)}, 16, None, "takes 7378697629"),
    ("many axes", {"a": entry("U8", [1] * 17, 0, 1)}, 1, None, "is not a list of at most 16"),
    ("offsets", {"a": {**entry("U8", [1], 0, 1), "data_offsets": [0]}}, 1, None, "are not"),
    ("reversed", {"a": entry("U8", [1], 1, 0)}, 1, None, r"\[1, 0\] do not lie within the 1 b"),
    ("beyond", {"a": entry("U8", [9], 0, 9)}, 4, None, r"\[0, 9\] do not lie within the 4 bytes"),
    ("too few", {"a": entry("F32", [2, 2], 0, 12)}, 12, None, r"F32 \[2, 2\] takes 16 bytes.* 12"),
    ("half bytes", {"a": entry("F4", [3], 0, 1)}, 1, None, r"F4 \[3\] takes 2 bytes"),
    (
        "overlap",
        {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 3, 7)},
        7,
        None,
        "'b': its data at byte 3 overlaps that of 'a', which ends at byte 4",
    ),
    (
        "gap",
        {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)},
        9,
        None,
        "'b': its data at byte 5 leaves a gap after that of 'a'",
    ),
    ("gap at first", {"a": entry("U8", [1], 1, 2)}, 2, None, "a gap after that of the header"),
    ("trailing", GOOD, 25, None, r"3 bytes after the last tensor \('b'\) belong to none"),
    ("truncated", GOOD, 20, None, r"'b': data_offsets \[16, 22\] do not lie within the 20 bytes"),
]


@pytest.mark.parametrize(
    ("header", "data", "length", "message"), [c[1:] for c in BAD], ids=[c[0] for c in BAD]
)
def test_bad_files(
    tmp_path: Path, header: Header | bytes, data: int, length: int | None, message: str
) -> None:
    path = file_of(tmp_path / "bad.safetensors", header, bytes(data), length)
    with pytest.raises(WeightError, match=message) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_too_short_for_a_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(WeightError, match=f"{size} bytes are too few"):
        SafetensorsFile(path)


def test_absent_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="cannot be read: No such file"):
        SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(WeightError, match="cannot be read: Is a directory"):
        SafetensorsFile(tmp_path)


def test_a_type_that_nobody_can_read_is_refused_when_read(tmp_path: Path) -> None:
    header = {"a": entry("F4", [2, 4], 0, 4)}
    file = SafetensorsFile(file_of(tmp_path / "x.safetensors", header, bytes(4)))
    with pytest.raises(WeightError, match="a: F4 elements cannot be read"):
        file.tensors["a"].read()


def test_a_file_that_shrinks_before_it_is_mapped(tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.safetensors", GOOD, bytes(22))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightError, match="its size changed"):
        file.tensors["a"].read()


def mutations(text: bytes, random_: random.Random) -> bytes:
    """A header with a few bytes changed, cut, doubled, or words of the format exchanged."""
    data = bytearray(text)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(6):
            case 0:
                data[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                del data[at : at + random_.randint(1, 20)]
            case 2:
                data[at:at] = data[at : at + random_.randint(1, 30)]
            case 3:
                numbers = list(re.finditer(rb"\d+", bytes(data)))
                if numbers:
                    found = random_.choice(numbers)
                    values = [0, 1, 2**31, 2**63, 2**64, 10**400, random_.randrange(100)]
                    new = str(random_.choice(values)).encode()
                    data[found.start() : found.end()] = random_.choice([b"", b"-"]) + new
            case 4:
                words = [b"F32", b"null", b"[]", b"{}", b'"', b"1e999", b"Infinity", b"\\u0000"]
                data[at:at] = random_.choice(words)
            case 5:
                codes = list(re.finditer(rb"F32|F16|BF16", bytes(data)))
                if codes:
                    found = random_.choice(codes)
                    code = random_.choice([b"F64", b"I8", b"F4", b"F8_E4M3", b"X"])
                    data[found.start() : found.end()] = code
    return bytes(data)


def test_mutated_headers_raise_nothing_but_weight_errors(tmp_path: Path) -> None:
    random_ = random.Random(20_261_123)
    text = json.dumps(GOOD).encode()
    path = tmp_path / "x.safetensors"
    refused = 0
    for _ in range(2000):
        mutated = mutations(text, random_)
        length = len(mutated) if random_.random() < 0.9 else random_.randrange(1 << 9)
        file_of(path, mutated, bytes(random_.choice([22, 22, 22, 0, 21, 40])), length)
        try:
            file = SafetensorsFile(path)
            for name, info in file.tensors.items():
                assert file.view(name).nbytes == info.nbytes
        except WeightError:
            refused += 1
    assert 1000 < refused < 2000  # some mutations are harmless, most are not


def test_random_bytes_raise_nothing_but_weight_errors(tmp_path: Path) -> None:
    random_ = random.Random(7)
    path = tmp_path / "x.safetensors"
    for _ in range(500):
        path.write_bytes(random_.randbytes(random_.randrange(64)))
        with pytest.raises(WeightError):
            SafetensorsFile(path)
