"""The NumPy engine: nothing but the ops' own definitions. Slow and exact."""

from paddock.engines.reference.engine import CAPABILITIES, NAME, build, load, version

__all__ = ["CAPABILITIES", "NAME", "build", "load", "version"]
