"""The critic's belief in the objects that a prompt names, from its heads to the reward `quality`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from world_r1_rewards.probes import critic as probe
from world_r1_rewards.scores.quality import Quality

from world_r1.blockworld import data, scenes, weights_path
from world_r1.blockworld.critic import QualityCritic
from world_r1.blockworld.judge_data import to_uint8
from world_r1.blockworld.judge_labels import CLASSES, COLOURS, objects_seen
from world_r1.types import Clip, Prompt


def thing(colour: str) -> dict[str, str]:
    return {"colour": colour, "texture": "", "shape": "box"}


def test_number_and_colours_by_hand() -> None:
    count, colours = torch.zeros(3, len(CLASSES["count"])), torch.full((3, len(COLOURS)), -2.0)
    count[0, 1] = 3.0  # two objects
    colours[0, COLOURS.index("red")], colours[0, COLOURS.index("blue")] = 1.0, -0.5
    asked: list[dict[str, Any]] = [
        {"objects": [thing("red"), thing("blue")]},
        {"objects": [thing("red"), thing("red"), thing("red")]},
        {"objects": ["a lighthouse"], "category": "coast"},  # another prompt set's attributes
    ]
    found = objects_seen({"count": count, "colours": colours}, asked)
    number = math.exp(3) / (math.exp(3) + len(CLASSES["count"]) - 1)
    seen = math.sqrt(1 / (1 + math.exp(-1)) / (1 + math.exp(0.5)))
    assert float(found[0]) == pytest.approx((number + seen) / 2)
    assert float(found[1]) == pytest.approx((1 / len(CLASSES["count"]) + 1 / (1 + math.exp(2))) / 2)
    assert math.isnan(float(found[2]))
    for unasked in ({}, {"objects": [thing("red"), thing("turquoise")]}, {"objects": [thing("red")] * (len(CLASSES["count"]) + 1)}):
        assert math.isnan(float(objects_seen({"count": count[:1], "colours": colours[:1]}, [unasked])[0]))


@pytest.fixture(scope="module")
def renders() -> tuple[np.ndarray, list[dict[str, Any]]]:
    drawn = data.draw(12, 5)
    videos = to_uint8(scenes.render(drawn.scenes, 96, 160, 1).rgb)  # [B, 3, T, H, W]
    return videos.permute(0, 2, 3, 4, 1).contiguous().numpy(), list(drawn.facts)


def test_the_shipped_critic_believes_in_what_is_there(renders: tuple[np.ndarray, list[dict[str, Any]]]) -> None:
    """Facts of renders against facts with an object less, one more, or one of another colour; other answers stay what they are."""
    videos, facts = renders
    critic = QualityCritic.from_pretrained(weights_path() / "critic")
    texts = ["Camera pan left."] * len(facts)

    def belief(change: Any) -> torch.Tensor:
        return critic.score(videos, texts, attributes=[fact | {"objects": change(fact["objects"])} for fact in facts])["objects"]

    def other(objects: list[dict[str, str]]) -> str:
        return next(colour for colour in COLOURS if colour not in {one["colour"] for one in objects})

    right = belief(lambda objects: objects)
    for wrong in (
        belief(lambda objects: [*objects, thing(other(objects))][-3:] if len(objects) < 3 else objects[1:]),
        belief(lambda objects: [*objects[1:], thing(other(objects))]),
    ):
        assert float((right > wrong).float().mean()) >= 0.75
        assert float((right - wrong).mean()) > 0.15
    plain = critic.score(videos[:2], texts[:2])
    given = critic.score(videos[:2], texts[:2], attributes=facts[:2])
    assert set(given) == {*plain, "objects"}
    for name, value in plain.items():
        assert torch.equal(value, given[name])


BELIEFS = """
import torch
from world_r1.blockworld.judge_labels import CLASSES, COLOURS, objects_seen
g = torch.Generator().manual_seed(0)
logits = {"count": torch.randn(200, len(CLASSES["count"]), generator=g), "colours": torch.randn(200, len(COLOURS), generator=g)}
things = [{"colour": colour} for colour in COLOURS[:3]]
print(objects_seen(logits, [{"objects": things}] * 200).double().sum().item().hex())
"""


def test_every_process_adds_in_the_same_order() -> None:
    """Python's sets of strings have another order in every process; a resumed run must give a clip the reward that it had."""
    found = {
        subprocess.run(
            [sys.executable, "-c", BELIEFS], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1


def clip(attributes: dict[str, Any]) -> Clip:
    video = np.random.default_rng(0).integers(0, 256, (5, 26, 42, 3), dtype=np.uint8)
    return Clip("a", video, Prompt("p", "A red box on grass.", "rigid", attributes), None, 8.0)


def test_the_probe_hands_attributes_on_and_leaves_out_what_nobody_named() -> None:
    shipped = probe.Critic(device="cpu")
    named, unnamed = shipped.observe([clip({"objects": [thing("red")]}), clip({})], [{}, {}])
    assert isinstance(named, dict)
    assert isinstance(unnamed, dict)
    assert set(named["quality_critic"]) == {"quality", "fidelity", "camera", "objects"}
    assert set(unnamed["quality_critic"]) == {"quality", "fidelity", "camera"}


def test_a_critic_of_ones_own_need_not_know_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def score(self, videos: np.ndarray, prompts: list[str]) -> dict[str, torch.Tensor]:
            return {"quality": torch.full((len(prompts),), 0.25)}

    monkeypatch.setattr(probe, "load_critic", lambda *_: Plain())
    (found,) = probe.Critic().observe([clip({"objects": [thing("red")]})], [{}])
    assert found == {"quality_critic": {"quality": 0.25}}


def test_quality_weighs_objects_where_they_are_known() -> None:
    parts = {"quality": 0.8, "fidelity": 0.1, "objects": 0.4, "camera": 0.9}
    reward, seen = Quality({"quality": 0.5, "objects": 0.5, "fidelity": 0, "camera": 0}), clip({})
    assert reward.score(seen, {"quality_critic": parts}).value == pytest.approx(0.6)
    without = {name: value for name, value in parts.items() if name != "objects"}
    assert reward.score(seen, {"quality_critic": without}).value == pytest.approx(0.8)
    assert Quality().score(seen, {"quality_critic": parts}).value == pytest.approx(
        (0.5 * 0.8 + 0.4 * 0.1) / 0.9
    )  # default: as ever
    with pytest.raises(ValueError, match="quality, fidelity, objects, camera"):
        Quality({"object": 1.0})
