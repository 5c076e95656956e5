"""Damages, critic, evaluator and their training: small clips, real scenes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from world_r1.blockworld import captions, data, pretrain_critic, scenes, text_damage
from world_r1.blockworld.critic import QualityCritic, Vocabulary
from world_r1.blockworld.damage import CRITIC_DAMAGES, EVALUATOR_DAMAGES, Damage, changed, freeze
from world_r1.blockworld.evaluator import Evaluator
from world_r1.blockworld.judge_data import Batch, Batches, Pool, add_areas, damage_pool, surveyed, to_float, to_uint8
from world_r1.blockworld.judge_labels import CLASSES, camera_signs, labels
from world_r1.blockworld.judge_report import auc
from world_r1.blockworld.judge_text import SHARES, build_table, build_vocabulary

FAMILIES = CRITIC_DAMAGES + EVALUATOR_DAMAGES


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Twelve renders of odd size, with the first, the middle and the last frame."""
    drawn = data.draw(12, 3)
    rgb = scenes.render(drawn.scenes, 24, 40, 1).rgb[:, :, ::4]
    return surveyed(Pool(to_uint8(rgb), drawn.facts), torch.device("cpu"))


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_two_sets_share_no_family() -> None:
    assert not {d.name for d in CRITIC_DAMAGES} & {d.name for d in EVALUATOR_DAMAGES}
    assert not {d.apply for d in CRITIC_DAMAGES} & {d.apply for d in EVALUATOR_DAMAGES}


@pytest.mark.parametrize("damage", FAMILIES, ids=lambda d: d.name)
def test_a_damage_keeps_shape_and_range_and_follows_its_seed(damage: Damage, pool: Pool) -> None:
    x = to_float(pool.videos[:3])
    strength = torch.tensor([0.2, 0.6, 1.0])
    before = x.clone()
    y = damage.apply(x, strength, _gen(1))
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()
    assert y.abs().max() <= 1 + 1e-5
    assert torch.equal(x, before), "the input was changed in place"
    assert torch.equal(y, damage.apply(x, strength, _gen(1)))
    assert changed(x, y)[2]


@pytest.mark.parametrize("damage", FAMILIES, ids=lambda d: d.name)
def test_a_stronger_damage_changes_more(damage: Damage, pool: Pool) -> None:
    x = to_float(pool.videos)
    weak, strong = (damage.apply(x, torch.full((len(x),), s), _gen(2)) for s in (0.1, 1.0))
    assert (strong - x).abs().mean() > 1.2 * (weak - x).abs().mean()


def test_freezing_a_still_clip_changes_nothing() -> None:
    still = torch.rand(1, 3, 1, 16, 24).expand(2, 3, 5, 16, 24) * 2 - 1
    assert not changed(still, freeze(still, torch.ones(2), _gen())).any()


@pytest.mark.parametrize("kind", text_damage.KINDS)
def test_a_text_damage_changes_the_named_attribute_and_says_so(kind: str, pool: Pool) -> None:
    owner = {"colour": "objects", "shape": "objects", "texture": "objects", "swap": "objects", "count": "objects", "floor": "floor"}
    owner |= {"wall": "wall_colour", "sky": "sky", "camera": "command"}
    seen = 0
    for fact in pool.facts:
        wrong = text_damage.damage_facts(fact, kind, random.Random(1))
        if wrong is None:
            continue
        seen += 1
        different = {key for key in fact if fact[key] != wrong[key]}
        if kind == "place":
            assert {"indoor", "floor", "sky", "wall_colour"} <= different
        else:
            assert different - {"order"} == {owner[kind]}
        if kind == "count":
            assert abs(len(wrong["objects"]) - len(fact["objects"])) == 1
            assert sorted(wrong["order"]) == list(range(len(wrong["objects"])))
        if kind == "camera":
            assert text_damage.moves_of(wrong["command"]) != text_damage.moves_of(fact["command"])
        assert text_damage.damaged_caption(fact, (kind,), random.Random(2)) not in {
            captions.caption(fact, random.Random(seed)) for seed in range(60)
        }
    assert seen >= 2


def test_text_damage_refuses_an_unknown_kind(pool: Pool) -> None:
    with pytest.raises(ValueError, match="unknown text damage"):
        text_damage.damage_facts(pool.facts[0], "smell", random.Random(0))


def test_camera_signs_tell_halves_and_directions() -> None:
    assert camera_signs("push in").tolist() == [[0, 1, 0, 0, 0, 0]] * 2
    assert camera_signs("pan left, then move up").tolist() == [[0, 0, 0, 0, -1, 0], [0, 0, 0, 1, 0, 0]]
    assert not camera_signs("fixed").any()
    with pytest.raises(ValueError, match="no camera command"):
        camera_signs("a red box")


