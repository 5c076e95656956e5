"""Configuration: every shipped file parses, every mistake is one line with the way out, and the documentation is current."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from world_r1 import config_docs
from world_r1.config import Config, ConfigError, load, parse

ROOT = Path(__file__).parents[2]
#: Those of prompts and of reward pools are no runs; they have tests of their own.
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith(("prompts", "rewards")))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_parses_and_is_named_after_its_file(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem, "two configurations with one name would write into one run directory"
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_names_rewards_and_probes_that_exist(path: Path) -> None:
    from world_r1.reward import Rubric

    Rubric(load(path).rewards)


def test_the_shipped_pools_give_the_rewards_of_the_main_run() -> None:
    from world_r1.serving.config import load_pools

    pools = load_pools(ROOT / "configs/rewards.yaml").pools
    given = [entry.name for pool in pools.values() for entry in pool.rewards.rewards]
    assert sorted(given) == sorted(entry.name for entry in load(ROOT / "configs/blockworld.yaml").rewards.rewards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pools: {a: {rewards: {}, gpu: 1}}", "unknown key 'pools.a.gpu'; did you mean 'gpus'"),
        ("pools: {a: {rewards: {}, replicas: {min: 3, max: 2}}}", "replicas.min=3 is more than replicas.max=2"),
        ("pools: {a b: {rewards: {}}}", "letters, digits, - and _ only, got 'a b'"),
        ("pools: {}", "name at least one pool"),
        ("rewards: {}", "has no section pools"),
    ],
)
def test_a_mistake_in_a_file_of_pools_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    from world_r1.serving.config import load_pools

    with pytest.raises(ConfigError, match=message) as caught:
        load_pools(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_printed_configuration_is_the_configuration() -> None:
    config = parse({"name": "x", "flow": {"steps": 12, "window": {"size": 2, "position": "random"}}, "model": {"lora": None}})
    assert parse(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("flow.steps=12", lambda c: c.flow.steps == 12),
        ("optimizer.learning_rate=3e-5", lambda c: c.optimizer.learning_rate == 3e-5),
        ("model.lora=null", lambda c: c.model.lora is None),
        ("model.lora.rank=4", lambda c: c.model.lora.rank == 4),
        ("name=a-b", lambda c: c.name == "a-b"),
        ("model.lora.targets=[to_q, to_v]", lambda c: c.model.lora.targets == ("to_q", "to_v")),
        ("noise.warp=false", lambda c: c.noise.warp is False),
    ],
)
def test_an_override_reaches_its_key(tmp_path: Path, override: str, read: object) -> None:
    path = write(tmp_path, "flow: {steps: 6}\n")
    assert not read(load(path))  # type: ignore[operator]
    assert read(load(path, [override]))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flwo: {steps: 8}", "unknown key 'flwo'; did you mean 'flow'?"),
        ("flow: {step: 8}", "unknown key 'flow.step'; did you mean 'steps'?"),
        ("model: {lora: {rnak: 8}}", "unknown key 'model.lora.rnak'; did you mean 'rank'?"),
        ("rewards: {rewards: [{name: constant, wieght: 1}]}", "did you mean 'weight'?"),
        ("flow: {steps: eight}", "flow.steps: .* integer.* \\(got 'eight'\\)"),
        ("flow: {steps: 0}", "flow.steps: .* greater than or equal to 1 \\(got 0\\)"),
        ("flow: {family: ddim}", "flow.family: .*'flow_sde', 'wan_sde', 'cps' or 'vp_ddim' \\(got 'ddim'\\)"),
        ("flow: {steps: 2, window: {size: 3}}", "flow.window.size=3 does not fit into 2 candidate steps .* raise flow.steps"),
        ("flow: [1, 2]", "flow: "),
        ("- a\n- b", "must hold a mapping of sections, got list"),
        ("a: b: c", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("flow.steps", "written key=value"),
        ("=3", "written key=value"),
        ("seed.x=3", "seed is 5, which has no keys"),
        ("flow.stepz=3", "did you mean 'steps'"),
        ("flow.steps=[", "is not valid YAML"),
    ],
)
def test_a_mistake_in_an_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(tmp_path, "seed: 5"), [override])
    assert "\n" not in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"no configuration file at .*rum.yaml; did you mean .*run.yaml\?"):
        load(tmp_path / "rum.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Config()


def test_the_schema_and_the_page_are_current() -> None:
    assert (ROOT / config_docs.SCHEMA).read_text(encoding="utf-8") == config_docs.schema(), "run: make schema"
    assert (ROOT / config_docs.PAGE).read_text(encoding="utf-8") == config_docs.markdown(), "run: make schema"


def test_the_schema_knows_bounds_and_comments() -> None:
    import json

    tree = json.loads(config_docs.schema())
    steps = tree["$defs"]["FlowConfig"]["properties"]["steps"]
    assert steps["minimum"] == 1
    assert steps["default"] == Config().flow.steps
    assert "Denoising steps" in steps["description"]
    assert tree["additionalProperties"] is False


def test_the_pools_of_the_example_give_the_rewards_of_the_main_job() -> None:
    """`rewards.pools=[geometry, learned]` over configs/blockworld.yaml starts only if plug-ins, options and probes agree."""
    from world_r1.serving.attached import givers
    from world_r1.serving.config import load_pools

    job = load(ROOT / "configs/blockworld.yaml", ["rewards.pools=[geometry, learned]"]).rewards
    pools = {name: pool.rewards for name, pool in load_pools(ROOT / "configs/rewards.yaml").pools.items()}
    found = givers(job, pools)
    assert found.keys() == {entry.key for entry in job.rewards}
    assert set(found.values()) == set(pools)
