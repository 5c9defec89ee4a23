"""The wheel, the sdist and a zip of the sources without links install and run elsewhere."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's output; what it prints on failure is in the assertion."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed and new files of this checkout, as a download without links has them."""
    folder = tmp_path_factory.mktemp("sources") / "paddock-main"
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.splitlines():
        origin = ROOT / name
        if origin.is_symlink():  # what GitHub's zip makes of a link: a file with its target
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(os.readlink(origin))
        elif origin.is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(origin.read_bytes())
    return folder


@pytest.fixture(scope="module")
def distributions(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist made from the sources, and a wheel made from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    backend = "from setuptools import build_meta as b; print(b.build_sdist({!r}))"
    builder = out / "builder"
    venv.create(builder, with_pip=True)
    python = builder / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "setuptools>=77", "wheel", cwd=out)
    run(python, "-c", backend.format(str(out)), cwd=sources)
    (sdist,) = out.glob("*.tar.gz")
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, sdist, cwd=out)
    (wheel,) = out.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "zip": sources}


def test_the_wheel_holds_every_room_and_nothing_else(distributions: dict[str, Path]) -> None:
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"paddock", f"paddock-{_version(distributions['wheel'])}.dist-info"}
    for expected in (
        "paddock/py.typed",
        "paddock/demo/model.safetensors",
        "paddock/demo/README.md",
        "paddock/recipes/demo.yaml",
        "paddock/graph/ops/attention.py",
        "paddock/engines/openvino/__init__.py",
    ):
        assert expected in names
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    rooms = ("graph/", "layers/", "models/", "weights/", "engines/", "runtime/", "recipes/")
    modules = {
        name if name.startswith("paddock/") else f"paddock/{name}"
        for name in tracked.splitlines()
        if name.endswith((".py", ".yaml")) and name.startswith((*rooms, "paddock/"))
    }
    assert modules - set(names) == set()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["wheel", "sdist", "zip"])
def test_installs_and_generates_in_a_clean_environment(
    distributions: dict[str, Path], form: str, tmp_path: Path
) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", distributions[form], cwd=tmp_path)
    text = run(
        environment / "bin" / "paddock",
        *("generate", "demo", "--prompt", "The ls command", "--max-tokens", "8", "--temperature"),
        "0",
        cwd=tmp_path,
        PADDOCK_HOME=str(tmp_path / "home"),
    )
    assert text.strip()
    listing = run(environment / "bin" / "paddock", "list", cwd=tmp_path)
    assert "demo" in listing
    assert run(python, "-c", "import paddock; print(paddock.__file__)", cwd=tmp_path).startswith(
        str(environment)
    )


def _version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


if sys.platform == "win32":  # venvs have no bin/ there, and nobody has tried
    pytest.skip("the install tests know POSIX environments only", allow_module_level=True)
