"""Stage 1: the causal video VAE, trained from scratch on endless renders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from world_r1.blockworld import data, model
from world_r1.blockworld.resume import load_state, save_state
from world_r1.blockworld.stage import Options, Pace, psnr, write_metrics
from world_r1.policies import wan_vae

LEARNING_RATE = 1.3e-3
KL_WEIGHT = 3e-5


def train(options: Options) -> nn.Module:
    """Train, evaluate on 256 held-out renders, write `vae/`; returns the VAE."""
    torch.manual_seed(options.seed)
    device = options.device
    vae = wan_vae.channels_last(model.build_vae().to(device))
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4, fused=device.type == "cuda"
    )
    ema = [p.detach().clone() for p in vae.parameters()]
    state = options.out / "vae_state.safetensors"
    start = load_state(state, {"vae": vae}, [optimizer], ema) if options.resume else 0
    render = data.Renderer(device)
    stream = data.stream(options.batch, 1_000 + start, options.workers)
    render(next(stream).scenes)  # compile before the clock starts
    pace, running = Pace(options, start), []
    for step in pace:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * pace.factor()
        x = render(next(stream).scenes).contiguous(memory_format=torch.channels_last_3d)
        loss, parts = _loss(vae, x)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + step) / (20 + step))
        torch._foreach_lerp_(ema, list(vae.parameters()), 1 - decay)
        running.append(parts)
        if pace.due("log", 10):
            l1, kl = torch.stack(running).mean(0).tolist()
            print(f"vae {step} l1 {l1:.4f} kl {kl:.2f} at {pace.elapsed:.0f} s", flush=True)
            running = []
        if pace.due("save", options.save_seconds):
            save_state(state, step + 1, {"vae": vae}, [optimizer], ema)
    with torch.no_grad():
        for parameter, average in zip(vae.parameters(), ema, strict=True):
            parameter.copy_(average)
    vae.eval().requires_grad_(False)
    metrics = evaluate(vae, render, options)
    model.save(options.out, vae=vae)
    write_metrics(options.out, "vae", metrics | {"steps": pace.step, "batch": options.batch, "seconds": round(pace.elapsed, 1)})
    return vae


def _loss(vae: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 + MSE on pixels, L1 on spatial and temporal differences, weak KL. Returns the loss and (l1, kl) for the log."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        mean, logvar = wan_vae.encode(vae, x)
        mean, logvar = mean.float(), logvar.float().clamp(-20, 10)
        y = wan_vae.decode(vae, mean + (0.5 * logvar).exp() * torch.randn_like(mean)).float()
    error = y - x
    l1 = error.abs().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    change = error.diff(dim=2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = l1 + 2.0 * error.square().mean() + 0.4 * edges + 0.2 * change + KL_WEIGHT * kl
    return loss, torch.stack([l1.detach(), kl.detach()])


@torch.no_grad()
def evaluate(vae: nn.Module, render: data.Renderer, options: Options, count: int = 256) -> dict[str, object]:
    """PSNR on held-out renders; sets latents_mean and latents_std of the VAE; writes `vae_roundtrip.png`."""
    ratios, means, squares = [], [], []
    for i in range(max(1, count // options.batch)):
        x = render(data.draw(options.batch, data.HELD_OUT + i).scenes)
        with torch.autocast(options.device.type, torch.bfloat16, enabled=options.device.type == "cuda"):
            mean = wan_vae.encode(vae, x.contiguous(memory_format=torch.channels_last_3d))[0]
            y = wan_vae.decode(vae, mean, clamp=True).float()
        ratios.append(psnr(x, y))
        means.append(mean.float().mean((0, 2, 3, 4)))
        squares.append(mean.float().square().mean((0, 2, 3, 4)))
    mean = torch.stack(means).mean(0)
    std = (torch.stack(squares).mean(0) - mean.square()).sqrt()
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())  # type: ignore[operator]
    write_sheet(options.out / "vae_roundtrip.png", torch.stack([x[:6], y[:6]], 1).flatten(0, 1))
    values = torch.cat(ratios)
    return {"psnr_db": round(values.mean().item(), 3), "psnr_db_p10": round(values.quantile(0.1).item(), 3), "clips": len(values)}


def write_sheet(path: Path, videos: torch.Tensor) -> None:
    """Contact sheet of videos [N, 3, T, H, W] in -1..1: a row a video, five frames each."""
    from world_r1 import video

    frames = ((videos.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).cpu().numpy()
    video.write_png(path, video.contact_sheet(frames, frames=5))
