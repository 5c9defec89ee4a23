"""The CPU engine that OpenVINO compiles: packed steps, paged cache."""

from paddock.engines.openvino import telemetry as telemetry  # before any other import of openvino
from paddock.engines.openvino.engine import CAPABILITIES, NAME, build, load, version

__all__ = ["CAPABILITIES", "NAME", "build", "load", "version"]
