"""`world-r1 train --dry-run`: everything a configuration names, built with tiny dimensions, run once on the CPU, in this process.

The model is the configured architecture with random weights of a few thousand numbers (a local model such as blockworld runs as it is), the
video the smallest that it makes. A group is sampled, judged and learned from by the real sampler, rubric, advantages and trainer. What that
cannot show, the trained weights, the rewards whose weights are absent and Ray's placement, is named in the report.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from world_r1.config import Config, RewardConfig, parse
from world_r1.types import Clip, Group, Prompt, Verdict

log = logging.getLogger(__name__)

#: Videos of the one group, and most denoising steps.
VIDEOS, STEPS = 2, 3


@dataclass(frozen=True)
class Part:
    """One thing that was tried. Example: `Part("reward da3", "left out", "the package depth_anything_3 is not installed", 0.2)`"""

    name: str
    #: "ok", or "left out" where something that this machine lacks is needed.
    status: str
    about: str
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """For a table or JSON."""
        return {"part": self.name, "status": self.status, "about": self.about, "seconds": round(self.seconds, 2)}


def dry_run(config: Config) -> list[dict[str, Any]]:
    """Build, sample, score, update once; one row a part. ValueError for what is wrong with the configuration itself.

    Nothing is downloaded: what is not in the Hub's cache counts as absent.
    """
    with _offline():
        return [part.row() for part in _parts(config)]


def _parts(config: Config) -> list[Part]:
    from world_r1.policy import load_policy
    from world_r1.prompts import PromptStream
    from world_r1.rollout import sample_group
    from world_r1.update import Trainer

    parts: list[Part] = []
    begin = time.perf_counter()
    prompt = PromptStream.of(config).at(0)[0]
    small = shrunk(config)
    policy: Any = load_policy(small)
    trained = sum(p.numel() for p in policy.named_parameters().values())
    parts.append(Part("model", "ok", f"{_model(small)}, {trained} trained weights", _since(begin)))
    begin = time.perf_counter()
    sampled = sample_group(policy, small, prompt, 0, 0, 0)
    size = "x".join(str(n) for n in sampled.clips[0].video.shape[:3])
    parts.append(Part("sample", "ok", f"{len(sampled.clips)} videos of {size} for {prompt.text[:40]!r}", _since(begin)))
    verdicts, judged = score(small, sampled.clips)
    parts += judged
    begin = time.perf_counter()
    advantages, about = _advantages(small, prompt, [rollout.id for rollout in sampled.rollouts], verdicts)
    metrics = Trainer(small, policy).update(sampled.rollouts, advantages)
    if metrics["optimizer_steps"] < 1 or metrics["updates_refused"]:
        raise ArithmeticError(f"the update was refused because a loss or gradient is not finite: {metrics}")
    told = ", ".join(f"{name} {metrics[name]:.6g}" for name in ("ratio_mean", "grad_norm") if name in metrics)
    parts.append(Part("update", "ok", f"{about}; {told}", _since(begin)))
    return parts


@contextmanager
def _offline() -> Iterator[None]:
    """The Hub's client and the model libraries look at the cache only."""
    import huggingface_hub.constants as hub

    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    said, os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE"), "1"
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
        if said is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = said


