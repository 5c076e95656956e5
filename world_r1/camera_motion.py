"""What camera words amount to: amplitudes, timing, speed curves and the shake of a hand, as controls over time.

The time of a clip is shared by the steps of a plan: equally, unless they name durations ("for 2 seconds"). A named duration is kept as
long as all of them fit into the clip, the others share what is left, and after the last one the camera holds still; durations that
do not fit are shortened alike. Inside a step every control follows its speed curve u -> p(u):

    constant u        accelerating u^2        decelerating 1 - (1 - u)^2        easing in and out 3 u^2 - 2 u^3

A move without an amount turns or travels by the preset's amplitude times the factors of its speed and extent, of simultaneous moves
(`Preset.together`) and of sequences (`Preset.pace`). An amount ("30 degrees", "two metres", "2 times") is taken as it is; a speed above
normal then means that the move is over sooner. Metres become shares of the subject's distance by `Preset.metres`, and are limited to
a path that neither runs into the subject nor loses sight of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from world_r1.command import CameraPlan, Command, Step
from world_r1.command.plan import EXTENTS, HANDHELD, KINDS, SPEEDS

CONTROLS = ("orbit", "dolly", "truck", "pedestal", "pan", "tilt")
#: Further columns of a plan's controls.
PLAN_CONTROLS = (*CONTROLS, "roll", "arc", "crane")

#: Limits of amounts in metres, as shares of the subject's distance: towards it, and otherwise.
_NEAREST, _FARTHEST = 0.8, 1.5
#: Least and greatest focal length over a clip, relative to the first frame.
_ZOOM = 10.0
#: Shake of a hand: two frequencies in Hz for each axis, no two of which are alike, so that it does not repeat within a clip.
_SHAKE = {"pan": (0.9, 2.3), "tilt": (1.1, 2.9), "roll": (0.7, 1.9), "truck": (0.8, 1.7), "pedestal": (1.0, 2.1)}
#: Translation of the shake, as a share of depth per radian of its rotation.
_SHAKE_SHIFT = 0.3


@dataclass(frozen=True)
class Preset:
    """Amplitudes of full-length, single moves at normal speed, and the first camera."""

    #: Distance of the subject in front of the first camera; any unit, which becomes the unit of the translations.
    depth: float
    #: Pitch of the first camera in radians; negative looks down.
    pitch: float
    #: Horizontal field of view in radians.
    fov_x: float
    #: Angles in radians.
    orbit: float
    #: Translations as a share of `depth`.
    dolly: float
    truck: float
    pedestal: float
    pan: float
    tilt: float
    #: Every control of a segment with two or more simultaneous moves is multiplied by this.
    together: float = 1.0
    #: Fastest a sequence may run, relative to a single move: each of S segments gets min(1, pace / S) of its amplitude.
    pace: float = math.inf
    #: Angles in radians, a translation as a share of `depth`, a factor on the focal length.
    roll: float = math.radians(20.0)
    arc: float = math.radians(24.0)
    crane: float = 0.35
    zoom: float = 1.6
    #: Rotation of the shake of a hand in radians.
    handheld: float = math.radians(0.8)
    #: Distance of the subject in metres, which gives "two metres" their length.
    metres: float = 4.0


PRESETS: dict[str, Preset] = {
    "blockworld": Preset(
        depth=3.6,
        pitch=-0.23,
        fov_x=math.radians(68.0),
        orbit=math.radians(42.0),
        dolly=0.42,
        truck=0.36,
        pedestal=0.21,
        pan=math.radians(30.0),
        tilt=math.radians(16.0),
        together=0.75,
        pace=1.6,  # two segments get 0.8 of their amplitude each
        metres=3.6,
    ),
    # Focal length 1.2 x width; the release has no vertical moves: up and down take the amplitude of left and right, tilt that of
    # pan. Roll, arc, crane, zoom and the shake are not in the release either.
    "world_r1": Preset(
        depth=1000.0,
        pitch=0.0,
        fov_x=2.0 * math.atan(1.0 / 2.4),
        orbit=math.radians(24.0),
        dolly=0.6,
        truck=0.22,
        pedestal=0.22,
        pan=math.radians(14.0),
        tilt=math.radians(14.0),
        roll=math.radians(14.0),
        arc=math.radians(14.0),
        crane=0.3,
    ),
}


def segment_controls(command: Command | CameraPlan, frames: int, preset: Preset, fps: float = 8.0) -> np.ndarray:
    """Controls over time, float32 [S, T, 6] in the order of `CONTROLS`; angles in radians, translations as a share of depth.

    Row [s, t] is what segment s has done by frame t: zero before its turn, its curve during it, constant afterwards. A plan has the
    columns of `PLAN_CONTROLS`, [S, T, 9], and one more segment, the shake, if it is held by hand; its zoom is not a control but
    `zoom_factors`. `fps` matters for durations and for the shake. ValueError without frames.
    """
    if frames < 1:
        raise ValueError(f"a camera path needs at least one frame, got frames={frames}")
    plan = CameraPlan.of(command) if isinstance(command, Command) else command
    columns = CONTROLS if isinstance(command, Command) else PLAN_CONTROLS
    progress, shares = _timing(plan, frames, preset, fps)
    controls = np.zeros((len(plan.steps) + bool(plan.handheld), frames, len(columns)), np.float64)
    for index, step in enumerate(plan.steps):
        for axis, amount, done in _moves(step, progress[index], shares[index], preset):
            if axis != "zoom":
                controls[index, :, columns.index(axis)] += amount * done
    if plan.handheld:
        for axis, shift in _shake(frames, fps).items():
            scale = preset.handheld * (_SHAKE_SHIFT if axis in ("truck", "pedestal") else 1.0)
            controls[-1, :, columns.index(axis)] = HANDHELD[plan.handheld][1] * scale * shift
    return controls.astype(np.float32)


def zoom_factors(plan: CameraPlan, frames: int, preset: Preset, fps: float = 8.0) -> np.ndarray | None:
    """Focal length by frame relative to the first, float32 [T]; None for a plan that does not zoom."""
    progress, shares = _timing(plan, frames, preset, fps)
    logs, zooms = np.zeros(frames), False
    for index, step in enumerate(plan.steps):
        for axis, amount, done in _moves(step, progress[index], shares[index], preset):
            if axis == "zoom":
                logs, zooms = logs + amount * done, True
    limit = math.log(_ZOOM)
    return np.exp(np.clip(logs, -limit, limit)).astype(np.float32) if zooms else None


def _timing(plan: CameraPlan, frames: int, preset: Preset, fps: float) -> tuple[list[np.ndarray], list[float]]:
    """Linear progress [T] of every step, 0..1, and the share of its amplitude that the pace leaves it."""
    time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    count = len(plan.steps)
    if all(step.seconds is None for step in plan.steps):
        return [np.clip(time * count - index, 0.0, 1.0) for index in range(count)], [min(1.0, preset.pace / max(count, 1))] * count
    lengths = _lengths([step.seconds for step in plan.steps], max(frames - 1, 1) / fps)
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    progress = [np.clip((time - start) / length, 0.0, 1.0) for start, length in zip(starts[:-1], lengths, strict=True)]
    return progress, [min(1.0, preset.pace * length) for length in lengths]


def _lengths(seconds: list[float | None], clip: float) -> list[float]:
    """Shares of a clip of `clip` seconds that steps take; they sum to at most 1."""
    named = [value for value in seconds if value is not None]
    free = len(seconds) - len(named)
    # Steps without a duration never shrink below a quarter of the mean of the others.
    other = max((clip - sum(named)) / free, 0.25 * sum(named) / len(named)) if free else 0.0
    lengths = [other if value is None else value for value in seconds]
    return [length / max(sum(lengths), clip) for length in lengths]


def _moves(step: Step, progress: np.ndarray, share: float, preset: Preset) -> list[tuple[str, float, np.ndarray]]:
    """(axis, signed amplitude, progress [T]) of the moves of a step; a zoom's amplitude is the logarithm of its factor."""
    found = []
    for move in step.moves:
        kind = KINDS[move.name]
        if kind.axis == "fixed":
            continue
        done = progress
        if move.amount is None:
            scale = share * SPEEDS[move.speed] * (preset.together if len(step.moves) > 1 else 1.0) * EXTENTS[move.extent]
            full = math.log(preset.zoom) if kind.axis == "zoom" else getattr(preset, kind.axis)
            amplitude = kind.sign * scale * full
        else:
            amplitude = kind.sign * _exact(move.name, move.amount, preset)
            done = np.minimum(1.0, progress * max(1.0, SPEEDS[move.speed]))
        found.append((kind.axis, amplitude, _curve(step.curve, done)))
    return found


def _exact(name: str, amount: float, preset: Preset) -> float:
    kind = KINDS[name]
    if kind.unit == "degrees":
        return math.radians(amount)
    if kind.unit == "times":
        return math.log(amount)
    return min(amount / preset.metres, _NEAREST if name == "push in" else _FARTHEST)


def _curve(name: str, u: np.ndarray) -> np.ndarray:
    if name == "accelerating":
        return u * u
    if name == "decelerating":
        return u * (2.0 - u)
    return u * u * (3.0 - 2.0 * u) if name else u


def _shake(frames: int, fps: float) -> dict[str, np.ndarray]:
    """Smooth displacement [T] of each axis that a hand shakes, about -1..1, zero in the first frame."""
    phase = 2.0 * math.pi * np.arange(frames) / fps
    return {axis: (np.sin(slow * phase) + 0.5 * np.sin(fast * phase)) / 1.5 for axis, (slow, fast) in _SHAKE.items()}
