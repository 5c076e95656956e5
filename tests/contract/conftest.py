"""Worlds and plug-ins that the contract is checked with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load_worlds() -> ModuleType:
    """`worlds.py` as the module `contract_worlds`: pytest's importlib mode puts no test folder on the path."""
    if "contract_worlds" not in sys.modules:
        spec = importlib.util.spec_from_file_location("contract_worlds", Path(__file__).with_name("worlds.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["contract_worlds"] = module
        spec.loader.exec_module(module)
    return sys.modules["contract_worlds"]


_load_worlds()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from world_r1_rewards.contract.names import parametrize

    parametrize(metafunc, always_shipped=True)
