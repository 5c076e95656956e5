"""Judges and quality models on a GPU: the tiny networks of the CPU tests say the same there, and bfloat16 stays close."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.gpu

UNIT = Path(__file__).parents[1] / "unit"
DEVICE = "cuda"


def unit(name: str) -> ModuleType:
    """A module of the CPU tests, for the networks that it builds."""
    spec = importlib.util.spec_from_file_location(f"unit_{name}", UNIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_judge_says_the_same_on_both_devices() -> None:
    from world_r1_rewards.judges.answers import Answer
    from world_r1_rewards.judges.local import TransformersJudge

    tests = unit("test_judge_local")
    tok = tests.tokenizer()
    questions = [tests.question(i, "Your digit:" + "!" * i, count=2 + i % 3) for i in range(6)]

    def asked(device: str, dtype: Any) -> list[Any]:
        net = tests.network(tok).to(device, dtype)
        return TransformersJudge.of(net, tests.processor(tests.tokenizer(), video=False), "tiny", min_mass=0.0).ask(questions)

    slow, fast, half = asked("cpu", torch.float32), asked(DEVICE, torch.float32), asked(DEVICE, torch.bfloat16)
    for a, b, c in zip(slow, fast, half, strict=True):
        assert isinstance(a, Answer), a
        assert isinstance(b, Answer), b
        assert isinstance(c, Answer), c
        assert b.level == pytest.approx(a.level, abs=1e-4)
        assert c.level == pytest.approx(a.level, abs=2e-2)
        assert b.details == a.details


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clip_says_the_same_on_both_devices(tmp_path: Path, dtype: str) -> None:
    from world_r1_rewards.quality.clip import ClipScorer

    tests = unit("test_quality_clip")
    folder = str(tests.save_clip(tmp_path))
    videos, prompts = [tests.video(i) for i in range(3)], ["a red box", "fog", "two cones"]
    slow = ClipScorer(folder, device="cpu").cosines(videos, prompts)
    fast = ClipScorer(folder, device=DEVICE, dtype=dtype).cosines(videos, prompts)
    for (a, cut), (b, same) in zip(slow, fast, strict=True):
        assert cut == same
        assert np.allclose(a, b, atol=1e-4 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_qwen_reward_model_says_the_same_on_both_devices(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> None:
    from world_r1_rewards.quality.qwen import HPSV3, QwenReward

    tests = unit("test_quality_qwen")
    base = tests.base.__wrapped__(tmp_path_factory)  # what the fixture does, here without pytest
    checkpoint, _, _ = tests.saved_hpsv3(tmp_path, "new")
    text = tests.template(tmp_path, HPSV3)
    items = [(tests.frames(i), prompt) for i, prompt in enumerate(["a red box", "fog over a harbour", "b"])]
    found = {}
    for device, kind in (("cpu", "float32"), (DEVICE, dtype)):
        model = QwenReward(tests.small(HPSV3), str(base), str(checkpoint), str(text), device=device, dtype=kind)
        found[device] = model.scores(items)
    for a, b in zip(found["cpu"], found[DEVICE], strict=True):
        assert isinstance(a, torch.Tensor), a
        assert isinstance(b, torch.Tensor), b
        assert torch.allclose(a, b, atol=1e-3 if dtype == "float32" else 0.1)
