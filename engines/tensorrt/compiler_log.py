"""Everything that TensorRT logs goes to a file; errors are kept, to be raised."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, TextIO

from paddock.engines.tensorrt.flavours import Flavour

# Logged once beside any other error on a machine without a driver: it says nothing about the
# network.
_NO_DRIVER = re.compile(r"checkMacros\.cpp::catchCudaError|CUDA initialization failure|cudaError")


class CompilerLog:
    """An ILogger's messages: all of them in `file`, the errors in `errors`."""

    def __init__(self, flavour: Flavour, file: Path | None = None) -> None:
        self.errors: list[str] = []
        self.file = file
        self._stream: TextIO = (
            io.StringIO() if file is None else file.open("w", encoding="utf-8", buffering=1)
        )
        self.logger = _logger(flavour.module, self)

    def take(self, severity: str, message: str) -> None:
        """One message, as TensorRT gives it."""
        if self._stream.closed:
            return
        self._stream.write(f"{severity}: {message}\n")
        if severity in ("ERROR", "INTERNAL_ERROR") and not _NO_DRIVER.search(message):
            self.errors.append(message.strip())

    def words(self, since: int = 0) -> str:
        """The errors from number `since` on, one a line, indented; once where they are repeated."""
        lines = dict.fromkeys(line for error in self.errors[since:] for line in error.splitlines())
        return "\n".join(f"    {line}" for line in lines)

    def close(self) -> None:
        self._stream.close()


def _logger(trt: Any, log: CompilerLog) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(str(severity).rpartition(".")[2], message)

    return Logger()
