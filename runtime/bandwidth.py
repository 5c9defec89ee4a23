"""How fast this machine reads memory: the bound of decoding, measured and not looked up.

`python -m paddock.runtime.bandwidth THREADS` prints bytes per second. `measure_apart` runs that in
a process of its own, so that the buffer does not count as memory of whoever asks.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import psutil

BUFFER_BYTES = 1 << 30
"""Several times the last cache of today's machines."""
PIECE_BYTES = 32 << 20
"""What one call reads: long enough that starting it (microseconds) costs nothing."""


def read_bandwidth(
    threads: int, *, seconds: float = 0.6, buffer_bytes: int = BUFFER_BYTES
) -> float:
    """Bytes per second that `threads` threads read together, each its own part of one buffer.

    The best of the passes that fit into `seconds` (three at least), after one that is not counted:
    what the memory can give, not what it gave beside other work. Two threads on an AVX-512 Xeon
    came within 3 % of a C loop over four streams.
    """
    spare = psutil.virtual_memory().available // 4
    words = max(min(buffer_bytes, spare), threads * PIECE_BYTES) // 8
    buffer = np.ones(words, np.int64)
    parts = np.array_split(buffer, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_read, parts))
        end = perf_counter() + seconds
        passes = 0
        while passes < 3 or perf_counter() < end:
            start = perf_counter()
            list(pool.map(_read, parts))
            best = max(best, buffer.nbytes / (perf_counter() - start))
            passes += 1
    return best


def measure_apart(threads: int) -> float:
    """`read_bandwidth` in a process of its own; takes about a second and a half."""
    done = subprocess.run(
        [sys.executable, "-m", "paddock.runtime.bandwidth", str(threads)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the one that waits, which then ends this one
    )
    return float(done.stdout)


def _read(part: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    # Of NumPy's reductions this one does least beside reading; it gives up the interpreter's lock.
    for piece in np.array_split(part, max(1, part.nbytes // PIECE_BYTES)):
        np.bitwise_or.reduce(piece)


if __name__ == "__main__":
    print(read_bandwidth(int(sys.argv[1])))
