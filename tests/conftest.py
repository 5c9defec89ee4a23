"""How the tests run here, whatever the machine and whoever starts them."""

import signal

from hypothesis import HealthCheck, settings

# Machines that are busy are slow, which is no fault of a test.
settings.register_profile("paddock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("paddock")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every
# process that they start in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
