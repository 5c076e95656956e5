"""How alike two pictures are where a mask allows the comparison. Pictures [F, H, W, 3] in 0..1, masks [F, H, W] bool; results [F]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

#: Side of SSIM's box window, and its constants (Wang et al., 2004, eq. 13; K1 = 0.01, K2 = 0.03).
WINDOW, C1, C2 = 7, 0.01**2, 0.03**2
#: Gradients below this (of full scale a pixel) are noise, not edges.
FAINT = 0.02


def grey(x: torch.Tensor) -> torch.Tensor:
    """[F, H, W] luma (Rec. 601)."""
    return x @ x.new_tensor([0.299, 0.587, 0.114])


def _mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def exposure(real: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain (0.5 to 2) and bias that bring `drawn` nearest to `real` in the least-squares sense, per frame."""
    a, b, weight = grey(real), grey(drawn), mask.to(real.dtype)
    a_mean, b_mean = _mean(a, weight), _mean(b, weight)
    covariance = _mean(a * b, weight) - a_mean * b_mean
    gain = (covariance / (_mean(b * b, weight) - b_mean**2).clamp_min(1e-6)).clamp(0.5, 2.0)
    return gain, a_mean - gain * b_mean


def psnr(real: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, at most 60."""
    error = _mean((real - drawn).square().mean(-1), mask.to(real.dtype))
    return -10 * error.clamp_min(1e-6).log10()


def ssim(real: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Structural similarity of luma in box windows that lie wholly within the mask; -1..1."""
    a, b, weight = grey(real)[:, None], grey(drawn)[:, None], mask.to(real.dtype)[:, None]
    box = lambda x: F.avg_pool2d(x, WINDOW, 1)  # noqa: E731
    inside = (box(weight) > 1 - 1e-4).to(real.dtype)[:, 0]
    a_mean, b_mean = box(a), box(b)
    a_var, b_var = box(a * a) - a_mean**2, box(b * b) - b_mean**2
    covariance = box(a * b) - a_mean * b_mean
    value = (2 * a_mean * b_mean + C1) * (2 * covariance + C2) / ((a_mean**2 + b_mean**2 + C1) * (a_var + b_var + C2))
    return _mean(value[:, 0], inside)


def gradient(real: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cosine of the luma gradients where either picture has an edge, weighted by the stronger edge; -1..1."""
    a, b = (_slopes(grey(x)) for x in (real, drawn))
    inside = mask[:, 1:-1, 1:-1] & mask[:, 2:, 1:-1] & mask[:, :-2, 1:-1] & mask[:, 1:-1, 2:] & mask[:, 1:-1, :-2]
    a_size, b_size = a.norm(dim=-1), b.norm(dim=-1)
    strongest = torch.maximum(a_size, b_size)
    weight = strongest * (strongest > FAINT) * inside
    cosine = (a * b).sum(-1) / (strongest**2).clamp_min(1e-8)  # a weaker edge in the right place is partly right
    return (cosine * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)


def _slopes(x: torch.Tensor) -> torch.Tensor:
    """[F, H - 2, W - 2, 2] central differences."""
    return torch.stack([x[:, 1:-1, 2:] - x[:, 1:-1, :-2], x[:, 2:, 1:-1] - x[:, :-2, 1:-1]], -1) / 2


class Lpips:
    """LPIPS on AlexNet (Zhang et al., CVPR 2018) through the package `lpips`; lower is more alike.

    `weights`: the trunk's file (torchvision's alexnet-owt-*.pth: plain tensors) or a folder that holds one; the package ships the linear
    layers only, and nothing is downloaded here. ValueError when there is no such file; ImportError without the extra.
    """

    def __init__(self, weights: str, device: torch.device) -> None:
        try:
            import lpips
        except (ImportError, RuntimeError) as error:
            raise ImportError(f"LPIPS needs the packages lpips and torchvision ({error}): pip install 'world-r1[lpips]'") from error
        path = Path(weights)
        files = sorted(path.glob("alexnet*.pth")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise ValueError(f"no AlexNet weights at {path} (a file alexnet-owt-*.pth); LPIPS without its trunk means nothing")
        self.net: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        _load_trunk(self.net.net, torch.load(files[0], map_location="cpu", weights_only=True))
        self.net = self.net.eval().to(device)

    def __call__(self, real: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """[F]; both pictures resized to 64 pixels at least, which the trunk needs."""
        a, b = (x.permute(0, 3, 1, 2) * 2 - 1 for x in (real, drawn))
        if min(a.shape[-2:]) < 64:
            scale = 64 / min(a.shape[-2:])
            a, b = (F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False) for x in (a, b))
        return self.net(a, b).flatten()  # type: ignore[no-any-return]


def _load_trunk(trunk: Any, state: dict[str, torch.Tensor]) -> None:
    """torchvision's "features.N.*" into the package's slices, which keep the layers' numbers. ValueError if a layer is missing."""
    own = trunk.state_dict()
    for name in own:
        source = "features." + name.split(".", 1)[1]
        if source not in state or state[source].shape != own[name].shape:
            raise ValueError(f"these are not AlexNet's weights: {source} is missing or has another shape")
        own[name] = state[source]
    trunk.load_state_dict(own)
