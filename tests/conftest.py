"""How hypothesis runs here: machines that are busy are slow, which is no fault of a test."""

from hypothesis import HealthCheck, settings

settings.register_profile("paddock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("paddock")
