"""Architectures from inside and outside: entry points, `register`, and modules that fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paddock.models import registry
from paddock.models.config import ConfigError
from tests.models.parity_cases import LLAMA

MODULE = '''
"""Llama under another name."""

from paddock.models.llama import LlamaForCausalLM


class ParrotForCausalLM(LlamaForCausalLM):
    pass
'''
PARROT = LLAMA | {"architectures": ["ParrotForCausalLM"]}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path, as an installed package is, for modules and their metadata."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    yield tmp_path
    for name in ("parrot", "broken"):
        sys.modules.pop(name, None)


def install(folder: Path, name: str, text: str, *, declares: dict[str, str]) -> None:
    (folder / f"{name}.py").write_text(text)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in declares.items()]
    (metadata / "entry_points.txt").write_text(
        "\n".join([f"[{registry.ENTRY_POINT_GROUP}]", *lines, ""])
    )


def test_an_installed_package_is_found_by_its_entry_point(package: Path) -> None:
    with pytest.raises(ConfigError, match="'ParrotForCausalLM' is not in the zoo"):
        registry.read(PARROT)
    install(package, "parrot", MODULE, declares={"ParrotForCausalLM": "parrot"})
    architecture = registry.read(PARROT)
    assert architecture.name == "ParrotForCausalLM"
    assert architecture.weight_map == "paddock.weights.llama"
    assert type(architecture.build()).__module__ == "parrot"
    assert "ParrotForCausalLM" in registry.known()


def test_nothing_is_imported_before_it_is_asked_for(package: Path) -> None:
    install(package, "parrot", MODULE, declares={"ParrotForCausalLM": "parrot"})
    registry.read(LLAMA)
    assert "parrot" not in sys.modules


def test_a_package_cannot_take_the_place_of_an_architecture_of_the_zoo(package: Path) -> None:
    install(package, "parrot", MODULE, declares={"LlamaForCausalLM": "parrot"})
    assert type(registry.read(LLAMA).build()).__module__ == "paddock.models.llama"


def test_a_module_registers_itself(package: Path) -> None:
    (package / "parrot.py").write_text(MODULE)
    registry.register("ParrotForCausalLM", "parrot")
    assert type(registry.read(PARROT).build()).__module__ == "parrot"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_library",
            "its module broken cannot be imported: No module named 'no_such",
        ),
        ("", "its module broken has no class ParrotForCausalLM; see docs/add-a-model.md"),
        ("class ParrotForCausalLM: pass", "its module broken has no ParrotForCausalLM.Config"),
        (
            "class ParrotForCausalLM:\n    Config = None",
            "its module broken has no ParrotForCausalLM.weight_map",
        ),
    ],
)
def test_a_module_that_does_not_hold_what_it_promises(
    package: Path, text: str, message: str
) -> None:
    (package / "broken.py").write_text(text)
    registry.register("ParrotForCausalLM", "broken")
    with pytest.raises(ConfigError, match=f"architecture 'ParrotForCausalLM': {message}"):
        registry.read(PARROT)


def test_a_checkpoint_names_a_class_and_no_module() -> None:
    """What stands in `architectures` is looked up, never imported."""
    for name in ("os", "paddock.models.llama", "paddock.models.llama:LlamaForCausalLM", "../x"):
        with pytest.raises(ConfigError, match="is not in the zoo"):
            registry.read(LLAMA | {"architectures": [name], "auto_map": {"AutoModel": name}})
