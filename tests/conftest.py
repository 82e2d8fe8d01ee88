"""
Profiles of hypothesis, neither with a deadline.

`ci`, the default, draws the same few examples on every run. `HYPOTHESIS_PROFILE=random
pytest` draws others each time and prints the seed that `--hypothesis-seed` repeats.
"""

import os
import random

import pytest
from hypothesis import settings

# Workers of pytest-xdist share the cores; threads of all of them would get in the way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if PROFILE == "random" and config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_terminal_summary(terminalreporter, config):
    if PROFILE == "random":
        terminalreporter.write_line(
            f"--hypothesis-seed={config.option.hypothesis_seed}"
        )
