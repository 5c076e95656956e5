"""Which rewards and probes are held to the contract, and which probes a reward needs for it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from world_r1.reward import PROBES, SCORES, Probe, Reward, available, load, registered


def parametrize(metafunc: Any, *, always_shipped: bool) -> None:
    """Give `reward_name` and `probe_name` their values: those of --reward and --probe; without either, or with `always_shipped`, the
    shipped ones that `runs_here` too."""
    named = {"reward_name": option(metafunc.config, "--reward"), "probe_name": option(metafunc.config, "--probe")}
    shipped = always_shipped or not any(named.values())
    for argument, package, base in (("reward_name", SCORES, Reward), ("probe_name", PROBES, Probe)):
        if argument in metafunc.fixturenames:
            known = [name for name in available(package) if runs_here(name, package, base)] if shipped else []
            metafunc.parametrize(argument, list(dict.fromkeys([*known, *named[argument]])))


def option(config: Any, name: str) -> list[str]:
    """Values of --reward or --probe; none where the plug-in that adds them is not loaded."""
    return list(config.getoption(name, default=[]))


def runs_here(name: str, package: str, base: type) -> bool:
    """Whether a plug-in can be built without options and needs neither other packages, nor weights from the hub, nor (for a reward) a
    probe that does."""
    found: Any = load(name, package, base)
    if not _self_contained(found):
        return False
    givers = probes_by_gift()
    return all(need in givers for need in found.needs if need != "frames")


def probes_by_gift(extra: Sequence[str] = ()) -> dict[str, str]:
    """What probes give -> the first that gives it: of `extra`, then of the shipped and registered ones that are self-contained."""
    givers: dict[str, str] = {}
    for name in [*extra, *available(PROBES), *registered(Probe)]:
        probe: Any = load(name, PROBES, Probe)
        if name in extra or _self_contained(probe):
            for given in probe.gives:
                givers.setdefault(given, name)
    return givers


def _self_contained(plugin: Any) -> bool:
    """No missing packages, no weights from the hub ("owner/name"), no option that must be given."""
    if plugin.lacks() or re.match(r"[\w.-]+/[\w.-]+", plugin.weights):
        return False
    try:
        inspect.signature(plugin).bind()
    except TypeError:
        return False
    return True


def probes_for(needs: Sequence[str], extra: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Configuration of the probes that give `needs`, and what those need in turn. ValueError if nobody gives one."""
    givers, wanted = probes_by_gift(extra), [need for need in needs if need != "frames"]
    chosen: dict[str, dict[str, Any]] = {}
    while wanted:
        need = wanted.pop()
        if need not in givers:
            raise ValueError(f"no probe that runs here gives {need!r}; name yours with --probe")
        if givers[need] not in chosen:
            chosen[givers[need]] = {}
            probe: Any = load(givers[need], PROBES, Probe)
            wanted += [other for other in probe.needs if other != "frames"]
    return chosen
