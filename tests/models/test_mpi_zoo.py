"""The zoo on several ranks as MPI processes, which start once: every architecture, six meshes.

transformers saves a checkpoint of a drawn configuration that four ranks and three stages can share,
and its logits; each rank reads its own bytes of it. `PADDOCK_TEST_CHECKPOINT=FOLDER` adds a real
checkpoint to the bundled one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.graph import Array, GraphError, Mesh
from paddock.layers import trace
from paddock.models import registry
from tests.models import encoder_decoder_steps, encoder_steps, test_vision
from tests.models.decoder_draws import LENGTHS
from tests.models.drawn_families import FAMILIES
from tests.models.encoder_cases import DRAW as ENCODERS
from tests.models.encoder_cases import EncoderCase
from tests.models.encoder_decoder_cases import CONTEXT, EncoderDecoderCase
from tests.models.encoder_decoder_cases import DRAW as ENCODER_DECODERS
from tests.models.mpi_meshes import MESHES
from tests.models.mpi_zoo import ORDER, Expected, write_list
from tests.models.remote_code_draws import REMOTE
from tests.models.vision_cases import CONTEXT as VISION_CONTEXT
from tests.models.vision_cases import VisionCase

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)

ROOT = Path(__file__).parents[2]
WITHOUT_STAGES = [(tp, pp) for tp, pp in MESHES if pp == 1]
LIMIT = 1e-4  # of the largest logit; sums in another order make up to 3e-5 of these draws


def fits(config: dict[str, Any], meshes: Iterable[tuple[int, int]], max_context: int) -> bool:
    """Whether the model can be divided so; it says so before any weight is there."""
    try:
        model = registry.read(config).build()
        for tp, pp in meshes:
            trace(model, max_context=max_context, mesh=Mesh(tp=tp, pp=pp))
    except GraphError:
        return False
    return True


def keep(folder: Path, logits: Sequence[Array], ids: Sequence[Array] = ()) -> str:
    file = folder / "expected.npz"
    arrays: dict[str, Any] = {f"logits.{i}": array for i, array in enumerate(logits)}
    np.savez(file, **arrays | {f"ids.{i}": array for i, array in enumerate(ids)})
    return str(file)


def decoder(family: str, folder: Path) -> Expected:
    from tests.models.published import publish, publish_remote

    make = publish if family in FAMILIES else publish_remote
    for number in count(2):
        made = make(family, number, folder / str(number), divisible=True, layers=3)
        if fits(made.config, [(4, 1), (1, 3), (2, 2)], LENGTHS[0]):
            break
    arrays = keep(folder, made.logits, made.sequences)
    return Expected("decoder", family, made.config, str(made.folder), arrays, LENGTHS[0], MESHES)


def encoder(family: str, folder: Path) -> Expected:
    names = (f"{family}ForSequenceClassification/{seed}" for seed in count(1))
    meshes = [(4, 1), (1, 3), (2, 2)]
    name = next(n for n in names if fits(EncoderCase(n).config, meshes, CONTEXT))
    checkpoint, outputs = encoder_steps.made(name)
    arrays = keep(folder, [outputs[i] for i in ORDER])
    return Expected(
        "encoder", name, EncoderCase(name).config, str(checkpoint), arrays, CONTEXT, MESHES
    )


def encoder_decoder(family: str, folder: Path) -> Expected:
    names = (f"{family}/{seed}" for seed in count(1))
    name = next(n for n in names if fits(EncoderDecoderCase(n).config, [(4, 1)], CONTEXT))
    checkpoint, _, logits = encoder_decoder_steps.made(name)
    arrays = keep(folder, logits)
    return Expected(
        "encoder-decoder",
        name,
        EncoderDecoderCase(name).config,
        str(checkpoint),
        arrays,
        CONTEXT,
        WITHOUT_STAGES,
    )


def vision(name: str, folder: Path) -> Expected:
    meshes = [m for m in MESHES if fits(VisionCase(name).config, [m], VISION_CONTEXT)]
    checkpoint, _, logits = test_vision.made(name)
    return Expected(
        "vision",
        name,
        VisionCase(name).config,
        str(checkpoint),
        keep(folder, logits),
        VISION_CONTEXT,
        meshes,
    )


def real(checkpoint: Path, folder: Path) -> Expected:
    """Prompts, and what transformers writes after them greedily. That the largest logit of every
    row is the same token says that ranks write the same."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    random = np.random.default_rng(1)
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    prompts = [random.integers(3, model.config.vocab_size, n) for n in (70, 9)]
    sequences = [
        model.generate(
            torch.tensor(ids)[None], max_new_tokens=24, min_new_tokens=24, do_sample=False
        )
        for ids in prompts
    ]
    with torch.no_grad():
        logits = [model(ids).logits[0].numpy() for ids in sequences]
    arrays = keep(folder, logits, [ids[0].numpy() for ids in sequences])
    return Expected(
        "decoder", checkpoint.name, config, str(checkpoint), arrays, 128, MESHES, "openvino"
    )


