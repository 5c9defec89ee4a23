"""The packages that build TensorRT networks, and what each of them can do.

`tensorrt` 11 is for data-centre GPUs, `tensorrt_rtx` (TensorRT for RTX, with the interface of
TensorRT 11) for the others; only the latter compiles ahead of time on a machine with no GPU. What
a flavour lacks is known from `FEATURES` before anything is built.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, replace
from typing import Any

from paddock.engines.protocol import BuildError

PACKAGES = ("tensorrt", "tensorrt_rtx")
EXTRAS = {"tensorrt": "paddock[tensorrt]", "tensorrt_rtx": "paddock[rtx]"}


@dataclass(frozen=True)
class Features:
    """What a release has. Each name is that of what it adds to the network's or runtime's API."""

    ragged_attention: bool
    """`add_attention_v2`: causal from the lower right, and a length for each row of keys."""
    plugins: bool
    """`add_plugin_v3`: code of our own in a network."""
    ahead_of_time: bool
    """`set_compute_capability`: compiles for GPUs that are not in the machine."""
    runtime_config: bool
    """Contexts that capture CUDA graphs and specialise kernels by themselves."""
    multi_device_preview: bool
    """Collectives need `PreviewFeature.MULTIDEVICE_RUNTIME_10_16`."""
    strongly_typed_flag: bool
    """Networks are weakly typed unless told otherwise."""


# (package, first version) -> features; the last row of a package that is not above its version.
# From the headers of the releases; the rows of installed packages are held against the packages
# themselves by tests/engines/tensorrt/test_targets.py.
FEATURES: dict[tuple[str, tuple[int, int]], Features] = {
    ("tensorrt", (10, 16)): Features(
        ragged_attention=False,
        plugins=True,
        ahead_of_time=False,
        runtime_config=False,
        multi_device_preview=True,
        strongly_typed_flag=True,
    ),
    ("tensorrt", (11, 0)): Features(
        ragged_attention=True,
        plugins=True,
        ahead_of_time=False,
        runtime_config=False,
        multi_device_preview=False,
        strongly_typed_flag=False,
    ),
    ("tensorrt_rtx", (1, 7)): Features(
        ragged_attention=True,
        plugins=False,
        ahead_of_time=True,
        runtime_config=True,
        multi_device_preview=False,
        strongly_typed_flag=False,
    ),
}


@dataclass(frozen=True)
class Flavour:
    """An imported package."""

    package: str
    version: str
    features: Features
    module: Any

    @property
    def label(self) -> str:
        return f"{self.package} {self.version}"

    def without(self, **features: bool) -> Flavour:
        """The same with other features: what an older release would have to do with."""
        return replace(self, features=replace(self.features, **features))


def installed() -> list[str]:
    """Packages that can be found, without importing them."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is not None]


def find(wanted: str = "auto") -> Flavour:
    """The flavour of this name, or the first one that is installed.

    Raises `BuildError` with the command that installs what is missing.
    """
    if wanted != "auto" and wanted not in PACKAGES:
        raise BuildError(
            f"engine.flavour: there is no {wanted!r}; there are auto, {', '.join(PACKAGES)}"
        )
    there = installed()
    if not there if wanted == "auto" else wanted not in there:
        package = "tensorrt_rtx" if wanted == "auto" else wanted
        raise BuildError(
            f"engine tensorrt needs the package {package}, which is not installed: pip install"
            f" '{EXTRAS[package]}'"
            + (f", or choose engine.flavour={there[0]}, which is" if there else "")
        )
    package = there[0] if wanted == "auto" else wanted
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise BuildError(
            f"the package {package} is installed and cannot be loaded: {error}; install it again:"
            f" pip install --force-reinstall '{EXTRAS[package]}'"
        ) from error
    return Flavour(package, module.__version__, features(package, module.__version__), module)


def features(package: str, version: str) -> Features:
    """What this release has. Raises `BuildError` for one that is too old."""
    major, minor = (int(part) for part in version.split(".")[:2])
    rows = sorted(since for name, since in FEATURES if name == package)
    fitting = [since for since in rows if since <= (major, minor)]
    if not fitting:
        oldest = ".".join(map(str, rows[0]))
        raise BuildError(
            f"{package} {version} has no attention over a cache that Paddock can use; install"
            f" {package} {oldest} or newer: pip install --upgrade '{EXTRAS[package]}'"
        )
    return FEATURES[package, fitting[-1]]
