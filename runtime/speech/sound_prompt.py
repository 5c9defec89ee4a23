"""What a model hears, as the engine loop takes it."""

from __future__ import annotations

from dataclasses import dataclass

from paddock.graph.dtype import Array
from paddock.runtime.sampling.constraint import Constraint


@dataclass(frozen=True, eq=False)
class SoundPrompt:
    """One window of sound, and the tokens with which its answer begins."""

    features: Array
    """f32 [places, size], of `paddock.runtime.audio.log_mel.windows`."""
    begins: tuple[int, ...] = ()
    """None: those of the model's generation_config.json."""
    constraint: Constraint | None = None
    """What the answer's tokens may be; it belongs to this prompt alone."""
    told: tuple[int, int] | None = None
    """Of which tokens of `begins` (from, before) `prompt_logprobs` tells what could follow."""
