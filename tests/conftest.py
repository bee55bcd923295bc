"""Settings for all tests."""

from hypothesis import HealthCheck, settings

# Two busy cores are slow at times, which says nothing about the code; examples are the same in every run.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")
