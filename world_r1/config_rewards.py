"""The part of the configuration that says what is scored: rewards, probes, presets of both. See `world_r1.config`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, model_validator

from world_r1.config_speed import Strict

#: Package with the presets, one YAML file each.
PRESETS = "world_r1_rewards.presets"


class RewardConfig(Strict):
    """One reward in the sum: a name in `world_r1_rewards.scores`, or "module:Class"."""

    name: str
    #: What scores, metrics and reports call it; null uses `name`. Lets one class be configured twice.
    label: str | None = None
    weight: float = Field(1.0, ge=0)
    #: "rigid": only prompts of that kind get it; "dynamic" likewise; "all": every prompt.
    phase: Literal["all", "rigid", "dynamic"] = "all"
    options: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies it)

    @property
    def key(self) -> str:
        """`label`, or `name` without one: `Score.reward` of every score that this entry gives."""
        return self.label or self.name


class RewardsConfig(Strict):
    """What is scored, with what, and how many failures are tolerated."""

    #: A preset of rewards and probes: "world_r1" is the public World-R1 release's formulas, for comparison only (rewards/README.md).
    #: `rewards` and `probes` then only change options, weights and probes of the preset.
    compat: Literal["world_r1"] | None = None
    rewards: tuple[RewardConfig, ...] = (RewardConfig(name="constant"),)
    #: Constructor options by probe name, for example {"flow_ba": {"keys": 3}}.
    probes: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    #: Names of running worker pools (`world-r1 rewards up`) that together give these rewards; null starts workers of this run's own.
    pools: tuple[str, ...] | None = Field(None, min_length=1)
    #: Share of failed videos in a step above which the run stops.
    max_failure_rate: float = Field(0.3, ge=0, le=1)
    #: Seconds after which one video's scoring counts as failed.
    timeout: float = Field(120.0, gt=0)
    #: Videos per call of a judge; smaller spreads a group over more judges. The numbers do not depend on it.
    batch: int = Field(4, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or tree.get("compat") is None:
            return tree
        return expanded(tree, preset(str(tree["compat"])))

    @model_validator(mode="after")
    def _names_are_unique(self) -> RewardsConfig:
        names = [reward.key for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(f"reward names must be unique, got {names}; give one of them a label")
        return self


def preset(name: str) -> dict[str, Any]:
    """The section `rewards` of a preset as a mapping. ValueError if there is none of that name, or the rewards are not installed."""
    try:
        file = files(PRESETS) / f"{name}.yaml"
    except ModuleNotFoundError as error:
        raise ValueError(f"compat: {name} needs the rewards, which are not installed here ({error})") from error
    if not file.is_file():
        raise ValueError(f"no preset {name!r}; compat is null or world_r1")
    return yaml.safe_load(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def expanded(tree: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the rewards and probes of the preset `base`: what `tree` says of one of them goes over what the preset says.

    A probe that `tree` sets to null is left out; other probes are added. ValueError for a reward that is none of the preset's (by name),
    so that nothing is called by the preset's name that is something else.
    """
    given = {str(_plain(entry).get("name")): _plain(entry) for entry in tree.get("rewards") or ()}
    names = [entry["name"] for entry in base["rewards"]]
    if strange := [name for name in given if name not in names]:
        raise ValueError(
            f"compat: {tree['compat']} brings its own rewards ({', '.join(names)}); {', '.join(strange)} is none of them: remove compat, "
            "or the reward (`rewards.rewards=null` on the command line)"
        )
    rewards = [_over(entry, given.get(entry["name"], {})) for entry in base["rewards"]]
    own = tree.get("probes") or {}
    probes = {name: {**base["probes"].get(name, {}), **(own.get(name) or {})} for name in [*base["probes"], *own]}
    return {
        **tree,
        "rewards": rewards,
        "probes": {name: options for name, options in probes.items() if own.get(name, {}) is not None},
    }


def _over(entry: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, **given, "options": {**entry.get("options", {}), **given.get("options", {})}}


def _plain(entry: Any) -> dict[str, Any]:
    """A reward as a mapping, whatever it was built from; what is no mapping is left to the validation of its field."""
    if isinstance(entry, BaseModel):
        return entry.model_dump(exclude_unset=True)
    return dict(entry) if isinstance(entry, Mapping) else {"name": repr(entry)}
