"""What pyproject.toml lists is what the repository holds, and what ships is what is listed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
# Folder of each top package, e.g. paddock.graph -> graph.
FOLDERS = {p: ROOT / d for p, d in SETUPTOOLS["package-dir"].items()}
ROOMS = {p.removeprefix("paddock."): d for p, d in FOLDERS.items() if p != "paddock"}


def test_every_package_is_listed() -> None:
    found = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for init in folder.glob("**/__init__.py")
        if not any(part.is_symlink() for part in init.parents)
    }
    assert found == set(SETUPTOOLS["packages"])


def test_every_module_lies_in_a_package() -> None:
    """A folder of modules without __init__.py works from a checkout and is missing in the wheel."""
    for folder in ROOMS.values():
        for module in folder.rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_links_mirror_the_map() -> None:
    links = {p.name: p.resolve() for p in (ROOT / "paddock").iterdir() if p.is_symlink()}
    assert links == ROOMS


def test_links_are_committed_as_links() -> None:
    listed = _git("ls-files", "-s", "paddock")
    modes = {name: mode for mode, _, _, name in (line.split(maxsplit=3) for line in listed)}
    assert {n for n, mode in modes.items() if mode == "120000"} == {f"paddock/{r}" for r in ROOMS}


def test_data_files_are_listed() -> None:
    """Everything in the packages that is no Python is shipped, or is not there."""
    shipped = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in FOLDERS[package].glob(pattern)
    }
    top = {f.name for f in FOLDERS.values()}
    for name in _git("ls-files", *sorted(top)):
        path = ROOT / name
        if path.suffix != ".py" and not path.is_symlink():
            assert path in shipped, name


def test_heavy_libraries_are_left_to_those_who_need_them() -> None:
    """`import paddock` and everything up to the models need NumPy and pydantic, and are quick."""
    program = (
        "import sys, paddock, paddock.models.registry, paddock.layers, paddock.engines.protocol;"
        "heavy = {'openvino', 'torch', 'transformers', 'hydra', 'omegaconf', 'huggingface_hub',"
        " 'tokenizers', 'jinja2', 'safetensors', 'tqdm', 'psutil', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_module_can_be_imported_under_one_name() -> None:
    """In a process of its own, where no plugin or op of the tests helps; and never as `models`."""
    optional = {
        line.split(">=")[0].strip()
        for lines in PROJECT["project"]["optional-dependencies"].values()
        for line in lines
    }
    program = (
        "import importlib, pkgutil, sys, paddock\n"
        "for module in pkgutil.walk_packages(paddock.__path__, 'paddock.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        try:\n"
        "            importlib.import_module(module.name)\n"
        "        except ModuleNotFoundError as error:\n"
        f"            assert error.name.split('.')[0] in {optional!r}, error\n"
        f"assert not {set(ROOMS)!r} & {{name.split('.')[0] for name in sys.modules}}\n"
        f"assert {{'paddock.' + room for room in {set(ROOMS)!r}}} <= set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True)


def test_the_groups_for_development_are_pinned_where_results_depend_on_them() -> None:
    groups = PROJECT["dependency-groups"]
    for name in ("ruff", "mypy", "import-linter"):
        assert any(line.startswith(f"{name}==") for line in groups["check"])
    assert all("==" in line for line in groups["parity"])


@pytest.mark.parametrize("target", ["demo", "test", "check", "golden", "parity", "format"])
def test_make_has_the_targets_that_the_pages_name(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert f"\n{target}:" in makefile
    (phony,) = (line for line in makefile.splitlines() if line.startswith(".PHONY:"))
    assert target in phony.split()


def _git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
