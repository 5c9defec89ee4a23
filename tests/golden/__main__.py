"""Write every golden file anew: `make golden`."""

import importlib.util

from tests.golden import make_dumps

make_dumps.main()
if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    from tests.golden import make_names, make_parity

    make_parity.main()
    make_names.make()
else:
    print(
        "parity.npz, frequencies.json and tensor_names.json stay: torch and transformers come with"
        " `make parity`"
    )
