"""pytest plug-in (entry point `pytest11`): the options --reward and --probe, which must be known before any test is collected."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("world_r1_rewards.contract.test_contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("world-r1", "contract of world-r1's rewards")
    group.addoption("--reward", action="append", default=[], help='hold this reward to the contract: a name or "module:Class"')
    group.addoption("--probe", action="append", default=[], help='hold this probe to the contract: a name or "module:Class"')
