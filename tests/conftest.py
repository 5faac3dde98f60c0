"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A shared machine stalls now and then: neither a slow draw nor a slow example is a fault of the code.
settings.register_profile("wshub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wshub")