def test_areas_name_the_dominant_object(pool: Pool) -> None:
    truth = captions.attributes(scenes.sample(12, seed=3), dominant=True)
    near_tie = [len(fact["areas"]) > 1 and max(fact["areas"]) < 1.3 * sorted(fact["areas"])[-2] for fact in pool.facts]
    agree = [a["dominant"] == b["dominant"] or tie for a, b, tie in zip(pool.facts, truth, near_tie, strict=True)]
    assert all(agree)
    with pytest.raises(ValueError, match="whole batch"):
        add_areas(pool.facts[1:], torch.device("cpu"))


def test_text_table_targets_follow_what_is_wrong(pool: Pool) -> None:
    vocabulary = build_vocabulary(pool.facts, 0)
    table = build_table(pool.facts, vocabulary, torch.device("cpu"), 0)
    assert table.ids.shape[:2] == (12, len(SHARES))
    assert (table.fidelity[:, :2] == 1).all()
    assert (table.camera[:, :2] == 1).all()
    assert table.fidelity[:, 2:6].max() <= 0.25
    assert (table.camera[:, -2:] == 0).any()
    assert not (table.ids == 1).any(), "a caption word is missing from the vocabulary"


def test_batches_are_seeded_and_half_of_both_kinds_is_decoded(pool: Pool) -> None:
    ready = damage_pool(pool.videos[:8], CRITIC_DAMAGES, lambda x: x * 0.5, _gen(), None, 4)
    assert ready.source.tolist() == list(range(8))
    a, b = (Batches(pool.videos, pool.videos[:6] // 2, ready, CRITIC_DAMAGES, 20, 5).draw() for _ in range(2))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.family, b.family)
    assert a.x.shape[0] == 20
    clean = a.family[:9]
    assert (clean == -1).all()
    assert (a.strength[a.family >= 0] > 0).all()
    assert (a.strength[a.family < 0] == 0).all()
    assert a.index[0:9:2].max() < 6


def _critic(pool: Pool) -> QualityCritic:
    torch.manual_seed(0)
    return QualityCritic(build_vocabulary(pool.facts, 0))


def _video(n: int, frames: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, frames, 26, 42, 3), dtype=np.uint8)


def test_critic_fits_its_budget_and_survives_saving(pool: Pool, tmp_path: Path) -> None:
    critic = _critic(pool).eval()
    assert sum(p.numel() for p in critic.parameters()) <= 1.6e6
    critic.notes = {"seed": 7}
    critic.save_pretrained(tmp_path)
    assert (tmp_path / "critic.safetensors").stat().st_size <= 4 * 2**20
    loaded = QualityCritic.from_pretrained(tmp_path)
    assert loaded.notes == {"seed": 7}
    assert loaded.vocabulary.words == critic.vocabulary.words
    video, prompts = _video(3), ["A red box on grass.", "Camera pan left. A blue sphere on sand.", ""]
    a, b = critic.half().float().score(video, prompts), loaded.score(video, prompts, batch=3)
    assert set(a) == {"quality", "fidelity", "camera"}
    for name in a:
        assert a[name].shape == (3,)
        assert ((a[name] >= 0) & (a[name] <= 1)).all()
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-3)


