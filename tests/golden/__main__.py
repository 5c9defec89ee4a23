"""Write every golden file anew: `make golden`."""

import importlib.util

from tests.golden import make_dumps

make_dumps.main()
if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    from tests.golden import make_parity

    make_parity.main()
else:
    print("parity.npz and frequencies.json stay: torch and transformers come with `make parity`")
