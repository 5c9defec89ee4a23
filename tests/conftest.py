"""How the tests run here, whatever the machine and whoever starts them."""

import os
import signal

from hypothesis import HealthCheck, settings

# Machines that are busy are slow, which is no fault of a test.
settings.register_profile("paddock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("paddock")

# Models as small as those of the tests only wait for their threads, and the longer the busier the
# machine is. Before any library reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every
# process that they start in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
