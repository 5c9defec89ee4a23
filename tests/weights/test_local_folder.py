"""`fetch` where the checkpoint is a folder: the hub is not asked, nor its client imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import paddock
from paddock.weights import WeightError, fetch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_is_taken_as_it_is(folder: Path) -> None:
    found = fetch(str(folder))
    assert (found.folder, found.repo, found.commit) == (folder, None, None)


def test_a_folder_wins_over_a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    named = f"{folder.parent.name}/{folder.name}"
    assert fetch(named).folder == Path(named)


def test_the_config_is_shown(folder: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    fetch(str(folder), check=seen.append)
    assert seen == [{"model_type": "llama"}]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "config.json: not JSON"),
        (b"\xff", "config.json: not JSON"),
        (b"[" * 100_000, "config.json: not JSON"),
        (b"[]", "config.json: expected a JSON object, found list"),
    ],
)
def test_bad_configs(folder: Path, config: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(config)
    with pytest.raises(WeightError, match=message):
        fetch(str(folder))


def test_folders_that_are_no_checkpoints(folder: Path) -> None:
    with pytest.raises(WeightError, match="a folder has no revision 'main'; leave it out"):
        fetch(str(folder), revision="main")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightError, match="Python pickles"):
        fetch(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(WeightError, match=r"no config.json; is this the folder of a checkpoint\?"):
        fetch(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "is a file; give the folder that holds config.json"),
        ("pytorch_model.bin", "Python pickles"),
        ("model.gguf", "in llama.cpp's format"),
    ],
)
def test_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightError, match=message):
        fetch(str(tmp_path / name))


def test_the_hub_client_is_not_imported_for_a_folder() -> None:
    demo = Path(paddock.__file__).parent / "demo"
    script = (
        "import sys; from paddock.weights import Checkpoint, fetch\n"
        "Checkpoint.open(fetch(sys.argv[1]).folder)\n"
        "print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(demo)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.strip() == "False"
