"""What a machine lacks for a test: the test is not run and counted by what is missing, and fails under CI."""

import os
from typing import NoReturn

import pytest

MARK = "needs "
"""How the reason of such a skip begins; `tests/conftest.py` counts them."""


class ToolMissing(RuntimeError):
    """Something that a test needs cannot be had on this machine.

    Args:
        what: what is missing, a few words: tests that are not run are counted by it.
        why: why it cannot be had.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why


def not_run(missing: ToolMissing) -> NoReturn:
    """Skip this test for want of something; where CI is set, everything must be there, and it fails."""
    reason = f"{MARK}{missing.what}: {missing.why}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
