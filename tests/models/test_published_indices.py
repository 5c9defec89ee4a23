"""Weight maps are total both ways on index files as they were published.

`tests/golden/published_indices.json` has the names of `*.index.json` files found in public
repositories (`source` says where), with the config.json that lay beside them. An index says no
shapes: those are of transformers' class at that config, and make up the index's `total_size` to the
byte, so they are the files' own. Falcon's config is written as transformers reads it today: the one
beside its index names a class that is no more.
"""

from __future__ import annotations

import importlib
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from paddock.graph import Mesh
from paddock.models import registry
from paddock.weights import TensorInfo, WeightError, prove
from tests.golden.make_names import RANGE

FILE = Path(__file__).parents[1] / "golden" / "published_indices.json"
INDICES: dict[str, dict[str, Any]] = json.loads(FILE.read_text("utf-8"))


def tensors(repo: str) -> dict[str, TensorInfo]:
    found = {}
    for name, shape in INDICES[repo]["tensors"].items():
        counts = [range(int(last) + 1) for last in RANGE.findall(name)]
        for numbers in product(*counts):
            one = name
            for number in numbers:
                one = RANGE.sub(str(number), one, count=1)
            found[one] = TensorInfo(one, INDICES[repo].get("dtype", "BF16"), tuple(shape))
    return found


@pytest.mark.parametrize("repo", INDICES)
def test_every_name_of_the_index_has_its_slot(repo: str) -> None:
    architecture = registry.read(INDICES[repo]["config"])
    slots = dict(architecture.build().named_parameters())
    tied = bool(getattr(architecture.config, "tie_word_embeddings", False))
    rules = importlib.import_module(architecture.weight_map).HUGGING_FACE
    stored = tensors(repo)
    binding = prove(slots, stored, rules, Mesh(), tied=tied)
    assert set(binding.slots) == set(slots)
    left = set(binding.ignored)
    copies = {"lm_head.weight"} if tied else set()  # the embedding once more, as Falcon 40B has it
    buffers = {name.rsplit(".", 1)[1] for name in left - copies}
    assert buffers <= {"bias", "masked_bias", "inv_freq"}
    each = 4 if INDICES[repo].get("dtype") == "F32" else 2
    weights = each * sum(math.prod(t.shape) for n, t in stored.items() if n not in left)
    published = INDICES[repo]["bytes"]
    assert weights == published if not left else weights < published < 1.02 * weights

    missing = next(name for name in stored if name not in left)
    with pytest.raises(WeightError, match="the checkpoint has no"):
        prove(slots, {n: t for n, t in stored.items() if n != missing}, rules, tied=tied)
