"""The zoo's drawn models through the cuda engine, on any device, beside what transformers makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddock.engines import cuda
from paddock.engines.cuda.session import CUDASession
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.models import encoder_decoder_steps as of_two
from tests.models import encoder_steps as of_whole
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.decoder_draws import LENGTHS
from tests.models.encoder_cases import EncoderCase
from tests.models.encoder_decoder_cases import CONTEXT, EncoderDecoderCase
from tests.models.play import chunks, decode, play, relative_error, whole


def decoder_error(family: str, dtype: DType, device: Any, folder: Path) -> float:
    """The largest difference of logits over the largest logit, in chunks of any size."""
    from tests.models.published import publish  # needs torch and transformers

    (folder / "checkpoint").mkdir()
    made = publish(family, 0, folder / "checkpoint", divisible=False)
    architecture = registry.read(made.config)
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, made.folder, dtype=dtype)
    session = _opened(model, weights, dtype, LENGTHS[0], device)
    random = np.random.default_rng(0)
    found = play(session, made.sequences, chunks(LENGTHS, random), random)
    return relative_error(found, made.logits)


def encoder_error(name: str, dtype: DType, device: Any) -> float:
    """Of hidden states, labels or scores: sequences together in two orders, and one alone."""
    case = EncoderCase(name)
    folder, expected = of_whole.made(name)
    architecture = registry.read(case.config)
    model = architecture.build()
    session = _opened(
        model, BoundCheckpoint(architecture, model, folder, dtype=dtype), dtype, 64, device
    )
    reads = architecture.reads if architecture.task == "classify" else "all"
    return max(
        relative_error(of_whole.run(session, case, order, reads), [expected[i] for i in order])
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1, 2], [1])
    )


def encoder_decoder_error(name: str, dtype: DType, device: Any) -> float:
    """Of logits: whole, token by token, and in chunks beside sequences of other ages."""
    case = EncoderDecoderCase(name)
    folder, _, expected = of_two.made(name)
    architecture = registry.read(case.config)
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, folder, dtype=dtype)
    session = _opened(model, weights, dtype, CONTEXT, device)
    lengths = [len(ids) for ids in case.answers]
    plans = (whole(lengths), decode(lengths, 2), chunks(lengths, np.random.default_rng(len(name))))
    return max(relative_error(of_two.play(session, case, plan), expected) for plan in plans)


def _opened(
    model: Any, weights: BoundCheckpoint, dtype: DType, context: int, device: Any
) -> CUDASession:
    graph = trace(model, max_context=context, dtype=dtype)
    return cuda.build(graph, {}).open(weights, {"block_size": 16}, device=device)
