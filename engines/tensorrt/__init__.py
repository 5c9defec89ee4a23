"""The engine that TensorRT compiles: padded steps, a cache in slots, ahead of time."""

from paddock.engines.tensorrt.engine import (
    CAPABILITIES,
    NAME,
    build,
    check_target,
    compile,
    define,
    estimate,
    key_parts,
    load,
    version,
)

__all__ = [
    "CAPABILITIES",
    "NAME",
    "build",
    "check_target",
    "compile",
    "define",
    "estimate",
    "key_parts",
    "load",
    "version",
]
