"""Parameters of the contract: the rewards and probes named on the command line, or every shipped one that can run here."""

from __future__ import annotations

import pytest

from world_r1_rewards.contract.names import parametrize


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, always_shipped=False)
