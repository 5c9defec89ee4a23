"""The whole path on a GPU that TensorRT runs on: `pytest -m gpu_tensorrt`. It has not run yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddock import LLM, SamplingParams
from paddock.engines.tensorrt import flavours, gpu
from paddock.recipes import pipeline
from paddock.recipes.build_cache import BuildCache
from paddock.recipes.compose import compose

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs" / "examples"
PROMPTS = ["The ls command", "A package is", "a", "The kernel decides which of the processes"]


def written(*overrides: str) -> list[str]:
    """Greedy text of prompts that run together."""
    with LLM("demo", *overrides) as llm:
        params = SamplingParams(max_tokens=24, temperature=0.0)
        return [answer.text for answer in llm.generate(PROMPTS, params)]


@pytest.mark.gpu_tensorrt
@pytest.mark.skipif(gpu.here() is None, reason="this machine has no GPU")
def test_the_demo_writes_what_the_reference_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build for this machine, check on it, run; weights fed, embedded, refitted; with a plugin."""
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path / "home"))
    wanted = written("engine=reference", "dtype=f16")
    assert written("engine=tensorrt", "dtype=f16") == wanted
    assert written("engine=tensorrt", "dtype=f16", "engine.weights=embedded") == wanted

    rest = ("engine=tensorrt", "dtype=f16", "engine.weights=refittable")
    assert written(*rest) == wanted
    other = tmp_path / "further"
    shutil.copytree(ROOT / "paddock" / "demo", other)
    file, random = other / "model.safetensors", np.random.default_rng(7)
    tensors = load_file(file)
    factors = {name: 1 + 0.3 * random.standard_normal(x.shape) for name, x in tensors.items()}
    save_file({n: (x * factors[n]).astype(x.dtype) for n, x in tensors.items()}, file)
    donor = BuildCache().named(pipeline.build(compose("demo", rest).recipe).folder.name)
    pipeline.refit(donor, str(other))
    anew = written("engine=tensorrt", "dtype=f16", f"checkpoint={other}")
    assert written(*rest, f"checkpoint={other}") == anew != wanted

    if flavours.find().features.plugins:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
        assert written("engine=tensorrt", "dtype=f16", "plugins=fused_llama") == wanted
