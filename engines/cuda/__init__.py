"""The engine for NVIDIA GPUs: CuPy, cuBLASLt and kernels of ours, steps captured as CUDA graphs."""

from paddock.engines.cuda.engine import CAPABILITIES, NAME, CUDAEngine, build, load, version

__all__ = ["CAPABILITIES", "NAME", "CUDAEngine", "build", "load", "version"]
