"""Weights from a mapped file to the GPU, beside the link: `python -m benchmarks.cuda_upload`."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from paddock.engines.cuda.gpu import GPU

SIZE = 8 << 30
CHUNK = 32 << 20  # of the copies that the link is measured with


def main() -> None:
    gpu = GPU()
    cp = gpu.cupy
    pinned, device = gpu.pinned(CHUNK), gpu.zeros((CHUNK,), np.dtype(np.uint8))
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        gpu.write(device, pinned)
        gpu.stream.synchronize()
        taken.append(time.perf_counter() - began)
    link = CHUNK / statistics.median(taken)
    print(f"{gpu.name}: pinned copies {link / 1e9:.1f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights"
        np.random.default_rng(0).integers(0, 255, SIZE, np.uint8).tofile(file)
        rates = []
        for _ in range(4):  # the first reads the pages
            mapped = np.memmap(file, np.uint8, "r")
            began = time.perf_counter()
            gpu.upload(mapped)
            gpu.stream.synchronize()
            rates.append(SIZE / (time.perf_counter() - began))
            cp.get_default_memory_pool().free_all_blocks()
    for i, rate in enumerate(rates):
        print(f"upload {i}: {rate / 1e9:.1f} GB/s, {rate / link:.2f} of the link")


if __name__ == "__main__":
    main()