def run(cases: list[Expected], folder: Path) -> dict[str, dict[str, tuple[float, int]]]:
    write_list(cases, folder / "cases.json")
    launcher = str(Path(sys.executable).parent / "mpirun")
    done = subprocess.run(
        [launcher, "-n", "4", sys.executable, "-m", "tests.models.mpi_zoo", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, tuple[float, int]]] = {case.name: {} for case in cases}
    for rank in range(4):
        for name, of_meshes in json.loads(
            (folder / f"rank-{rank}.json").read_text("utf-8")
        ).items():
            found[name] |= of_meshes
    return found


def folder_of(parent: Path, name: str) -> Path:
    made = parent / name.replace("/", "-")
    made.mkdir()
    return made


# An encoder, an encoder-decoder, experts, latent attention, states beside attention and experts.
KINDS: dict[str, tuple[Callable[[str, Path], Expected], tuple[str, ...]]] = {
    "decoders": (decoder, (*FAMILIES, *REMOTE)),
    "encoders": (encoder, tuple(ENCODERS)),
    "encoder-decoders": (encoder_decoder, tuple(ENCODER_DECODERS)),
    "models that see": (vision, tuple(f"llava/{seed}" for seed in (1, 2, 3))),
}
FEW = {
    "decoders": ("MixtralForCausalLM", "DeepseekV3ForCausalLM", "JambaForCausalLM"),
    "encoders": ("Bert",),
    "encoder-decoders": ("t5",),
}


def check(cases: list[Expected], folder: Path) -> None:
    found = run(cases, folder)
    for case in cases:
        meshes = sorted(f"tp={tp} pp={pp}" for tp, pp in case.meshes)
        assert sorted(found[case.name]) == meshes, case.name
    wrong = {
        name: of_meshes
        for name, of_meshes in found.items()
        if max(error for error, _ in of_meshes.values()) > LIMIT
    }
    assert wrong == {}


def test_one_of_each_kind_agrees_with_transformers(tmp_path: Path) -> None:
    check(
        [
            KINDS[kind][0](name, folder_of(tmp_path, name))
            for kind, names in FEW.items()
            for name in names
        ],
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_zoo_agrees_with_transformers(kind: str, tmp_path: Path) -> None:
    make, names = KINDS[kind]
    check([make(name, folder_of(tmp_path, name)) for name in names], tmp_path)


@pytest.mark.slow
def test_real_checkpoints_write_what_transformers_writes(tmp_path: Path) -> None:
    checkpoints = [ROOT / "paddock" / "demo"]
    if "PADDOCK_TEST_CHECKPOINT" in os.environ:
        checkpoints.append(Path(os.environ["PADDOCK_TEST_CHECKPOINT"]))
    cases = [real(folder, folder_of(tmp_path, folder.name)) for folder in checkpoints]
    found = run(cases, tmp_path)
    for of_meshes in found.values():
        assert sorted(of_meshes) == sorted(f"tp={tp} pp={pp}" for tp, pp in MESHES)
    assert {max(others for _, others in m.values()) for m in found.values()} == {0}
    assert max(error for m in found.values() for error, _ in m.values()) < LIMIT
