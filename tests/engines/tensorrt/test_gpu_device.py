"""What a session asks of CuPy, on any NVIDIA GPU: kernels held to their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from paddock.engines.choosing import CHOICE_TYPES, ChooseTokens, FillIn
from paddock.engines.protocol import Choices
from paddock.engines.tensorrt.choosing import PackedChoices
from paddock.engines.tensorrt.device import CupyDevice

REMEDY = "nothing: it is little"


@pytest.mark.gpu
def test_tokens_are_chosen_kept_and_filled_in() -> None:
    rows, vocabulary, slots = 6, 32_003, 9
    random = np.random.default_rng(5)
    logits = (3 * random.standard_normal((rows, vocabulary))).astype(np.float32)
    logits[4] = np.nan
    choices = Choices(
        temperatures=np.array([0, 0.7, 1.3, 0, 0.7, 0.7], np.float32),
        top_ks=np.array([0, 5, 0, 0, 3, 0], np.int32),
        top_ps=np.array([1, 1, 0.9, 1, 1, 0.5], np.float32),
        min_ps=np.array([0, 0, 0, 0, 0, 0.01], np.float32),
        chances=random.random(rows),
        slots=np.array([3, 1, 0, -1, 2, 8], np.int32),
    )
    order = np.array([2, 0, 5, 1, 4, 3])
    drawn = [getattr(choices, name)[order] for name in CHOICE_TYPES]
    before = np.arange(slots, dtype=np.int32)
    wanted, kept = ChooseTokens().compute(logits, *drawn, before)

    device = CupyDevice()
    packed = PackedChoices(rows)
    on_device = {
        name: device.allocate(nbytes, name, REMEDY)
        for name, nbytes in {
            "logits": logits.nbytes,
            "best": 8 * rows,
            "choices": packed.nbytes,
            "tokens": 4 * rows,
            "last": 4 * slots,
            "ids": 8 * 4,
        }.items()
    }
    staged = device.pinned(packed.nbytes)
    packed.write(staged, choices, order)
    ids = np.array([7, -1 - 3, -1 - 8, -1 - 2], np.int64)
    device.upload(on_device["logits"], logits)
    device.upload(on_device["choices"], staged)
    device.upload(on_device["last"], before)
    device.upload(on_device["ids"], ids)
    for _ in range(2):  # the second finds what the first left behind
        device.choose(
            logits.shape,
            on_device["logits"],
            on_device["best"],
            packed.addresses(on_device["choices"], 0),
            on_device["tokens"].address,
            on_device["last"],
        )
    device.fill_in(len(ids), on_device["ids"], on_device["last"])
    tokens, last = np.empty(rows, np.int32), np.empty(slots, np.int32)
    device.download(on_device["tokens"], tokens)
    device.download(on_device["last"], last)
    device.download(on_device["ids"], ids)
    device.mark().synchronize()
    np.testing.assert_array_equal(tokens, wanted)
    np.testing.assert_array_equal(last, kept)
    np.testing.assert_array_equal(
        ids, FillIn().compute(np.array([7, -1 - 3, -1 - 8, -1 - 2]), kept)
    )
