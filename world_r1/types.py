"""What travels between processes: small frozen records, every array field with shape, dtype and unit.

`Prompt -> Rollout -> Evidence -> Score -> Group -> Weights`. Videos and latents are numpy arrays because Ray maps numpy
without a copy (a torch tensor is pickled); the driver holds references to them and never the arrays themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["rigid", "dynamic"]
Status = Literal["ok", "degenerate", "failed"]


@dataclass(frozen=True)
class Prompt:
    """One line of the text-only data set.

    Example: `Prompt(id="train-000017", text="Camera orbit left. A red box on grass under a blue sky.", kind="rigid")`
    """

    id: str
    text: str
    kind: Kind = "rigid"
    #: Facts the generator knows about the text (blockworld: colours, shapes, ...). Evaluation may read them, rewards may not.
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """A camera path: one pose per video frame. Built by `world_r1.camera.trajectory`.

    Example: `Trajectory(c2w=<17x4x4>, K=<3x3>, size=(96, 160), depth=3.6, command="orbit left")`
    """

    #: [T, 4, 4] float32, camera-to-world, OpenCV axes (x right, y down, z forward); frame 0 is the identity.
    c2w: np.ndarray
    #: [3, 3] float32 intrinsics in pixels of `size`.
    K: np.ndarray
    #: (height, width) in pixels that `K` belongs to. An intrinsics matrix without its size is a bug waiting to happen.
    size: tuple[int, int]
    #: Distance of the subject in front of the first camera, in the unit of the translations of `c2w`.
    depth: float
    #: Canonical command text, for example "push in, then pan left"; "" when the prompt names no camera.
    command: str = ""
    #: [T] float32 factor on the focal lengths of `K` by frame, 1 in frame 0; None for a constant focal length.
    zoom: np.ndarray | None = None

    @property
    def Ks(self) -> np.ndarray:
        """[T, 3, 3] float32 intrinsics of every frame."""
        found = np.repeat(np.asarray(self.K, np.float32)[None], len(self.c2w), 0)
        if self.zoom is not None:
            found[:, :2, :2] *= np.asarray(self.zoom, np.float32)[:, None, None]
        return found


@dataclass(frozen=True)
class Clip:
    """What a reward worker receives: one finished video with what was asked for.

    Example: `Clip(id="s3-p1-k0", video=<17x96x160x3 uint8>, prompt=Prompt(...), trajectory=Trajectory(...), fps=8.0)`
    """

    id: str
    #: [T, H, W, 3] uint8, sRGB.
    video: np.ndarray
    prompt: Prompt
    #: The commanded path, or None when the prompt commands none.
    trajectory: Trajectory | None
    fps: float = 8.0


@dataclass(frozen=True)
class Evidence:
    """What one probe saw in one video. Computed once per video and shared by every reward that needs it.

    Example: `Evidence(probe="flow_ba", status="ok", data={"c2w": ..., "K": ..., "depth": ...}, seconds=0.41)`
    """

    probe: str
    status: Status
    data: Mapping[str, Any] = field(default_factory=dict)
    #: Why the status is not "ok"; "" otherwise.
    reason: str = ""
    seconds: float = 0.0


class NotFinite(ValueError):
    """A NaN or an infinity where a number belongs: the sign of a broken worker (or of a division that a reward forgot to guard)."""


@dataclass(frozen=True)
class Score:
    """One reward's verdict on one video. A score without `status == "ok"` has `value is None`: a failure is a missing value.

    Example: `Score(reward="trajectory", status="ok", value=0.83, parts={"rotation": 0.9, "translation": 0.76})`
    """

    reward: str
    status: Status
    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    #: What the number depends on besides the clip: a judge's model and rubric with its hash, a checkpoint.
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.value is not None):
            raise ValueError(
                f"{self.reward}: a score has a value exactly when its status is ok; got {self.status} and {self.value}"
            )
        if self.value is not None and not np.isfinite(self.value):
            raise NotFinite(
                f"{self.reward}: a score must be finite, got {self.value}; return status 'failed' and value None instead"
            )


@dataclass(frozen=True)
class Verdict:
    """All scores of one video and their weighted sum; `total` is None if any score that counts is missing.

    Example: `Verdict(clip="s3-p1-k0", total=1.71, scores=(Score(...), Score(...)), seconds={"flow_ba": 0.4})`
    """

    clip: str
    total: float | None
    scores: tuple[Score, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionPlans:
    """The sparse-attention plans of one video in one velocity evaluation: at which resolution each layer's query blocks saw each key block.

    Example: `AttentionPlans(layers=(0, 1), values=(0, 1, 128), packed=<2949120 uint8>, shape=(2, 2, 12, 256, 256), settings={...})`
    """

    #: Transformer layers that were sparse, ascending.
    layers: tuple[int, ...]
    #: Levels that occur, ascending; `packed` holds indices into them.
    values: tuple[int, ...]
    #: uint8: indices of 2 or 4 bits (up to 4 or 16 values), lowest bits first, in the order of `shape`.
    packed: np.ndarray
    #: (branches, layers, heads, query blocks, key blocks); with guidance there are two branches, conditional and unconditional.
    shape: tuple[int, int, int, int, int]
    #: The other settings of `world_r1_kernels.pyramid_attention.plan.Plan`, the same for all layers.
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One sampled video and everything the learner needs to take its log-probs again.

    Example: `Rollout(id="s3-p1-k0", prompt=Prompt(...), group=1, seed=(7, 3, 1, 0), version=3, ...)`
    """

    id: str
    prompt: Prompt
    #: Index of the group (one prompt, `group_size` videos) within the step.
    group: int
    #: (run seed, step, prompt index, sample index): all randomness of this sample follows from it.
    seed: tuple[int, int, int, int]
    #: Version of the policy weights that the log-probs were drawn with.
    version: int
    #: [k] indices into the sigma schedule of the k stochastic (stored and trained) steps, ascending, int64.
    steps: np.ndarray
    #: [k, C, t, h, w] float32, or the bits of bfloat16 as uint16 (`speed.latents`): x_t before each stochastic step.
    latents: np.ndarray
    #: [k, C, t, h, w] in the same type: x_{t-1} drawn at each stochastic step.
    next_latents: np.ndarray
    #: [k] float32: log-prob of each draw under the sampling policy, in the reduction that the config names.
    log_probs: np.ndarray
    #: [C, t, h, w] in the same type: final latents x_0 (forward-process algorithms train on these).
    x0: np.ndarray
    #: Per stochastic step the plans of sparse attention (None where it was dense); empty without.
    plans: tuple[AttentionPlans | None, ...] = ()


@dataclass(frozen=True)
class Group:
    """The videos of one prompt in one step with their verdicts, before advantages.

    Example: `Group(prompt=Prompt(...), rollouts=("s3-p1-k0", "s3-p1-k1"), verdicts=(Verdict(...), Verdict(...)))`
    """

    prompt: Prompt
    rollouts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Weights:
    """A published policy version: the adapter (or full) state by parameter name.

    Example: `Weights(version=4, state={"blocks.0.attn1.to_q.lora_A.default.weight": <32x320 float32>})`
    """

    version: int
    state: Mapping[str, np.ndarray]
