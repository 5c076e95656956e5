"""Rewards of judges over HTTP, from clips to scores: opinions, checklists, the new view."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from world_r1_rewards.judges.answers import YES_NO

from tests.unit.judge_server import (
    QUICK,
    Endpoint,
    Handler,
    completion,
    running,
    says,
    status,
)
from world_r1.blockworld.specimens import specimens
from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import Rubric
from world_r1.types import Clip, Prompt, Trajectory


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with running() as server:
        yield server


def clip(shade: int, text: str = "A red box on grass. Camera pan left.", command: str | None = "pan left") -> Clip:
    video = np.full((9, 24, 40, 3), shade, np.uint8)
    trajectory = None
    if command is not None:
        K = np.array([[30, 0, 20], [0, 30, 12], [0, 0, 1]], np.float32)
        trajectory = Trajectory(np.tile(np.eye(4, dtype=np.float32), (9, 1, 1)), K, (24, 40), 3.0, command)
    return Clip(f"c{shade}", video, Prompt(f"p{shade}", text), trajectory)


def test_a_rubric_of_judges_scores_clips_and_keeps_failures_apart(endpoint: Endpoint) -> None:
    def by_shade(handler: Handler, body: dict[str, Any]) -> None:
        data = base64.b64decode(body["messages"][1]["content"][1]["image_url"]["url"].partition(",")[2])
        shade = int(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).mean())
        if shade == 3:
            handler.send(200, completion(None, "no", refusal="no"))
        else:
            time.sleep(0.01 * (9 - shade))  # later clips answer first
            handler.send(200, completion({str(shade): 0.9}))

    endpoint.always = by_shade
    options = {
        "base_url": endpoint.url,
        "model": "some-vlm",
        "limits": QUICK,
        "rubrics": ["clip_fidelity", "clip_quality"],
        "min_pixels": 1,
    }
    config = RewardsConfig(
        rewards=(
            RewardConfig(name="judge.opinion"),
            RewardConfig(name="judge.opinion", label="looks", weight=0.5, options={"rubric": "clip_quality"}),
        ),
        probes={"judge.openai": options},
    )
    verdicts = Rubric(config).judge([clip(shade) for shade in range(6)])
    assert [verdict.total is None for verdict in verdicts] == [False, False, False, True, False, False]
    for shade, verdict in enumerate(verdicts):
        assert [score.reward for score in verdict.scores] == ["judge.opinion", "looks"]
        for score in verdict.scores:
            if shade == 3:
                assert (score.status, score.value) == ("failed", None)
                assert "refused" in score.reason
            else:
                assert score.value == pytest.approx(shade / 9)
                assert score.parts["mass"] == pytest.approx(0.9)
                assert score.versions["model"] == "some-vlm"
    assert verdicts[0].scores[0].versions["rubric"].startswith("clip_fidelity@1 sha256:")
    assert verdicts[0].scores[1].versions["rubric"].startswith("clip_quality@1 sha256:")


@pytest.mark.parametrize("reward", ["judge.opinion", "judge.checklist"])
def test_the_clips_of_the_contract(endpoint: Endpoint, reward: str) -> None:
    """Blank, short, odd and hostile clips, read-only: numbers, the same alone and among others; a dead endpoint is a failure."""

    def by_text(handler: Handler, body: dict[str, Any]) -> None:
        text = body["messages"][1]["content"][-1]["text"]
        yes = 0.1 + 0.8 * (len(text) % 7) / 7
        yes_no = "structured_outputs" in body and body["structured_outputs"]["choice"] == list(YES_NO)
        handler.send(200, completion({"yes": yes, "no": 1 - yes} if yes_no else {"9": yes, "0": 1 - yes}))

    endpoint.always = by_text
    shown = list(specimens().values())
    shown.append(replace(shown[0], id="one", video=shown[0].video[:1]))
    judge = {"base_url": endpoint.url, "model": "some-vlm", "limits": QUICK | {"retries": 1}, "cache": 0, "image": "jpeg"}
    probe = {
        "judge.opinion": {"judge.openai": judge},
        "judge.checklist": {"judge.vqascore": {"transport": "openai", "judge": judge}},
    }
    rubric = Rubric(RewardsConfig(rewards=(RewardConfig(name=reward),), probes=probe[reward]))
    for clip, verdict in zip(shown, rubric.judge(shown), strict=True):
        assert verdict.scores[0].status == "ok", verdict
        assert rubric.judge([clip])[0].total == pytest.approx(verdict.total, abs=1e-9)
    endpoint.always = status(503)
    (score,) = rubric.judge(shown[:1])[0].scores
    assert (score.status, score.value) == ("failed", None)


def test_a_checklist_scores_the_right_answers(endpoint: Endpoint) -> None:
    def knows(handler: Handler, body: dict[str, Any]) -> None:
        text = body["messages"][1]["content"][-1]["text"]
        yes = 0.9 if "red box" in text else 0.1
        handler.send(200, completion({"yes": yes, "No": 0.95 - yes}))

    endpoint.always = knows
    probe = {"transport": "openai", "judge": {"base_url": endpoint.url, "model": "some-vlm", "limits": QUICK}}
    config = RewardsConfig(rewards=(RewardConfig(name="judge.checklist"),), probes={"judge.vqascore": probe})
    text = "Camera pan left. A red box and a green ball and two blue cones."
    moving, fixed = Rubric(config).judge([clip(1, text), clip(2, text, "fixed")])
    right, wrong = 0.9 / 0.95, 0.1 / 0.95
    (score,) = moving.scores
    parts = {kind: score.parts[kind] for kind in ("content", "object", "count", "direction", "static")}
    expected = {"content": right, "object": (right + wrong) / 2, "count": wrong, "direction": wrong, "static": 1 - wrong}
    assert parts == pytest.approx(expected)
    assert score.value == pytest.approx(np.mean(list(expected.values())))
    assert score.parts["items"] == 6
    assert "direction" not in fixed.scores[0].parts
    assert fixed.scores[0].parts["static"] == pytest.approx(wrong)


def test_the_new_view_is_judged_with_the_requested_motion(endpoint: Endpoint) -> None:
    from world_r1.reward import PROBES, Probe, load

    endpoint.always = says(completion({"9": 0.5, "0": 0.5}))
    options = {"base_url": endpoint.url, "model": "some-vlm", "limits": QUICK}
    probe = load("judge.view", PROBES, Probe)(transport="openai", judge=options)
    asked = clip(5, "A lighthouse.", "zoom in")
    (found,) = probe.observe([asked], [{"novel_view": {"image": asked.video[0]}}])
    assert found["novel_view_critic"] == pytest.approx({"quality": 0.5, "fidelity": 0.5})
    texts = [body["messages"][1]["content"][-1]["text"] for _, _, body in endpoint.requests]
    assert all('"zoom in"' in text for text in texts)
    assert len(set(texts)) == 2
