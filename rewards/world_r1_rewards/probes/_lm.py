"""Batched bundle adjustment on dense flow: poses, log inverse depths and one log focal length by Levenberg-Marquardt.

Unknowns of a clip: T world-to-camera poses, log inverse depth z on a grid of N points in each of A keyframes, and log(f / width).
A point with ray b (for focal f) seen by keyframe k projects into frame t at  pi(R_tk b + e^z t_tk),  with (R_tk, t_tk) the relative
pose. Every residual depends on poses only through that relative pose, so one 2x6 Jacobian serves both frames: a left
perturbation of T_k acts as -Ad(T_tk). Depths are eliminated by a Schur complement, as in any bundle adjustment (Triggs et al., 1999).
Robust cost: Charbonnier, annealed. All clips of a batch run the same number of iterations; each accepts or rejects its own steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

#: Weight of the neighbour prior on z and of the focal prior, relative to the number of observations.
SMOOTHNESS = 0.05
NEAR = 0.05
FOCAL_RANGE = (0.4, 2.5)


class State(NamedTuple):
    """What is solved for, in a batch of B clips."""

    R: torch.Tensor  #: [B, T, 3, 3] world-to-camera rotation
    t: torch.Tensor  #: [B, T, 3] world-to-camera translation; unit: median depth of the middle keyframe
    z: torch.Tensor  #: [B, A, h, w] log inverse depth
    focal: torch.Tensor  #: [B] log(f / width)


class Problem(NamedTuple):
    """Observations of a batch of B clips of one size."""

    target: torch.Tensor  #: [B, A, T, h, w, 2] displacement, pixels
    weight: torch.Tensor  #: [B, A, T, h, w] >= 0; 0 where nothing was observed
    base: torch.Tensor  #: [h, w, 2] grid points in pixels from the principal point
    keys: torch.Tensor  #: [A] index of each keyframe among the T frames
    width: float  #: frame width in pixels
    focal: torch.Tensor  #: [B] prior of log(f / width)
    focal_weight: float

    def thin(self) -> Problem:
        """Every second point of the grid in both directions."""
        return self._replace(target=self.target[..., ::2, ::2, :], weight=self.weight[..., ::2, ::2], base=self.base[::2, ::2])

    def repeat(self, times: int) -> Problem:
        """The batch repeated, for several starts of the same clips."""
        r = lambda x: x.repeat(times, *[1] * (x.ndim - 1))  # noqa: E731
        return self._replace(target=r(self.target), weight=r(self.weight), focal=r(self.focal))


class Projection(NamedTuple):
    """Grid points of the keyframes seen in all frames."""

    R: torch.Tensor  #: [B, A, T, 3, 3] keyframe -> frame
    t: torch.Tensor  #: [B, A, T, 3]
    inverse: torch.Tensor  #: [B, A, 1, N] inverse depth e^z
    Z: torch.Tensor  #: [B, A, T, N] depth in the frame over depth in the keyframe, clamped to NEAR
    u: torch.Tensor  #: [B, A, T, N] normalised image coordinates
    v: torch.Tensor
    f: torch.Tensor  #: [B, 1, 1, 1] focal length in pixels
    ahead: torch.Tensor  #: [B, A, T, N] bool: in front of the camera


def so3(w: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] (Rodrigues)."""
    angle = (w * w).sum(-1, keepdim=True).add(1e-20).sqrt()
    k = skew(w / angle)
    angle = angle[..., None]
    return torch.eye(3, dtype=w.dtype, device=w.device) + angle.sin() * k + (1 - angle.cos()) * (k @ k)


def skew(x: torch.Tensor) -> torch.Tensor:
    """[..., 3] -> [..., 3, 3] with skew(x) @ y = x cross y."""
    a, b, c = x.unbind(-1)
    o = torch.zeros_like(a)
    return torch.stack([o, -c, b, c, o, -a, -b, a, o], -1).unflatten(-1, (3, 3))


