"""Sampling: prompts and seeds in, uint8 videos out. The command, evaluation and training share these rules.

The seed rule: a sample's x_T follows from its key and its prompt's camera path alone (`noise.initial_noise`). Training's key is
(run seed, step, prompt index, sample index), so `--seed 7` is sample 0 of prompt 0 of step 0 of a run with seed 7. Denoising is the
Euler ODE, which draws nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_r1 import flow, noise
from world_r1.camera import trajectory_for
from world_r1.config import Config, parse
from world_r1.policy import Policy, frames_ahead, load_policy
from world_r1.types import Prompt

#: How a model is sampled that brings no `world_r1.json`: the published settings of Wan2.1 T2V at 480p.
WAN_480P: dict[str, Any] = {
    "guidance_scale": 5.0,
    "steps": 50,
    "shift": 3.0,
    "video": {"frames": 81, "height": 480, "width": 832, "fps": 16.0},
    "camera": {"preset": "world_r1"},
}

Key = int | tuple[int, ...]


def generate(
    policy: Policy, config: Config, prompts: Sequence[str | Prompt], seeds: Sequence[Key], steps: int | None = None
) -> np.ndarray:
    """Sample one video per prompt and seed: uint8 [B, T, H, W, 3], in one batch.

    A seed is a whole key, or an int s for the key (s, 0, 0, 0). `steps` defaults to `flow.steps`. ValueError for another number of
    seeds than of prompts; ArithmeticError for latents that are not finite, which would decode to a picture of nothing.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"generate needs one seed a prompt, got {len(seeds)} seeds for {len(prompts)} prompts")
    texts = [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    condition = policy.encode(texts)
    x = torch.stack([initial_noise(policy, config, text, seed) for text, seed in zip(texts, seeds, strict=True)]).to(policy.device)
    sigmas = flow.schedule(steps or config.flow.steps, config.flow.shift)
    none = torch.zeros(0, dtype=torch.int64)
    trace = flow.sample(lambda x, sigma: policy.velocity(x, sigma, condition), x, sigmas, config.flow, none, [])
    if not trace.x0.isfinite().all():
        bad = [text for text, latent in zip(texts, trace.x0, strict=True) if not latent.isfinite().all()]
        raise ArithmeticError(
            f"sampling ended in latents that are not finite for {len(bad)} of {len(texts)} prompts, first {bad[0]!r}"
        )
    return policy.decode(trace.x0)


def initial_noise(policy: Policy, config: Config, text: str, seed: Key) -> torch.Tensor:
    """x_T of one sample, float32 [C, t, h, w]: warped along the path that the prompt commands, white where it commands none."""
    key = (seed, 0, 0, 0) if isinstance(seed, int) else seed
    trajectory = trajectory_for(text, config.video, config.camera)
    shape, ahead = policy.latent_shape(config.video), frames_ahead(policy, config.video)
    return noise.initial_noise(trajectory, shape, config.noise, *key, device=policy.device, ahead=ahead)


def settings_of(model: str) -> Config:
    """The configuration that samples a model as it is meant to be: from its `world_r1.json`, else from `WAN_480P`. No adapter."""
    from world_r1.policies import wan_files

    path = wan_files.resolve(model)
    wan_files.index(path)
    found = {**WAN_480P, **wan_files.settings(path)} if model != "blockworld" else wan_files.settings(path)
    section: dict[str, Any] = {"path": model, "lora": None}
    section.update({key: found[key] for key in ("guidance_scale", "negative_prompt", "max_text_length") if key in found})
    denoise: dict[str, Any] = {"window": {"size": 1}} | {key: found[key] for key in ("steps", "shift") if key in found}
    sections: dict[str, Any] = {key: found[key] for key in ("noise", "video", "camera") if key in found}
    return parse({"model": section, "flow": denoise, **sections}, source=f"world_r1.json of model {model!r}")


def for_sampling(config: Config, *, lora: str | None = None, steps: int | None = None, guidance: float | None = None) -> Config:
    """A run's configuration without its fresh adapter, and with other settings where they are given."""
    tree = config.model_dump(mode="json")
    tree["model"]["lora"] = None
    tree["flow"]["window"] = {"size": 1}
    if lora is not None:
        tree["model"]["init_lora"] = lora
    if steps is not None:
        tree["flow"]["steps"] = steps
    if guidance is not None:
        tree["model"]["guidance_scale"] = guidance
    return parse(tree)


def sample_to_file(
    config: Config | str,
    prompt: str,
    seed: int,
    out: str | Path,
    *,
    lora: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sheet: bool = False,
) -> Path:
    """Sample one video into the MP4 file `out` (with `sheet`, also a contact sheet as PNG beside it) and return its path.

    `config` is a configuration, or a model (Hub id, folder or "blockworld") that is sampled with its own settings. ValueError for what
    cannot be sampled, in one line, before anything heavy is loaded where that can be known.
    """
    from world_r1.video import contact_sheet, write_mp4, write_png

    out = Path(out)
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"the output must be an .mp4 file, got {str(out)!r}")
    if not prompt.strip():
        raise ValueError("the prompt is empty; describe a scene, for example 'Camera push in. A red box on grass.'")
    config = for_sampling(settings_of(config) if isinstance(config, str) else config, lora=lora, steps=steps, guidance=guidance)
    policy = load_policy(config, trainable=False)
    video = generate(policy, config, [prompt], [seed])[0]
    write_mp4(out, video, config.video.fps)
    if sheet:
        write_png(out.with_suffix(".png"), contact_sheet([video], frames=6, labels=[prompt]))
    return out
