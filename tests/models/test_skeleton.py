"""`paddock new-model` writes files whose own test passes, and fails once the model is wrong."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paddock.__main__ import main
from paddock.models import registry
from paddock.models.config import ConfigError
from paddock.models.skeleton import skeleton

ROOT = Path(__file__).parents[2]
ROOMS = ("paddock", "engines", "graph", "layers", "models", "recipes", "runtime", "weights")


def run_test(folder: Path, test: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def parity() -> None:
    for package in ("torch", "transformers", "openvino"):
        pytest.importorskip(package, reason=f"{package} is not installed: `make parity`")


@pytest.mark.parametrize("like", ["gemma2", "gpt2"])
@pytest.mark.usefixtures("parity")
def test_a_package_passes_its_own_test(tmp_path: Path, like: str) -> None:
    folder = tmp_path / "outside"
    assert main(["new-model", "fresh_one", "--like", like, "--into", str(folder)]) == 0
    done = run_test(folder, "tests/test_fresh_one.py")
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


@pytest.mark.usefixtures("parity")
def test_the_written_test_fails_where_the_model_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "outside"
    assert main(["new-model", "fresh", "--like", "llama", "--into", str(folder)]) == 0
    model = folder / "paddock_fresh" / "model.py"
    own = "\n    @property\n    def attention_scale(self) -> float:\n        return 1.0\n\n\n"
    text = model.read_text("utf-8")
    model.write_text(text.replace("\n\n\nclass FreshFor", f"\n{own}class FreshFor"), "utf-8")
    done = run_test(folder, "tests/test_fresh.py")
    assert done.returncode == 1
    assert "model.layers.0.self_attn.o_proj (input)" in done.stdout


@pytest.mark.usefixtures("parity")
def test_a_checkout_gets_the_files_and_the_registry_s_line(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, symlinks=True, ignore=ignored)
    assert main(["new-model", "fresh", "--like", "qwen3", "--into", str(folder)]) == 0
    text = (folder / "models" / "registry.py").read_text("utf-8")
    ast.parse(text)
    assert text.count('    "FreshForCausalLM": "paddock.models.fresh",\n') == 1
    done = run_test(folder, "tests/models/test_fresh.py", PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stdout


def test_files_of_packages_pass_the_linters(tmp_path: Path) -> None:
    made = skeleton("fresh", "mixtral", inside=False, checkpoint="org/fresh")
    made.write(tmp_path)
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                *command,
                "--config",
                str(ROOT / "pyproject.toml"),
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if "No module named ruff" in done.stderr:
            pytest.skip("ruff is not installed: `make check` installs it")
        assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "fresh.yaml").write_text("mine", "utf-8")
    assert main(["new-model", "fresh", "--like", "llama", "--into", str(tmp_path)]) == 1
    assert "fresh.yaml is there already; nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["fresh.yaml"]


@pytest.mark.parametrize(
    ("name", "like", "said"),
    [
        ("Fresh", "llama", "small letters"),
        ("../x", "llama", "small letters"),
        ("fresh", "lama", "nearest are 'llama'"),
        ("fresh", "bert", "no decoder"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, like: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        skeleton(name, like, inside=False, checkpoint="x")


def test_every_decoder_can_be_begun_from() -> None:
    for name in registry.ARCHITECTURES:
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            made = skeleton("fresh", name, inside=True, checkpoint="x")
            for path, text in made.files.items():
                if path.suffix == ".py":
                    ast.parse(text)
            assert made.class_name.startswith("Fresh")
