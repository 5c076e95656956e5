"""The evaluation end to end on a tiny stand-in policy: pairing, weights put back, failures as missing values, worker processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from world_r1 import evaluation, exam, heldout, sample
from world_r1.config import Config, RewardsConfig, parse
from world_r1.types import Clip, Prompt

TEXTS = [
    "Camera push in. A red box.",
    "Camera pan left. A blue sphere.",
    "A green box, no camera.",
    "Camera orbit right. A red box.",
]


class Painter:
    """A policy in the sense of the contract whose clips are a drifting pattern; its one weight is the drift in pixels a frame."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.drift = np.array([1.0], np.float32)
        self.broken = ""

    def latent_shape(self, video: Any) -> tuple[int, int, int, int]:
        return (1, 3, 6, 10)

    def encode(self, prompts: Any) -> torch.Tensor:
        if self.broken and self.broken in prompts[0]:
            raise RuntimeError("out of memory")
        return torch.zeros(len(prompts), 1, 1)

    def velocity(self, x: torch.Tensor, sigma: Any, condition: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        rng = np.random.default_rng(abs(int(latents.double().sum() * 1e6)))
        big = np.kron(rng.integers(40, 216, (14, 28)), np.ones((4, 4)))
        shift = [round(float(self.drift[0]) * t) for t in range(9)]
        clip = np.stack([big[4:52, 8 + s : 88 + s] for s in shift]).astype(np.uint8)
        return np.repeat(clip[None, ..., None], 3, -1)

    def state(self) -> dict[str, np.ndarray]:
        return {"drift": self.drift.copy()}

    def load_state(self, state: Any) -> None:
        self.drift = np.asarray(state["drift"], np.float32)

    @contextmanager
    def reference(self) -> Iterator[None]:
        yield


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return parse(
        {
            "model": {"path": "elsewhere"},
            "video": {"frames": 9, "height": 48, "width": 80},
            "prompts": {"test": str(tmp_path / "prompts.txt")},
            "evaluation": {"prompts": 4, "keep": 2, "bootstrap": 100, "rubric": False},
            "flow": {"steps": 2, "window": {"size": 1}},
        }
    )


def test_evaluation_pairs_and_leaves_the_policy_as_it_was(config: Config, tmp_path: Path) -> None:
    policy = Painter()
    one = evaluation.evaluate(policy, config, None, tmp_path / "one")  # type: ignore[arg-type]
    two = evaluation.evaluate(policy, config, {"drift": np.array([2.0])}, tmp_path / "two")  # type: ignore[arg-type]
    part = evaluation.sampled(Painter(), config, 1, 2)  # type: ignore[arg-type]
    again = evaluation.evaluate(policy, config, None, tmp_path / "again", others=[part])  # type: ignore[arg-type]
    assert policy.drift[0] == 1.0
    assert [row["id"] for row in one["rows"]] == [row["id"] for row in two["rows"]]
    values = lambda result: [row["values"] for row in result["rows"]]  # noqa: E731
    assert values(one) == values(again)
    assert all(b["motion"] > 1.6 * a["motion"] for a, b in zip(values(one), values(two), strict=True))
    assert one["rows"][2]["values"]["plane_sweep"] is None
    assert "no camera" in one["rows"][2]["missing"]["plane_sweep"]
    stored = json.loads((tmp_path / "one" / "eval.json").read_text())
    assert stored["summary"]["motion"]["n"] == 4
    assert sorted(p.name for p in (tmp_path / "one" / "clips").iterdir()) == ["000.mp4", "001.mp4"]
    assert (tmp_path / "one" / "sheet.png").stat().st_size > 500
    assert "geometry" in one["rows"][0]
    assert "geometry" not in one["rows"][2]


def test_weights_are_put_back_even_if_the_evaluation_fails(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Painter()
    monkeypatch.setattr(sample, "generate", lambda *a, **k: (_ for _ in ()).throw(KeyError("a bug, not a failed clip")))
    with pytest.raises(KeyError):
        evaluation.evaluate(policy, config, {"drift": np.array([3.0])}, tmp_path / "x")  # type: ignore[arg-type]
    assert policy.drift[0] == 1.0


def test_a_clip_that_cannot_be_sampled_is_a_row_of_missing_values(config: Config, tmp_path: Path) -> None:
    policy = Painter()
    policy.broken = "pan left"
    result = evaluation.evaluate(policy, config, None, tmp_path / "out")  # type: ignore[arg-type]
    row = result["rows"][1]
    assert set(row["values"].values()) == {None}
    assert "out of memory" in row["missing"]["plane_sweep"]
    assert result["summary"]["motion"] == {
        "mean": pytest.approx(1.0, abs=0.2),
        "std": pytest.approx(0, abs=0.2),
        "n": 3,
        "missing": 1,
    }


def test_too_few_prompts_is_an_error_that_says_what_to_do(config: Config) -> None:
    wanting = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"prompts": 9})})
    with pytest.raises(ValueError, match=r"evaluation.prompts=9.*holds 4"):
        evaluation.heldout_prompts(wanting)


