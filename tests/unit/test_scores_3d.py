"""Scores over geometry: shot cuts, re-rendering, features, first frames; likeness of pictures; the benchmark's own arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from world_r1_rewards import discrimination as bench
from world_r1_rewards import likeness
from world_r1_rewards.discrimination_report import accuracy, pose_errors, summarise
from world_r1_rewards.probes._assemble import unison
from world_r1_rewards.probes.features import Features
from world_r1_rewards.probes.flow_ba import FlowBA
from world_r1_rewards.probes.rerender import Rerender, side_by_side
from world_r1_rewards.probes.shots import Shots
from world_r1_rewards.scores.consistency import Consistency
from world_r1_rewards.scores.general import General
from world_r1_rewards.scores.rerender import RerenderReward
from world_r1_rewards.scores.semantic_consistency import SemanticConsistency
from world_r1_rewards.scores.shot_cut import ShotCut

from world_r1.types import Clip, Prompt

SEEN = ("static", "jitter", "cut", "lighting", "flat_zoom", "swap")


@cache
def clips() -> dict[str, Clip]:
    world = bench.world("tuning", 7)
    clean = world.render()
    found = {"clean": world.clip(clean), "far": world.clip(world.render(2.0), 2.0)}
    found |= {"bright": world.clip(np.clip(clean * 0.7, 0, 255).astype(np.uint8)), "slow fps": world.clip(clean)}
    found["slow fps"] = Clip("slow", clean, Prompt("p", "p"), world.trajectory(), fps=2.0)
    fixed = bench.World(world.tensors, world.command, world.distance, world.pitch, "fixed", world.seed).trajectory(0.0)
    found["asked to be still"] = Clip("still", np.repeat(clean[:1], len(clean), 0), Prompt("p", "p"), fixed)
    return found | {name: world.clip(bench.damaged(world, clean, name)) for name in SEEN}


@cache
def geometry() -> dict[str, Any]:
    return dict(zip(clips(), FlowBA(device="cpu").observe(list(clips().values()), [{}] * len(clips())), strict=True))


def consistency(name: str) -> float:
    found = geometry()[name]
    assert not isinstance(found, Exception)
    value = Consistency().score(clips()[name], found).value
    assert value is not None
    return value


def test_consistency_sees_what_it_should() -> None:
    clean = consistency("clean")
    assert clean > 0.85
    for name, most in (("static", 0.01), ("cut", 0.05), ("jitter", 0.3), ("lighting", 0.3), ("flat_zoom", 0.5), ("swap", 0.3)):
        assert consistency(name) < most, name


def test_consistency_is_blind_to_amplitude_gain_and_frame_rate() -> None:
    clean = consistency("clean")
    assert consistency("far") == pytest.approx(clean, abs=0.05)
    assert consistency("bright") == pytest.approx(clean, abs=0.03)
    assert consistency("slow fps") == clean


def test_what_errs_in_unison_is_seen_and_noise_of_the_same_size_is_forgiven() -> None:
    draw = np.random.default_rng(0)
    limit, weight = np.full((2, 4, 19, 32), 0.4), np.ones((2, 4, 19, 32), np.float32)
    noise = draw.normal(0, 0.4, (2, 4, 19, 32, 2))
    moving = np.zeros_like(noise)
    moving[:, :, 4:12, 6:18] = [0.4 * 2**0.5, 0.0]  # a patch that moves by itself as far as the noise is large
    lost = np.zeros_like(noise)
    lost[:, :, 9, 16] = 1e3  # one wrong point
    random, common, single = (unison(residual, limit, weight) for residual in (noise, moving, lost))
    assert random > 0.9
    assert single > 0.9
    patch = 8 * 12 / (19 * 32)
    assert common < 1 - 0.6 * patch
    alone = (weight / (1 + ((noise**2).sum(-1) / limit**2))).mean()
    assert alone < 0.6  # point by point the noise would look worse than the moving patch


def test_stillness_is_consistent_only_when_asked_for() -> None:
    assert consistency("asked to be still") > 0.97
    assert consistency("static") == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("damage", ["bend", "grain", "fade"])
def test_consistency_is_monotone_in_damage(damage: str) -> None:
    clip = clips()["clean"]
    draw = np.random.default_rng(0)
    fields = [bench.field(draw, 96, 160) for _ in clip.video]
    noise = draw.standard_normal(clip.video.shape)

    def harmed(level: float) -> np.ndarray:
        if damage == "bend":
            return np.stack([bench.bend(frame, level * 2 * f) for frame, f in zip(clip.video, fields, strict=True)])
        if damage == "grain":
            return np.clip(clip.video + 40 * level * noise, 0, 255).astype(np.uint8)
        light = 1 + 0.3 * level * np.sin(np.linspace(0, 9, len(clip.video)))
        return np.clip(clip.video * light[:, None, None, None], 0, 255).astype(np.uint8)

    videos = [Clip("x", harmed(level), clip.prompt, clip.trajectory) for level in (0.0, 0.25, 0.5, 1.0)]
    found = FlowBA(device="cpu").observe(videos, [{}] * 4)
    values = [Consistency().score(c, g).value for c, g in zip(videos, found, strict=True)]  # type: ignore[arg-type]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert values[-1] < 0.8 * values[0]  # type: ignore[operator]


def test_cuts_are_seen_and_cameras_and_light_are_not_taken_for_them() -> None:
    names = ["clean", "far", "cut", "lighting", "static", "jitter"]
    found = Shots().observe([clips()[name] for name in names], [{}] * len(names))
    scores = {n: ShotCut().score(clips()[n], f) for n, f in zip(names, found, strict=True)}  # type: ignore[arg-type]
    assert scores.pop("cut").value == -1.0
    assert all(score.value == 0.0 for score in scores.values())
    cut = ShotCut().score(clips()["cut"], Shots().observe([clips()["cut"]], [{}])[0])  # type: ignore[arg-type]
    assert cut.parts["at"] == 8
    (short,) = Shots().observe([Clip("x", clips()["clean"].video[:2], Prompt("p", "p"), None)], [{}])
    assert isinstance(short, Exception)


def test_frames_are_compared_with_renderings_of_their_own_time() -> None:
    clip, found = clips()["clean"], geometry()["clean"]
    right = _rerendered(clip, found["geometry"])
    assert np.nanmean(right["psnr"]) > 25
    assert (right["coverage"] > 0.7).all()
    assert right["images"].shape == (9, 96, 160, 3)
    assert side_by_side(clip, right).shape == (192, 9 * 160, 3)
    still = np.repeat(found["geometry"].c2w[8:9], 17, 0)  # as if every frame had been filmed at the middle one's time
    late = _rerendered(clip, replace(found["geometry"], c2w=still))
    assert np.nanmean(late["psnr"]) < np.nanmean(right["psnr"]) - 3
    assert np.nanmean(late["ssim"]) < np.nanmean(right["ssim"]) - 0.1
    score = RerenderReward().score(clip, {**found, "rerender": right})
    assert score.value is not None
    assert 0.6 < score.value < 1
    bent = geometry()["jitter"]
    worse = RerenderReward().score(clips()["jitter"], {**bent, "rerender": _rerendered(clips()["jitter"], bent["geometry"])}).value
    assert worse is not None
    assert worse < 0.75 * score.value


def test_held_out_frames_are_harder_and_light_is_fitted() -> None:
    found = geometry()["clean"]["geometry"]
    keys = np.isin(found.frames, found.keys)
    easy = _rerendered(clips()["clean"], found, held_out=False)["psnr"][keys].mean()
    assert easy > _rerendered(clips()["clean"], found)["psnr"][keys].mean() + 0.05
    lit = geometry()["lighting"]["geometry"]
    fitted, raw = (np.nanmean(_rerendered(clips()["lighting"], lit, exposure=e)["psnr"]) for e in (True, False))
    assert fitted > raw + 1


def _rerendered(clip: Clip, found: Any, **options: Any) -> Any:
    (result,) = Rerender(**options).observe([clip], [{"geometry": found}])
    if isinstance(result, Exception):
        raise result
    return result["rerender"]


def test_likeness_against_closed_forms() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 24, 32, 3, generator=g) * 0.5 + 0.2
    mask = torch.ones(2, 24, 32, dtype=torch.bool)
    assert likeness.psnr(a, a + 0.1, mask).tolist() == pytest.approx([20.0, 20.0], abs=1e-3)
    assert likeness.ssim(a, a, mask).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert likeness.gradient(a, a, mask).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert (likeness.gradient(a, 1 - a, mask) < -0.9).all()
    gain, bias = likeness.exposure(0.8 * a + 0.05, a, mask)
    assert gain.tolist() == pytest.approx([0.8, 0.8], abs=1e-3)
    assert bias.tolist() == pytest.approx([0.05, 0.05], abs=1e-3)
    spoilt, half = a.clone(), mask.clone()
    spoilt[:, :, 16:], half[:, :, 16:] = 0, False
    for measure, best in ((likeness.psnr, 60.0), (likeness.ssim, 1.0), (likeness.gradient, 1.0)):
        assert measure(a, spoilt, half).tolist() == pytest.approx([best, best], abs=1e-3)


def test_lpips_with_the_package_and_a_trunk_of_its_own_file(tmp_path: Path) -> None:
    try:
        import torchvision
    except (ImportError, RuntimeError):
        pytest.skip("torchvision is not installed, or not for this torch")
    pytest.importorskip("lpips", reason="lpips is not installed: pip install 'world-r1[lpips]'")
    with pytest.raises(ValueError, match="trunk"):
        likeness.Lpips(str(tmp_path), torch.device("cpu"))
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet-owt-random.pth")
    measure = likeness.Lpips(str(tmp_path), torch.device("cpu"))
    a = torch.rand(2, 48, 80, 3)
    assert measure(a, a).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (measure(a, a.flip(0)) > measure(a, a + 0.01)).all()
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "alexnet-owt-random.pth")
    with pytest.raises(ValueError, match="AlexNet"):
        likeness.Lpips(str(tmp_path), torch.device("cpu"))


def test_features_by_a_real_backbone_of_random_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14, image_size=56, **small)).save_pretrained(tmp_path)
    probe = Features(str(tmp_path), frames=5, device="cpu")
    names = ["static", "cut"]
    found = probe.observe([clips()[name] for name in names], [{}] * 2)
    vectors = found[1]["features"]["vectors"]  # type: ignore[index]
    assert vectors.shape == (5, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    still, cut = (SemanticConsistency().score(clips()[n], f).value for n, f in zip(names, found, strict=True))  # type: ignore[arg-type]
    assert still == pytest.approx(1.0, abs=1e-5)
    assert cut is not None
    assert cut < 0.999


def test_general_takes_the_evidence_that_it_is_told_to() -> None:
    reward = General("pickscore")
    assert reward.needs == ("pickscore",)
    assert General.needs == ("hpsv3",)
    clip = clips()["clean"]
    assert reward.score(clip, {"pickscore": {"values": np.array([0.21, 0.23])}}).value == pytest.approx(0.5)
    assert reward.score(clip, {"pickscore": {"values": np.array([])}}).value is None
    assert General("mine", unit=(1, 2)).score(clip, {"mine": {"values": np.array([3.0])}}).value == 1.0
    with pytest.raises(ValueError, match="of must be"):
        General("mine")


def test_the_benchmark_counts_right() -> None:
    assert bench.auc(np.array([1.0, 1.0]), np.array([0.0, 1.0])) == 0.75
    rows = []
    for i in range(4):
        row: dict[str, Any] = {"clips": {}, "accuracy": {}, "seconds": 0.1}
        for a in bench.AMPLITUDES:
            row["clips"][f"amplitude {a:g}"] = {"scores": {"r": 0.8 + 0.01 * i}}
        for name in bench.DAMAGES:
            row["clips"][name] = {"scores": {"r": None if name == "blank" else 0.2 if name != "jpeg" else 0.815}}
        rows.append(row)
    found = summarise(rows, "r")
    assert found["damages"]["static"] == {"auc": 1.0, "paired_wins": 1.0, "mean": 0.2, "missing": 0, "bar": 0.97, "holds": True}
    assert found["damages"]["blank"]["auc"] == 1.0
    assert found["damages"]["blank"]["missing"] == 4
    assert found["damages"]["blank"]["mean"] is None
    assert found["damages"]["jpeg"]["auc"] == 0.5
    assert found["damages"]["jpeg"]["harmless"]
    assert found["band"] == 0
    world = bench.world("tuning", 7)
    errors = pose_errors(geometry()["clean"]["geometry"], world.poses().numpy())
    assert errors["ate"] < 0.03
    rows[0]["accuracy"] = {"amplitude 1": errors}
    assert accuracy(rows)["ate_median"] == pytest.approx(errors["ate"], abs=1e-5)


def test_benchmark_worlds_are_seeded_and_their_cameras_stay_clear() -> None:
    first, again = bench.world("tuning", 0), bench.world("tuning", 0)
    assert first.seed == again.seed
    assert torch.equal(first.poses(), again.poses())
    for other in bench.worlds("held_out", 6):
        position = (other.tensors.c2w[0, 0] @ other.poses(2.0))[:, :3, 3]
        half_width, rear, front, height = other.tensors.room[0].tolist()
        assert position[:, 0].abs().max() < half_width
        assert rear < position[:, 2].min() <= position[:, 2].max() < front
        assert -height < position[:, 1].min() <= position[:, 1].max() < 0
    with pytest.raises(ValueError, match="split"):
        bench.worlds("training", 1)
    with pytest.raises(ValueError, match="damage"):
        bench.damaged(first, np.zeros((17, 96, 160, 3), np.uint8), "rust")
