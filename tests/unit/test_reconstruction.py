"""Options of the reconstruction reward, on a reconstruction of a real clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from world_r1_rewards.probes.flow_ba import FlowBA
from world_r1_rewards.scores.reconstruction import Reconstruction

from world_r1.blockworld import scenes
from world_r1.types import Clip, Prompt


@pytest.fixture(scope="module")
def seen() -> tuple[Clip, dict[str, Any]]:
    """A rendered clip and its evidence."""
    rgb = scenes.render(scenes.sample(1, torch.device("cpu"), 5), 96, 160, 2).rgb[0].permute(1, 2, 3, 0)
    video = ((rgb + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    clip = Clip("a", video, Prompt("a", "A room."), None)
    found = FlowBA(device="cpu").observe([clip], [{}])[0]
    assert isinstance(found, dict)
    return clip, found


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_weighs_appearance_against_rigidity(seen: tuple[Clip, dict[str, Any]], share: float) -> None:
    score = Reconstruction(share=share, rigidity="inliers").score(*seen)
    parts = score.parts
    assert parts["appearance"] != pytest.approx(parts["rigidity"], abs=1e-3)
    mixed = share * parts["appearance"] + (1 - share) * parts["rigidity"]
    assert score.value == pytest.approx(mixed * parts["link"] * parts["order"] * parts["motion"])


def test_a_lower_threshold_of_the_link_forgives_more(seen: tuple[Clip, dict[str, Any]]) -> None:
    link = seen[1]["geometry"].link
    strict, kind = (Reconstruction(link=(low, high)).score(*seen).parts["link"] for low, high in ((link, 1.5), (0.0, link)))
    assert (strict, kind) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"share": 1.5}, "share"), ({"link": (0.5, 0.1)}, "link"), ({"link": (0.1,)}, "link"), ({"rigidity": "soft"}, "rigidity")],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reconstruction(**options)