def test_prompts_without_scenes_have_no_reference(config: Config, tmp_path: Path) -> None:
    assert evaluation.reference(Painter(), config, tmp_path / "ref") is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", ""),
        ("prompts", "other prompts"),
        ("video", "another `video`"),
        ("missing", "cannot be used"),
    ],
)
def test_a_reference_is_taken_over_from_a_run_on_the_same_prompts_only(
    config: Config, tmp_path: Path, change: str, message: str
) -> None:
    earlier = tmp_path / "earlier" / "reference"
    (earlier / "render").mkdir(parents=True)
    (earlier / "render" / "sheet.png").write_bytes(b"picture")
    texts = [prompt.text for prompt in evaluation.heldout_prompts(config)]
    rows = [{"prompt": "another" if change == "prompts" else text} for text in (*texts, "one more")]
    if change != "missing":
        (earlier / "reference.json").write_text(json.dumps({"render": rows, "roundtrip": rows}))
    ran = config.model_dump(mode="json")
    ran["video"]["frames"] += 4 * (change == "video")
    (tmp_path / "earlier" / "config.json").write_text(json.dumps(ran))
    asking = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"reference_from": str(earlier), "prompts": len(texts)})}
    )
    if message:
        with pytest.raises(ValueError, match=f"reference_from.*{message}.*leave evaluation.reference_from out"):
            evaluation.earlier_reference(asking)
        return
    rows = evaluation.take_reference(asking, tmp_path / "run" / "reference")
    assert rows is not None
    assert evaluation.take_reference(config, tmp_path / "other") is None
    assert not (tmp_path / "other").exists()
    taken = json.loads((tmp_path / "run" / "reference" / "reference.json").read_text())
    assert [row["prompt"] for row in taken["roundtrip"]] == texts
    assert (tmp_path / "run" / "reference" / "render" / "sheet.png").read_bytes() == b"picture"


def clip(seed: int) -> Clip:
    video = np.random.default_rng(seed).integers(0, 256, (9, 48, 80, 3), dtype=np.uint8)
    return Clip(f"c{seed}", video, Prompt(f"c{seed}", "A box."), None)


def test_worker_processes_change_nothing_and_end() -> None:
    with exam.examiner(None, workers=1) as here:
        for seed in range(3):
            here.submit(exam.Task(clip(seed)))
        alone = [row["values"] for row in here.results()]
    with exam.examiner(None, workers=2) as there:
        for seed in range(3):
            there.submit(exam.Task(clip(seed)))
        shared = [row["values"] for row in there.results()]
        processes = list(there.pool._pool)  # type: ignore[union-attr]
    assert alone == shared
    for process in processes:
        process.join(10)
        assert not process.is_alive()
    with pytest.raises(ValueError, match="workers"), exam.examiner(None, workers=0):
        pass


def test_the_rubric_is_a_reference_column_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = RewardsConfig.model_validate({"rewards": [{"name": f"{__name__}:Refuses"}]})
    monkeypatch.setattr("world_r1.reward.load", lambda name, package, base: _refuses())
    with exam.examiner(rewards) as here:
        here.submit(exam.Task(clip(1), rubric=True))
        row = here.results()[0]
    assert row["values"]["reward"] is None
    assert "too grey" in row["missing"]["reward"]
    assert set(heldout.METRICS) <= set(row["values"])


def _refuses() -> type:
    from world_r1.reward import Reward

    class Refuses(Reward):
        name = "refuses"

        def score(self, clip: Clip, evidence: Any) -> Any:
            return self.missing("too grey")

    return Refuses