def shrunk(config: Config) -> Config:
    """The configuration with tiny dimensions, everything else as it is: algorithm, guidance, experts, switches, rewards."""
    tree = config.model_dump(mode="json")
    known = _is_known(config.model.path)
    tree["model"] |= {"device": "cpu", "dtype": "fp32", "init_lora": None, "random_weights": "tiny" if known else None}
    if tree["model"]["lora"] is not None:
        tree["model"]["lora"] |= {"rank": min(4, config.model.lora.rank)} if config.model.lora else {}
    if known:
        tree["video"] |= dict(zip(("frames", "height", "width"), _smallest(config), strict=True))
    tree["flow"]["steps"] = min(STEPS, config.flow.steps)
    stochastic = tree["flow"]["steps"] - (0 if config.flow.window.position == "first" and config.flow.family.endswith("sde") else 1)
    tree["flow"]["window"] |= {"size": max(1, min(2, config.flow.window.size, stochastic)), "within": None}
    tree["prompts"] |= {"groups": 1, "group_size": VIDEOS}
    tree["cluster"]["learners"], tree["speed"]["fsdp"], tree["speed"]["sequence_parallel"] = 1, False, 1  # one process, here
    tree["optimizer"]["micro_batch"] = min(VIDEOS, config.optimizer.micro_batch)
    tree["cluster"]["sample_batch"] = None
    if config.speed.attention.kind != "dense":
        tree["speed"]["attention"] |= {"block": 16, "density": max(0.4, config.speed.attention.density), "backend": "masked"}
    tree["speed"]["compile"] = False  # minutes for programs that a tiny model does not need
    tree["speed"]["vae_dtype"] = "fp32"
    return parse(tree, source="the dry run")


def score(config: Config, clips: Sequence[Clip]) -> tuple[list[Verdict], list[Part]]:
    """Judge with every reward that this machine can run: verdicts by those, and a part for each reward."""
    from world_r1.reward import Rubric

    working: list[RewardConfig] = []
    parts: list[Part] = []
    for entry in config.rewards.rewards:
        begin = time.perf_counter()
        alone = config.rewards.model_copy(update={"rewards": (entry.model_copy(update={"phase": "all"}),)})
        try:
            scores = [verdict.scores[0] for verdict in Rubric(alone).judge(clips[:1]) if verdict.scores]
        except Exception as error:  # a plug-in may raise anything; the report says what
            parts.append(Part(f"reward {entry.key}", "left out", f"{type(error).__name__}: {_line(error)}", _since(begin)))
            continue
        if not scores:
            parts.append(Part(f"reward {entry.key}", "ok", "does not apply to this prompt", _since(begin)))
        elif scores[0].status == "failed":
            parts.append(Part(f"reward {entry.key}", "left out", _line(scores[0].reason), _since(begin)))
        else:
            value = (
                f"{scores[0].value:.4g}" if scores[0].value is not None else f"no number for this noise ({_line(scores[0].reason)})"
            )
            parts.append(Part(f"reward {entry.key}", "ok", value, _since(begin)))
            working.append(entry)
    if not working:
        return [], parts
    rubric = Rubric(config.rewards.model_copy(update={"rewards": tuple(working)}))
    return rubric.judge(clips), parts


def _advantages(config: Config, prompt: Prompt, ids: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[dict[str, Any], str]:
    """From the verdicts; where they tell nothing apart (noise, absent rewards), +1 and -1, said so."""
    from world_r1.advantage import group_relative

    if verdicts:
        weights = {entry.key: entry.weight for entry in config.rewards.rewards}
        found = group_relative((Group(prompt, tuple(ids), tuple(verdicts)),), weights, config.algorithm.advantage)
        values = dict(found.values)
        if any(value is not None for value in values.values()):
            return values, "advantages from the rewards above"
    return dict(zip(ids, (1.0, -1.0), strict=True)), "no reward told these videos apart, so advantages were set to +1 and -1"


def _is_known(path: str) -> bool:
    from world_r1.policies.architectures import architecture

    try:
        architecture(path)
    except ValueError:
        return False
    return True


def _smallest(config: Config) -> tuple[int, int, int]:
    """Nine frames and a few patches, wider than high."""
    from world_r1.policies.architectures import architecture

    found = architecture(config.model.path)
    step = 2 * int(found.vae.get("scale_factor_spatial", 8))
    return 9, 2 * step, 3 * step


def _model(config: Config) -> str:
    if config.model.random_weights:
        return f"the architecture of {config.model.path}, tiny, random weights"
    return f"{config.model.path} with its own weights"


def _line(error: object) -> str:
    return " ".join(str(error).split())[:160]


def _since(begin: float) -> float:
    return time.perf_counter() - begin
