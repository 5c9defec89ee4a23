"""What was tuned is found again by the next process, and never makes an engine fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddock.engines.cuda.tuned import Tuned

H200 = "NVIDIA H200 cublasLt 13.2"


def test_the_next_process_finds_it(tmp_path: Path) -> None:
    file = tmp_path / "machine" / "products.json"
    Tuned(file, H200).put("1 x 4096", 3)
    found = Tuned(file, H200)
    assert found.get("1 x 4096") == 3
    assert found.get("2 x 4096") is None


def test_processes_that_tune_at_once_keep_each_others(tmp_path: Path) -> None:
    file = tmp_path / "products.json"
    one, other = Tuned(file, H200), Tuned(file, H200)
    one.put("1 x 4096", 3)
    other.put("2 x 4096", 1)
    both = Tuned(file, H200)
    assert (both.get("1 x 4096"), both.get("2 x 4096")) == (3, 1)


def test_another_gpu_or_release_finds_nothing_and_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "products.json"
    Tuned(file, H200).put("1 x 4096", 3)
    other = Tuned(file, "NVIDIA H100 cublasLt 13.2")
    assert other.get("1 x 4096") is None
    other.put("1 x 4096", 2)
    assert Tuned(file, H200).get("1 x 4096") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        json.dumps({"machine": H200}),
        json.dumps({"machine": H200, "chosen": [1]}),
        json.dumps({"machine": H200, "chosen": {"1 x 4096": "3", "2 x 4096": -1}}),
    ],
)
def test_a_damaged_file_counts_as_empty(tmp_path: Path, content: str) -> None:
    file = tmp_path / "products.json"
    file.write_text(content)
    tuned = Tuned(file, H200)
    assert tuned.get("1 x 4096") is None
    assert tuned.get("2 x 4096") is None
    tuned.put("1 x 4096", 4)
    assert Tuned(file, H200).get("1 x 4096") == 4


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "machine").write_text("a file stands where the folder would be")
    tuned = Tuned(tmp_path / "machine" / "products.json", H200)
    tuned.put("1 x 4096", 3)
    tuned.put("2 x 4096", 3)
    assert tuned.get("1 x 4096") == 3
    assert len(caplog.records) == 1
    assert "is not kept" in caplog.text
