"""The realism judge: what it is trained on, that it learns motion and not sharpness, and the reward that it gives."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from world_r1.blockworld import pretrain_realism, realism_data, scenes
from world_r1.blockworld import prompts as blockworld
from world_r1.blockworld.damage import gaussian_blur
from world_r1.blockworld.judge_report import auc
from world_r1.blockworld.realism import BASE, Realism
from world_r1.blockworld.realism_data import Drawing, Pairs, disguise, sharpness
from world_r1.blockworld.specimens import specimens
from world_r1.config import Config, RewardConfig, RewardsConfig
from world_r1.reward import PROBES, Probe, Rubric, load
from world_r1.types import Prompt

T, H, W = 9, 32, 48


def _world(count: int, seed: int, wobble: float) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] of textures that pan; with `wobble`, every frame is moved by another random, smooth field."""
    g = torch.Generator().manual_seed(seed)
    texture = gaussian_blur(torch.rand(count, 3, 1, H + 16, W + 16, generator=g), torch.full((count,), 1.2)) - 0.5
    texture = (3 * texture).clamp(-1, 1)[:, :, 0]
    rows, columns = torch.meshgrid(torch.arange(H) + 8.0, torch.arange(W) + 8.0, indexing="ij")
    pan = 1.6 * torch.rand(count, 2, 1, 1, generator=g) - 0.8
    frames = []
    for t in range(T):
        bend = torch.randn(count, 2, 4, 6, generator=g) * wobble
        bend = torch.nn.functional.interpolate(bend, (H, W), mode="bicubic")
        at = torch.stack([columns, rows])[None] + pan * (t - T // 2) + bend
        grid = torch.stack([at[:, 0] / (W + 15) * 2 - 1, at[:, 1] / (H + 15) * 2 - 1], -1)
        frames.append(torch.nn.functional.grid_sample(texture, grid, mode="bicubic", align_corners=True, padding_mode="reflection"))
    return ((torch.stack(frames, 1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def _pairs(count: int, seed: int) -> Pairs:
    wobbling = [_world(count, seed + k, 1.2) for k in range(2)]
    return Pairs(_world(count, seed, 0.0), torch.stack(wobbling, 1))


@pytest.fixture(scope="module")
def judge() -> Realism:
    """Forty-five steps on clips that wobble and clips that do not."""
    torch.manual_seed(0)
    judge = Realism(widths=(32, 48))
    task = pretrain_realism.Task(judge, Drawing(_pairs(40, 0), 20, 1))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=pretrain_realism.DECAY)
    for _ in range(45):
        optimizer.zero_grad()
        task()[0].backward()
        optimizer.step()
    return judge.eval().requires_grad_(False)


def _logits(judge: Realism, videos: torch.Tensor) -> torch.Tensor:
    return judge(videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)


@pytest.mark.slow
def test_a_few_steps_tell_wobbling_from_rigid_clips_whichever_is_blurred(judge: Realism) -> None:
    rigid, wobbling = _world(32, 99, 0.0), _world(32, 99, 1.2)
    for good in (rigid, pretrain_realism.blurred(rigid)):
        for bad in (wobbling, pretrain_realism.blurred(wobbling)):
            assert (auc(_logits(judge, good), _logits(judge, bad)) or 0.0) > 0.9


@pytest.mark.slow
def test_a_clip_that_wobbles_in_one_half_loses_less_than_one_that_wobbles_everywhere(judge: Realism) -> None:
    rigid, wobbling = _world(24, 7, 0.0), _world(24, 7, 1.2)
    half = torch.cat([rigid[:, :, :, : W // 2], wobbling[:, :, :, W // 2 :]], 3)
    means = [float(_logits(judge, videos).mean()) for videos in (rigid, half, wobbling)]
    assert means == sorted(means, reverse=True)


def test_it_is_small_and_takes_any_size_of_at_least_five_frames() -> None:
    judge = Realism().eval()
    assert sum(p.numel() for p in judge.parameters()) <= 1.5e6
    for frames, height, width in ((5, 40, 56), (17, 95, 157), (9, 96, 160)):
        videos = torch.zeros(1, frames, height, width, 3, dtype=torch.uint8)
        assert judge.logits(videos).shape == (1,)
        assert _logits(judge, videos).shape == (1,)
    together = torch.randint(256, (3, 5, 96, 160, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.allclose(judge.logits(together, batch=3), judge.logits(together, batch=2), atol=1e-4)
    for wrong in (together[:0], together[:, :4], together.float(), together[0]):
        with pytest.raises(ValueError, match="expected"):
            judge.logits(wrong)


def test_the_scale_puts_base_samples_below_the_middle_and_round_trips_as_far_above() -> None:
    judge = Realism(widths=(8, 8))
    judge.calibrate(torch.full((4,), 5.0), torch.full((4,), -3.0))
    assert judge.scaled(torch.tensor([-3.0, 1.0, 5.0])).tolist() == pytest.approx([BASE, 0.5, 1 - BASE])
    for real, base in ((0.0, 0.0), (-1.0, 1.0)):
        judge.calibrate(torch.full((4,), real), torch.full((4,), base))
        assert judge.scale["temperature"] == 0.1, "what cannot be told apart is not magnified without end, and never turned around"


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Realism(widths=(8, 16), scale={"centre": 0.1, "temperature": 0.7}, notes={"seed": 3}).eval()
    judge.save_pretrained(tmp_path)
    again = Realism.from_pretrained(tmp_path)
    videos = torch.randint(256, (2, 5, 96, 160, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.allclose(again.score(videos), judge.score(videos), atol=2e-3)
    assert (again.widths, again.scale, again.notes) == (judge.widths, judge.scale, judge.notes)
    with pytest.raises(ValueError, match="no realism judge in"):
        Realism.from_pretrained(tmp_path / "elsewhere")


def test_training_writes_weights_scale_and_figures(tmp_path: Path) -> None:
    judge, metrics = pretrain_realism.train(tmp_path, "cpu", 1e-3, _pairs(6, 0), batch=4, held=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["held_out_prompts"] == 2
    assert metrics["plain"].keys() == metrics["blurred"].keys() >= {"auc", "accuracy", "real", "base"}
    assert metrics["within_prompt"]["logit_spread"] >= 0
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()][-1] == metrics["steps"] == 2
    assert Realism.from_pretrained(tmp_path).scale == judge.scale
    with pytest.raises(ValueError, match="seconds must be positive"):
        pretrain_realism.train(tmp_path, "cpu", 0, _pairs(2, 0))


def test_a_batch_has_as_many_of_each_kind_and_follows_its_seed() -> None:
    pairs = Pairs(torch.full((5, T, H, W, 3), 60, dtype=torch.uint8), torch.full((5, 2, T, H, W, 3), 190, dtype=torch.uint8))
    x, what = Drawing(pairs, 8, 3).draw()
    assert x.shape == (8, 3, T, H, W)
    assert what.tolist() == [1.0] * 4 + [0.0] * 4
    assert float(x[:4].mean()) < 0 < float(x[4:].mean())
    assert torch.equal(x, Drawing(pairs, 8, 3).draw()[0])
    assert not torch.equal(x, Drawing(pairs, 8, 4).draw()[0])
    learned, held = pairs.split(2)
    assert (len(learned), len(held)) == (3, 2)
    with pytest.raises(ValueError, match="pairs need uint8"):
        Pairs(pairs.real.float(), pairs.base)
    with pytest.raises(ValueError, match="pairs need uint8"):
        Pairs(pairs.real[:4], pairs.base)


def test_crops_are_cut_from_the_clips_and_turned_in_time_and_sideways(monkeypatch: pytest.MonkeyPatch) -> None:
    count = (torch.arange(4 * 100 * 170) % 251).to(torch.uint8).view(1, 4, 100, 170, 1).expand(-1, -1, -1, -1, 3)
    monkeypatch.setattr(realism_data, "disguise", lambda x, g: x)
    drawing, shapes, directions = Drawing(Pairs(count, count[:, None].expand(-1, 2, -1, -1, -1, -1)), 4, 0), set(), set()
    for _ in range(30):
        x = ((drawing.draw()[0] + 1) * 127.5).round().long()
        shapes.add(tuple(x.shape[3:]))
        sideways, later = ((x.diff(dim=dim) % 251)[:, 0, 0, 0, 0].tolist() for dim in (4, 2))
        directions |= set(zip(sideways, later, strict=True))
    assert {h for h, _ in shapes} <= set(realism_data.HEIGHTS)
    assert {w for _, w in shapes} <= set(realism_data.WIDTHS)
    assert len(shapes) > 5
    frame = 100 * 170 % 251
    assert directions == {(right, later) for right in (1, 250) for later in (frame, 251 - frame)}


def test_the_disguise_hides_how_sharp_and_bright_a_clip_is_and_is_the_same_in_all_frames() -> None:
    still = _world(48, 5, 0.0)[:, :1].expand(-1, T, -1, -1, -1).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    before = still.clone()
    x = disguise(still, torch.Generator().manual_seed(0))
    assert torch.equal(still, before)
    assert x.abs().max() <= 1
    assert torch.equal(x, disguise(still, torch.Generator().manual_seed(0)))
    assert float((x - x.mean(2, keepdim=True)).abs().mean()) < 2 / 127.5, "grain alone differs between frames"
    look = [_bytes(x), _bytes(disguise(gaussian_blur(still, torch.full((48,), 0.5)), torch.Generator().manual_seed(1)))]
    told = [auc(of(look[0]), of(look[1])) or 0.0 for of in (sharpness, lambda v: v.float().mean((1, 2, 3, 4)))]
    assert max(told) < 0.72, f"half a pixel of blur is nearly hidden: {told}"


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def test_renders_are_those_of_the_prompts_and_samples_have_noises_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate({"video": {"frames": 5, "height": 16, "width": 24}})
    asked = blockworld.prompts("train", 5)
    rendered = realism_data._renders(config, asked, torch.device("cpu"))
    for at in (0, 4):
        assert torch.allclose(rendered[at], scenes.render(blockworld.scene_of(asked[at]), 16, 24, 2).rgb[0], atol=1e-5)

    keys: list[tuple[int, ...]] = []

    def generate(policy: object, config: Config, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> np.ndarray:
        keys.extend(seeds)
        return np.zeros((len(prompts), 5, 16, 24, 3), np.uint8)

    monkeypatch.setattr("world_r1.sample.generate", generate)
    monkeypatch.setattr(realism_data, "_round_trips", lambda policy, config, some: torch.zeros(len(some), 5, 16, 24, 3).byte())
    policy = SimpleNamespace(device=torch.device("cpu"))
    pairs = realism_data.collect(policy, config, asked, 2, seed=9, batch=2)
    assert pairs.base.shape[:2] == (5, 2)
    assert len(set(keys)) == 10
    assert len(realism_data.collect(policy, config, asked, 2, seed=9, deadline=time.monotonic() - 1, batch=2)) == 4


def test_probe_and_reward_read_the_judge_and_a_short_clip_is_missing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Realism(widths=(8, 16), scale={"centre": -0.2, "temperature": 0.5}).eval()
    judge.save_pretrained(tmp_path)
    options = {"device": "cpu", "weights": str(tmp_path)}
    rubric = Rubric(RewardsConfig(rewards=(RewardConfig(name="realism"),), probes={"realism": options}))
    shown = specimens()
    names = ("rigid", "short", "odd", "blank", "free")
    verdicts = dict(zip(names, rubric.judge([shown[name] for name in names]), strict=True))
    short = verdicts.pop("short").scores[0]
    assert (short.status, short.value) == ("degenerate", None)
    assert "at least 5 frames" in short.reason
    for name, verdict in verdicts.items():
        score = verdict.scores[0]
        assert score.value == pytest.approx(float(judge.score(shown[name].video[None])[0]), abs=2e-3)
        assert score.parts["logit"] == pytest.approx(float(judge.logits(shown[name].video[None])[0]), abs=5e-3)


def test_without_weights_the_probe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = load("realism", PROBES, Probe)
    monkeypatch.setattr("world_r1_rewards.probes.realism.weights_path", lambda: tmp_path)
    assert "train them" in probe.lacks()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no realism judge in"):
        probe()
    Realism(widths=(8, 8)).save_pretrained(tmp_path / "realism")
    assert probe.lacks() == ""  # type: ignore[attr-defined]
    assert probe(device="cpu").judge.widths == (8, 8)
