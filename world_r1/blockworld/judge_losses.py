"""What blockworld's judges are trained to say, as losses on a batch of damaged clips; `pretrain_critic` runs them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from world_r1.blockworld.critic import QualityCritic
from world_r1.blockworld.evaluator import Evaluator
from world_r1.blockworld.evaluator_dense import moved_labels
from world_r1.blockworld.judge_data import SIZE_STEPS, SURVEYED, Batch, Batches
from world_r1.blockworld.judge_labels import AXES, CLASSES, FIRST_OBJECT
from world_r1.blockworld.judge_text import TextTable

#: Weight of the pixels in the evaluator's loss.
DENSE = 2.0

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


def attribute_loss(
    logits: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], index: torch.Tensor, scene: torch.Tensor, camera: torch.Tensor,
    reversed_: torch.Tensor, mirrored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(scene attributes, camera axes) cross-entropies over the clips that still show them; reversed and mirrored clips swap signs."""
    scene_loss = torch.zeros((), device=index.device)
    for name in CLASSES:
        scene_loss = scene_loss + _mean(F.cross_entropy(logits[name].float(), truth[name][index], reduction="none"), scene)
    seen = F.binary_cross_entropy_with_logits(logits["colours"].float(), truth["colours"][index].float(), reduction="none").mean(1)
    signs = truth["camera"][index]
    signs = torch.where(reversed_[:, None, None], -signs.flip(1), signs)
    if mirrored is not None:
        sideways = torch.tensor([-1 if ends[0].endswith("left") else 1 for ends in AXES], device=index.device)
        signs = torch.where(mirrored[:, None, None], signs * sideways, signs)
    axes = (
        F.cross_entropy(logits["camera"].float().flatten(0, 2), (signs + 1).flatten(), reduction="none")
        .view(len(index), -1)
        .mean(1)
    )
    return (scene_loss / len(CLASSES)) + _mean(seen, scene), _mean(axes, camera)


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    weight = where.float()
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _bce(logits: torch.Tensor, target: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    values = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return values.mean() if where is None else _mean(values, where)


def quality_target(strength: torch.Tensor) -> torch.Tensor:
    """1 for clean, falling with the square of what is left: a weak damage is better than a strong one, so the score has a slope."""
    return (1 - strength) ** 2


@dataclass
class CriticTask:
    """The critic's loss on one batch."""

    critic: QualityCritic
    batches: Batches
    table: TextTable
    truth: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        names = [damage.name for damage in self.batches.damages]
        self.freeze = names.index("freeze") if "freeze" in names else -2

    def __call__(self) -> Loss:
        return self.loss(self.batches.draw())

    def loss(self, batch: Batch) -> Loss:
        """Binary cross-entropies of all answers, cross-entropies of the beliefs."""
        g = self.batches.g
        ids, fidelity, camera = self.table.draw(batch.index, g)
        x, scene, camera, sees_camera, backward = self._reverse(batch, camera, g)
        frame = torch.randint(x.shape[2] // 2, x.shape[2], (len(x),), generator=g, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            coarse, y = self.critic.watch(x)
            seen = self.critic.tokens(coarse, y)
            beliefs = self.critic.beliefs(seen)
            quality, answers = self.critic.judge_quality(y), self.critic.ask(seen, ids, beliefs)
            still = coarse[torch.arange(len(x), device=x.device), frame]
            glimpse = self.critic.frame_tokens(still)
            frame_beliefs = self.critic.beliefs(glimpse)
            frame_quality = self.critic.judge_frame(still)
            frame_answer = self.critic.ask(glimpse, ids, frame_beliefs)[:, 0]
        target = quality_target(batch.strength)
        attributes, axes = attribute_loss(beliefs, self.truth, batch.index, scene, batch.keeps_camera, backward)
        glimpsed, _ = attribute_loss(frame_beliefs, self.truth, batch.index, scene, batch.keeps_camera, backward)
        parts = {
            "quality": _bce(quality, target),
            "fidelity": _bce(answers[:, 0], fidelity, scene),
            "camera": _bce(answers[:, 1], camera, sees_camera),
            "frame_quality": _bce(frame_quality, target, batch.in_frame),
            "frame_fidelity": _bce(frame_answer, fidelity, scene),
            "attributes": attributes + 0.5 * glimpsed,
            "axes": axes,
        }
        weights = {"quality": 1.5, "fidelity": 1.5, "frame_quality": 0.5, "frame_fidelity": 0.5, "attributes": 0.3, "axes": 1.0}
        return torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum(), parts

    def _reverse(self, batch: Batch, camera: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Play a sixth of the clips backwards: same quality, wrong camera. A still picture never shows a commanded move either.

        Returns the videos, where the scene caption still holds, the camera target, where it is known, and which clips run backwards.
        """
        moving, dynamic = self.table.moving[batch.index], self.table.dynamic[batch.index]
        backward = torch.rand(len(moving), generator=g, device=moving.device) < 1 / 6
        x = torch.where(backward[:, None, None, None, None], batch.x.flip(2), batch.x)
        turned = backward & moving
        known = batch.keeps_camera & ~(turned & (camera < 0.5))  # a wrong command may fit the reversed clip
        stopped = (batch.family == self.freeze) & (batch.strength > 0.8) & moving
        camera = torch.where(turned | stopped, 0.0, camera)
        return x, batch.keeps_scene & ~(backward & dynamic), camera, known | stopped, backward


@dataclass
class EvaluatorTask:
    """The evaluator's loss on one batch; `surfaces` are the pool's labels of single pixels."""

    evaluator: Evaluator
    batches: Batches
    truth: dict[str, torch.Tensor]
    surfaces: torch.Tensor | None = None

    def __call__(self) -> Loss:
        return self.loss(self.batches.draw())

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropies of attributes and pixels, binary cross-entropy of quality; clips are mirrored and reversed with their labels."""
        g, n = self.batches.g, len(batch.x)
        mirrored, backward = (torch.rand(n, generator=g, device=batch.x.device) < 0.5 for _ in range(2))
        wide = lambda v: v[:, None, None, None, None]  # noqa: E731
        x = torch.where(wide(mirrored), batch.x.flip(4), batch.x)
        x = torch.where(wide(backward), x.flip(2), x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            logits, seen = self.evaluator.see(x)
        attributes, axes = attribute_loss(
            logits, self.truth, batch.index, batch.keeps_scene, batch.keeps_camera, backward, mirrored
        )
        parts = {"attributes": attributes, "camera": axes, "quality": _bce(logits["quality"], quality_target(batch.strength))}
        loss = attributes + 2.0 * axes + 0.5 * parts["quality"]
        if seen is not None and self.surfaces is not None:
            wanted = moved_labels(self.surfaces[batch.index], batch.resampling, tuple(seen.shape[-2:]), tuple(x.shape[-2:]))
            wanted = torch.where(wide(mirrored), wanted.flip(4), wanted)
            wanted = torch.where(wide(backward), wanted.flip(2), wanted)
            parts |= pixel_losses(seen, wanted, batch)
            loss = loss + DENSE * parts["pixels"] + parts["sizes"]
        return loss, parts


def pixel_losses(seen: torch.Tensor, wanted: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """Cross-entropy of every pixel's class and smooth error of its object's size, against `wanted` [B, 2, F, H, W] as `survey` gives it.

    Clean clips only: damages move pixels, and nobody knows where to.
    """
    clean = batch.family < 0
    classes, steps = wanted.long().unbind(1)
    pixels = F.cross_entropy(seen[:, :, :-1].float().transpose(1, 2), classes, reduction="none").mean((1, 2, 3))
    zoomed = -2 * torch.log2(1 - batch.resampling[:, 0])  # a zoomed picture shows larger objects
    size = steps / SIZE_STEPS - math.log2(SURVEYED) + zoomed[:, None, None, None]
    off = F.smooth_l1_loss(seen[:, :, -1].float(), size, reduction="none", beta=0.25)
    return {"pixels": _mean(pixels, clean), "sizes": _mean(off, (classes >= FIRST_OBJECT) & clean[:, None, None, None])}
