"""The JSON files of a checkpoint, which come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddock.weights.errors import WeightError

MAX_BYTES = 100_000_000
"""The index of the largest checkpoints has a tenth of it."""


def read_json(path: Path) -> Any:
    """What the file holds. Raises `WeightError`, also for a file that is absurdly large."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WeightError(f"{path}: {size} bytes; more than {MAX_BYTES} are not read")
        return json.loads(path.read_bytes().decode())
    except OSError as error:
        raise WeightError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{path}: not JSON: {str(error).splitlines()[0][:200]}") from error