def project(problem: Problem, state: State) -> Projection:
    """Where the grid points of the keyframes appear in all frames."""
    key_R, key_t = state.R[:, problem.keys], state.t[:, problem.keys]
    R = state.R[:, None] @ key_R[:, :, None].mT
    t = state.t[:, None] - (R @ key_t[:, :, None, :, None])[..., 0]
    f = (problem.width * state.focal.exp())[:, None, None, None]
    x, y = problem.base.flatten(0, 1).unbind(-1)
    rays = torch.stack([x / f[:, 0, 0], y / f[:, 0, 0], torch.ones_like(x).expand(len(f), -1)], 1)  # [B, 3, N]
    inverse = state.z.flatten(2).exp()[:, :, None]
    X = R @ rays[:, None, None] + t[..., None] * inverse[..., None, :]
    ahead = X[..., 2, :] > NEAR
    Z = X[..., 2, :].clamp_min(NEAR)
    return Projection(R, t, inverse, Z, X[..., 0, :] / Z, X[..., 1, :] / Z, f, ahead)


def residuals(problem: Problem, p: Projection) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, A, T, N] residuals in x and y, pixels."""
    q = problem.base.flatten(0, 1) + problem.target.flatten(3, 4)
    return p.u * p.f - q[..., 0], p.v * p.f - q[..., 1]


def solve(problem: Problem, start: State, iterations: int, scales: tuple[float, float]) -> tuple[State, torch.Tensor]:
    """`iterations` LM steps with the robust scale going from scales[0] to scales[1] pixels; returns the state and its cost [B]."""
    state = start
    damping = torch.full_like(state.focal, 1e-2)
    cost = torch.zeros_like(state.focal)
    for i in range(iterations):
        scale = scales[1] * max(1.0, (scales[0] / scales[1]) * (1 - i / max(1.0, 0.6 * iterations)))
        proposal, cost = _step(problem, state, damping, scale)
        new_cost = robust_cost(problem, proposal, scale)
        better = new_cost < cost  # False for nan
        state = State(*(torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(proposal, state, strict=True)))
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, (damping / 4).clamp_min(1e-6), (damping * 8).clamp_max(1e4))
        state = _fix_scale(problem, state)
    return state, cost


def robust_cost(problem: Problem, state: State, scale: float) -> torch.Tensor:
    """[B] Charbonnier cost a observation, with the priors that the steps use."""
    rx, ry = residuals(problem, project(problem, state))
    weight = problem.weight.flatten(3)
    data = ((((rx * rx + ry * ry) / scale**2 + 1).sqrt() - 1) * scale**2 * weight).sum((1, 2, 3))
    bend = (_neighbours(state.z) - state.z).flatten(2)
    seen = weight.sum(2)
    prior = 0.5 * SMOOTHNESS * (seen.clamp_min(1) * bend * bend).sum((1, 2))
    total = seen.sum((1, 2)).clamp_min(1)
    return (data + prior) / total + 0.5 * problem.focal_weight * (state.focal - problem.focal) ** 2


def _neighbours(z: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _step(problem: Problem, state: State, damping: torch.Tensor, scale: float) -> tuple[State, torch.Tensor]:
    """One damped Gauss-Newton proposal, and the cost [B] before it."""
    system, cost = _linearise(problem, state, scale)
    H, E, Hzz = system
    frames = state.R.shape[1]
    P = 6 * frames + 1
    D = Hzz * (1 + damping[:, None, None]) + 1e-4
    ED = E / D[:, :, None]
    S = (H - (ED @ E.mT).sum(1)).double()
    lift = damping[:, None].double() * H.diagonal(dim1=1, dim2=2)[:, :P].double() + 1e-3
    S[:, range(P), range(P)] += lift
    g = -S[:, :P, P].clone()
    S = S[:, :P, :P]
    gauge = torch.arange(6, device=S.device) + 6 * int(problem.keys[len(problem.keys) // 2])
    S[:, gauge, :] = 0
    S[:, :, gauge] = 0
    S[:, gauge, gauge] = 1
    g[:, gauge] = 0
    step = torch.linalg.solve_ex(S, g)[0].to(state.z.dtype)
    full = torch.cat([step, torch.ones_like(step[:, :1])], 1)  # the last column of E holds the right-hand side
    dz = (-(full[:, None, None] @ E)[:, :, 0] / D).clamp(-1, 1)
    xi = step[:, :-1].unflatten(1, (frames, 6))
    dR = so3(xi[..., :3].clamp(-0.3, 0.3))
    log_low, log_high = (math.log(f) for f in FOCAL_RANGE)
    proposal = State(
        R=dR @ state.R,
        t=(dR @ state.t[..., None])[..., 0] + xi[..., 3:].clamp(-2, 2),
        z=(state.z + dz.unflatten(2, state.z.shape[2:])).clamp(-4, 3),
        focal=(state.focal + step[:, -1].clamp(-0.15, 0.15)).clamp(log_low, log_high),
    )
    return proposal, cost


def _linearise(
    problem: Problem, state: State, scale: float
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Normal equations over (poses, focal | right-hand side): H [B, P+1, P+1], E [B, A, P+1, N], Hzz [B, A, N]; and the cost [B]."""
    p = project(problem, state)
    rx, ry = residuals(problem, p)
    observed = problem.weight.flatten(3)
    weight = observed * ((rx * rx + ry * ry) / scale**2 + 1).rsqrt()
    J, Jz = _jacobian(problem, p, rx, ry)
    WJ = J * weight[..., None, None, :]
    gram = WJ.flatten(-2) @ J.flatten(-2).mT  # [B, A, T, 8, 8]
    Ez = (WJ * Jz[..., None, :, :]).sum(-2)  # [B, A, T, 8, N]
    Hzz = (weight[..., None, :] * Jz * Jz).sum((2, 3))
    C = _chain(problem, p)  # [B, A, T, 8, P+1]
    H = C.flatten(1, 3).mT @ (gram @ C).flatten(1, 3)
    E = C.flatten(2, 3).mT @ Ez.flatten(2, 3)
    _add_priors(problem, state, observed, H, E, Hzz)
    return (H, E, Hzz), robust_cost(problem, state, scale)


