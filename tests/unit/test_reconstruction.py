"""Options of the reconstruction reward, on a reconstruction of a real clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from world_r1_rewards.probes.flow_ba import FlowBA
from world_r1_rewards.scores.reconstruction import Reconstruction

from world_r1.blockworld import scenes
from world_r1.camera import trajectory_for
from world_r1.config import CameraConfig, VideoConfig
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


def test_photometric_takes_its_share_of_the_mean(seen: tuple[Clip, dict[str, Any]]) -> None:
    plain, mixed = Reconstruction().score(*seen), Reconstruction(photometric=0.25, decibels=(20.0, 40.0)).score(*seen)
    parts, psnr = mixed.parts, seen[1]["geometry"].photometric
    assert 20 < psnr < 40
    assert parts["photometric"] == pytest.approx((psnr - 20) / 20)
    factors = parts["link"] * parts["order"] * parts["motion"]
    assert mixed.value == pytest.approx(0.75 * plain.value + 0.25 * parts["photometric"] * factors)


def test_louder_textures_pay_in_appearance_and_not_in_photometric(seen: tuple[Clip, dict[str, Any]]) -> None:
    """The same unsteadiness of every frame under textures half as loud again: what the policy found to raise patch correlation."""
    clip = seen[0]
    unsteady = np.random.default_rng(0).normal(0, 12, clip.video.shape[:3])
    shaken = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in unsteady])[..., None] * 4
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 4.0) for frame in clip.video]).astype(np.float32)
    parts = []
    for loud in (1.0, 1.5):
        video = (smooth + loud * (clip.video - smooth) + shaken).round().clip(0, 255).astype(np.uint8)
        found = FlowBA(device="cpu").observe([replace(clip, video=video)], [{}])[0]
        assert isinstance(found, dict)
        parts.append(Reconstruction().score(replace(clip, video=video), found).parts)
    assert parts[1]["appearance"] > parts[0]["appearance"] + 0.03
    assert parts[1]["photometric"] < parts[0]["photometric"] + 0.01


def test_a_lower_threshold_of_the_link_forgives_more(seen: tuple[Clip, dict[str, Any]]) -> None:
    link = seen[1]["geometry"].link
    strict, kind = (Reconstruction(link=(low, high)).score(*seen).parts["link"] for low, high in ((link, 1.5), (0.0, link)))
    assert (strict, kind) == (0.0, 1.0)


def test_the_threshold_of_the_order_forgives_too(seen: tuple[Clip, dict[str, Any]]) -> None:
    order = seen[1]["geometry"].straightness
    strict, kind = (Reconstruction(order=ends).score(*seen).parts["order"] for ends in ((order, 1.5), (0.0, order)))
    assert (strict, kind) == (0.0, 1.0)


def test_unison_is_the_geometry_s(seen: tuple[Clip, dict[str, Any]]) -> None:
    geometry = seen[1]["geometry"]
    found = Reconstruction(rigidity="unison").score(*seen).parts["rigidity"]
    assert found == pytest.approx(geometry.unison * min(1.0, geometry.coverage / 0.9))
    assert found != pytest.approx(Reconstruction().score(*seen).parts["rigidity"], abs=1e-3)


def test_quick_flow_sees_the_same_appearance(seen: tuple[Clip, dict[str, Any]]) -> None:
    found = FlowBA("quick", device="cpu").observe([seen[0]], [{}])[0]
    assert isinstance(found, dict)
    assert found["geometry"].correlation == pytest.approx(seen[1]["geometry"].correlation, abs=0.12)
    with pytest.raises(ValueError, match="preset must be one of"):
        FlowBA(preset="slow")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.5}, "share"),
        ({"link": (0.5, 0.1)}, "link"),
        ({"link": (0.1,)}, "link"),
        ({"rigidity": "soft"}, "rigidity"),
        ({"order": (0.9, 0.5)}, "order"),
        ({"relative": -0.1}, "relative"),
        ({"photometric": 2.0}, "photometric"),
        ({"decibels": (30.0, 20.0)}, "decibels"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reconstruction(**options)


def test_relative_appearance_is_what_the_reconstruction_explains(seen: tuple[Clip, dict[str, Any]]) -> None:
    geometry = seen[1]["geometry"]
    found = Reconstruction(relative=1.0).score(*seen).parts["appearance"]
    assert -1 < geometry.still < geometry.correlation - 0.1  # the camera of the clip moves, so pictures as they are agree less
    assert found == pytest.approx((geometry.correlation - geometry.still) / (1.02 - geometry.still))
    assert 0.3 < found < Reconstruction().score(*seen).parts["appearance"]


def test_smooth_pictures_gain_nothing_by_relative_appearance(seen: tuple[Clip, dict[str, Any]]) -> None:
    clip = seen[0]
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 6.0) for frame in clip.video])
    smooth = replace(clip, video=blurred)
    found = FlowBA(device="cpu").observe([smooth], [{}])[0]
    assert isinstance(found, dict)
    change = {
        share: Reconstruction(relative=share).score(smooth, found).parts["appearance"]
        - Reconstruction(relative=share).score(*seen).parts["appearance"]
        for share in (0.0, 0.5, 1.0)
    }
    assert change[1.0] < change[0.0] - 0.05
    assert change[0.5] == pytest.approx((change[0.0] + change[1.0]) / 2, abs=1e-6)


def test_a_fixed_camera_is_held_against_the_absolute(seen: tuple[Clip, dict[str, Any]]) -> None:
    clip, evidence = seen
    still = trajectory_for(
        "The camera is static. A red box.", VideoConfig(height=96, width=160, frames=len(clip.video)), CameraConfig()
    )
    asked = replace(clip, trajectory=still)
    assert Reconstruction(relative=1.0).score(asked, evidence).parts["appearance"] == pytest.approx(
        Reconstruction().score(asked, evidence).parts["appearance"]
    )


def test_texture_does_not_depend_on_where_in_memory_it_is_computed() -> None:
    """OpenCV's magnitude of gradients does, in its last digit, and rewards of the same clip differed from run to run."""
    from world_r1_rewards.probes import _flow

    grey = np.random.default_rng(0).integers(0, 256, (40, 96, 160), dtype=np.uint8)  # one number in ten thousand differed
    first, kept = _flow._texture(grey, range(40), 1), []
    for i in range(16):
        kept.append(np.empty(4 * 96 * 160 + 16 * (i % 7) + 1, np.uint8))  # takes the place where the last images lay
        assert np.array_equal(_flow._texture(grey, range(40), 1), first)