def test_folding_the_norms_for_scoring_changes_no_number(pool: Pool) -> None:
    critic = _critic(pool)
    for norm in (m for m in critic.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x = to_float(pool.videos[:2])
    folded = critic.eval().watch(x)
    critic.train()
    for norm in (m for m in critic.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    for a, b in zip(folded, critic.watch(x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_critic_scores_single_frames_and_empty_batches(pool: Pool) -> None:
    critic = _critic(pool).eval()
    scores = critic.score_frames(_video(4)[:, 0], ["A red box on grass."] * 4, batch=3)
    assert {name: value.shape for name, value in scores.items()} == {"quality": (4,), "fidelity": (4,)}
    assert critic.score(_video(0), [])["quality"].shape == (0,)


def test_critic_names_what_is_wrong_with_its_input(pool: Pool, tmp_path: Path) -> None:
    critic = _critic(pool).eval()
    with pytest.raises(ValueError, match="uint8"):
        critic.score(_video(1).astype(np.float32), ["x"])
    with pytest.raises(ValueError, match="one prompt per video"):
        critic.score(_video(2), ["x"])
    with pytest.raises(ValueError, match="at least 4 frames"):
        critic.score(_video(1, frames=3), ["x"])
    with pytest.raises(ValueError, match="no critic in"):
        QualityCritic.from_pretrained(tmp_path)


def test_vocabulary_cuts_and_marks_unknown_words() -> None:
    vocabulary = Vocabulary.build(["A red box."])
    assert vocabulary.words == (".", "a", "box", "red")
    assert vocabulary.encode(["Red zebra.", ""], 4).tolist() == [[5, 1, 2, 0], [0, 0, 0, 0]]


def test_evaluator_fits_its_budget_and_survives_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    evaluator = Evaluator().eval()
    assert sum(p.numel() for p in evaluator.parameters()) <= 1.6e6
    evaluator.save_pretrained(tmp_path)
    loaded = Evaluator.from_pretrained(tmp_path)
    seen = loaded.predict(_video(2))
    assert seen["floor"][0] in CLASSES["floor"]
    assert seen["camera"].shape == (2, 2, 6)
    for name, value in evaluator.half().float().logits(_video(2)).items():
        torch.testing.assert_close(value, loaded.logits(_video(2))[name], atol=2e-3, rtol=1e-2)
    config = json.loads((tmp_path / "config.json").read_text())
    config["classes"]["floor"] = ["lava"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="other classes"):
        Evaluator.from_pretrained(tmp_path)


def test_attribute_accuracy_tells_right_wrong_and_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator().eval()
    seen = {
        "floor": ["grass"], "wall": ["none"], "sky": ["a night sky"], "object_colour": ["red"], "object_shape": ["box"], "count": ["2"],
        "colours": [["red", "blue"]], "camera": camera_signs("push in, then pan left")[None], "quality": torch.tensor([0.5]),
    }  # fmt: skip
    monkeypatch.setattr(evaluator, "predict", lambda videos: seen)
    things = [{"colour": "blue", "texture": "", "shape": "box"}, {"colour": "red", "texture": "", "shape": "sphere"}]
    facts = {"floor": "grass", "wall_colour": None, "sky": "a blue sky", "objects": things, "command": "push in"}
    got = evaluator.attribute_accuracy(_video(1), [facts])
    assert torch.isnan(got["wall"][0])
    expected = {
        "floor": 1,
        "sky": 0,
        "object_colour": 1,
        "object_shape": 1,
        "count": 1,
        "colours": 1,
        "camera": 0,
        "camera_direction": 0,
    }
    assert {name: got[name].item() for name in expected} == expected
    assert evaluator.attribute_accuracy(_video(1), [{**facts, "dominant": 0}])["object_colour"].item() == 0
    with pytest.raises(ValueError, match="one attribute dict per video"):
        evaluator.attribute_accuracy(_video(2), [facts])


def _steps(task: Any, batch: Batch, parameters: Iterable[nn.Parameter], count: int) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(count):
        task.batches.g.manual_seed(0)  # the same captions, frames and reversals in every step
        loss, _ = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.fixture
def batches(pool: Pool) -> Batches:
    return Batches(pool.videos, pool.videos[:0], None, CRITIC_DAMAGES, 8, 1, groups=2)


def test_a_few_steps_teach_the_critic_a_fixed_batch(pool: Pool, batches: Batches) -> None:
    critic = _critic(pool)
    critic.eval().score(_video(1), ["A red box."])  # scoring first must not spoil training (cached tensors)
    critic.train()
    table = build_table(pool.facts, critic.vocabulary, torch.device("cpu"), 0)
    task = pretrain_critic.CriticTask(critic, batches, table, labels(pool.facts))
    first, last = _steps(task, batches.draw(), critic.parameters(), 12)
    assert last < 0.75 * first


def test_a_few_steps_teach_the_evaluator_a_fixed_batch(pool: Pool, batches: Batches) -> None:
    torch.manual_seed(0)
    evaluator = Evaluator()
    task = pretrain_critic.EvaluatorTask(evaluator, batches, labels(pool.facts), pool.surfaces)
    batch = batches.draw()
    start = task.loss(batch)[1]
    first, last = _steps(task, batch, evaluator.parameters(), 12)
    assert last < 0.75 * first
    end = task.loss(batch)[1]
    assert all(end[name] < 0.75 * start[name] for name in ("pixels", "sizes"))


@pytest.mark.parametrize("train", [pretrain_critic.train_critic, pretrain_critic.train_evaluator])
def test_training_writes_weights_figures_and_log(train: Callable[..., dict[str, Any]], pool: Pool, tmp_path: Path) -> None:
    few = Pool(pool.videos[:6, :, :4], pool.facts[:6], surfaces=None if pool.surfaces is None else pool.surfaces[:6])
    metrics = train(tmp_path, "cpu", 0.5, nn.Identity(), 3, few, few, batch=8)
    assert metrics["steps"] >= 2
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["loss"] > 0
    kind = QualityCritic if train is pretrain_critic.train_critic else Evaluator
    assert kind.from_pretrained(tmp_path).notes["steps"] == metrics["steps"]


def test_training_refuses_a_budget_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds must be positive"):
        pretrain_critic.train_critic(tmp_path, "cpu", 0)


def test_auc_counts_ties_half() -> None:
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == 0.875
    assert auc(torch.tensor([1.0]), torch.zeros(0)) is None
