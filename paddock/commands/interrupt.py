"""Ctrl-C, which must end a command wherever it strikes.

Python raises `KeyboardInterrupt` wherever the program happens to be. In the import of a compiled
module that becomes a traceback out of C code, or another exception; in a destructor it is printed
and forgotten. So during imports it is put off, and what was forgotten strikes again.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

PUT_OFF_S = 0.01


class _State:
    struck = False


def watch() -> None:
    """Take every Ctrl-C from now on; in the main thread, which signals belong to."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _strike)
        sys.unraisablehook = _unraisable


def struck() -> bool:
    """Whether Ctrl-C was pressed since `watch` or `forget`."""
    return _State.struck


def forget() -> None:
    """It was dealt with."""
    _State.struck = False


def next_one_kills() -> None:
    """While threads and files are being closed, the next Ctrl-C ends the process at once."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _strike(_number: int, frame: FrameType | None) -> None:
    _State.struck = True
    if _must_not_end(frame):
        _strike_soon()
    else:
        raise KeyboardInterrupt


def _must_not_end(frame: FrameType | None) -> bool:
    """Whether the frame is in an import, or on its way to be struck again."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            return True
        if code in (_unraisable.__code__, _strike_soon.__code__):
            return True
        frame = frame.f_back
    return False


def _strike_soon() -> None:
    # Unlike `_thread.interrupt_main`, a signal wakes the thread from whatever it waits for.
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(PUT_OFF_S, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True
    timer.start()


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Python is about to print an exception, and go on."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _strike_soon()
    else:
        sys.__unraisablehook__(unraisable)
