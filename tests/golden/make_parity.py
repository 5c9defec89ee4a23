"""Keep what transformers makes of the parity cases: `python -m tests.golden.make_parity`.

Writes parity.npz and frequencies.json beside this file. Run it where torch and transformers are
installed (`make parity`), after a change to the cases.
"""

import json
from pathlib import Path

import numpy as np

from tests.models.parity_cases import CASES, case
from tests.models.rotary_cases import ROTARY_CASES
from tests.models.transformers_frequencies import transformers_frequencies
from tests.models.transformers_logits import transformers_logits

FOLDER = Path(__file__).parent


def main() -> None:
    arrays = {}
    for name in CASES:
        for i, logits in enumerate(transformers_logits(case(name))):
            arrays[f"{name}/{i}"] = logits
    np.savez_compressed(FOLDER / "parity.npz", allow_pickle=False, **arrays)
    golden = {name: transformers_frequencies(rotary) for name, rotary in ROTARY_CASES.items()}
    (FOLDER / "frequencies.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
