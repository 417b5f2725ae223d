"""What every test gets."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random numbers that do not depend on which tests ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