def _jacobian(problem: Problem, p: Projection, rx: torch.Tensor, ry: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """J [B, A, T, 8, 2, N]: derivatives by rotation (3), translation (3), log focal, then the residual; Jz [B, A, T, 2, N]."""
    u, v, f = p.u, p.v, p.f
    J = u.new_zeros(*u.shape[:3], 8, 2, u.shape[3])
    J[..., 0, 0, :], J[..., 1, 0, :], J[..., 2, 0, :] = -f * u * v, f * (1 + u * u), -f * v
    J[..., 0, 1, :], J[..., 1, 1, :], J[..., 2, 1, :] = -f * (1 + v * v), f * u * v, f * u
    g = f * p.inverse / p.Z
    J[..., 3, 0, :], J[..., 5, 0, :] = g, -g * u
    J[..., 4, 1, :], J[..., 5, 1, :] = g, -g * v
    x, y = problem.base.flatten(0, 1).unbind(-1)
    turned = p.R[..., :2] @ torch.stack([x, y])  # R b without its constant third component, times f
    iz = 1 / p.Z
    J[..., 6, 0, :] = f * u - iz * (turned[..., 0, :] - u * turned[..., 2, :])
    J[..., 6, 1, :] = f * v - iz * (turned[..., 1, :] - v * turned[..., 2, :])
    J[..., 7, 0, :], J[..., 7, 1, :] = rx, ry
    tx, ty, tz = (p.t[..., i, None] for i in range(3))
    return J, torch.stack([g * (tx - u * tz), g * (ty - v * tz)], -2)


def _chain(problem: Problem, p: Projection) -> torch.Tensor:
    """[B, A, T, 8, 6T+2]: how (relative pose, focal, residual) depend on (all poses, focal | constant)."""
    B, A, T = p.t.shape[:3]
    C = p.t.new_zeros(B, A, T, 8, 6 * T + 2)
    adjoint = p.t.new_zeros(B, A, T, 6, 6)
    adjoint[..., :3, :3] = adjoint[..., 3:, 3:] = p.R
    adjoint[..., 3:, :3] = skew(p.t) @ p.R
    six = torch.arange(6, device=C.device)
    for t in range(T):
        C[:, :, t, six, 6 * t + six] = 1.0
    for a, k in enumerate(problem.keys.tolist()):
        C[:, a, :, :6, 6 * k : 6 * k + 6] -= adjoint[:, a]
    C[..., 6, 6 * T] = C[..., 7, 6 * T + 1] = 1.0
    return C


def _add_priors(
    problem: Problem, state: State, observed: torch.Tensor, H: torch.Tensor, E: torch.Tensor, Hzz: torch.Tensor
) -> None:
    """Focal prior, and the pull of z towards the mean of its neighbours (which keeps textureless points sane), in place."""
    seen = observed.sum(2)
    strength = problem.focal_weight * seen.sum((1, 2)).clamp_min(1)
    H[:, -2, -2] += strength
    pull = strength * (state.focal - problem.focal)
    H[:, -2, -1] += pull
    H[:, -1, -2] += pull
    stiff = SMOOTHNESS * seen.clamp_min(1)
    Hzz += stiff
    E[:, :, -1] += stiff * (state.z - _neighbours(state.z)).flatten(2)


def _fix_scale(problem: Problem, state: State) -> State:
    """Scale gauge: the middle keyframe's median inverse depth is 1."""
    shift = state.z[:, len(problem.keys) // 2].flatten(1).median(1).values
    return state._replace(z=state.z - shift[:, None, None, None], t=state.t * shift.exp()[:, None, None])


def identity(problem: Problem, z: torch.Tensor) -> State:
    """All cameras at the origin, depths `z`, focal at its prior."""
    B, T = len(problem.weight), problem.weight.shape[2]
    eye = torch.eye(3, dtype=z.dtype, device=z.device).expand(B, T, 3, 3)
    return State(eye.clone(), z.new_zeros(B, T, 3), z, problem.focal.clone())


def adjust(
    problem: Problem, iterations: tuple[int, int, int], scales: tuple[float, float] = (2.0, 0.5)
) -> tuple[State, torch.Tensor]:
    """Bundle adjustment from two starts (flat; nearer below) on half the grid, a restart with depths reversed, then the full grid.

    The reversed restart matters: narrow baselines have a mirrored optimum (Necker reversal) with a cost only slightly higher.
    """
    coarse = problem.thin()
    B, A = coarse.weight.shape[:2]
    flat = coarse.target.new_zeros(B, A, *coarse.base.shape[:2])
    slope = coarse.base[..., 1] / (coarse.base[..., 1].abs().max().clamp_min(1) * 2)
    twice = coarse.repeat(2)
    state, cost = solve(twice, identity(twice, torch.cat([flat, flat + slope])), iterations[0], scales)
    best, _ = _cheapest(state, cost, B)
    mirrored = identity(coarse, -0.8 * best.z)
    start = State(*(torch.cat([a, b]) for a, b in zip(best, mirrored, strict=True)))
    state, cost = solve(twice, start, iterations[1], scales)
    best, _ = _cheapest(state, cost, B)
    z = F.interpolate(best.z, size=problem.base.shape[:2], mode="bilinear", align_corners=False)
    return solve(problem, best._replace(z=z), iterations[2], (scales[1], scales[1]))


def _cheapest(state: State, cost: torch.Tensor, batch: int) -> tuple[State, torch.Tensor]:
    """The better of two starts per clip."""
    second = cost[batch:] < cost[:batch]
    pick = lambda x: torch.where(second.view(-1, *[1] * (x.ndim - 1)), x[batch:], x[:batch])  # noqa: E731
    return State(*(pick(x) for x in state)), pick(cost)
