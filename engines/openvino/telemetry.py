"""Imports OpenVINO without its telemetry; the package imports this before anything else.

OpenVINO's Python package tells Google Analytics of every import, unless CI is set or the user has
opted out: in a thread and a process of its own, for whose request, of up to 3 s, the interpreter's
end waits (openvino_telemetry, backend_ga4.py). Paddock makes no connection unasked.
"""

import sys
from types import ModuleType

_NAME = "openvino_telemetry"

if "openvino" not in sys.modules and _NAME not in sys.modules:
    # A module that is no package: OpenVINO then takes the stub that it has for where there is none.
    sys.modules[_NAME] = ModuleType(_NAME)
    try:
        import openvino as openvino
    finally:
        del sys.modules[_NAME]
