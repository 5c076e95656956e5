"""Charts of the report as SVG text: curves, intervals, time shares and camera paths. No library, no script, no network.

Colours are CSS classes (`before`, `after`, `reference`, `muted`), so that one style sheet rules light and dark pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Series:
    """One curve. Example: `Series("reward", steps=[0, 1, 2], values=[0.41, None, 0.44], style="after")`"""

    label: str
    steps: Sequence[float]
    #: None where nothing was measured: the curve has a gap there.
    values: Sequence[float | None]
    style: str = "after"


def number(value: float | None, digits: int = 3) -> str:
    """A short decimal with `digits` significant figures; "n/a" for None."""
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if abs(value) >= 1e5 or decimals > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{decimals}f}".replace("-", "\u2212")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Sequence[float | None], span: int) -> list[float | None]:
    """Centred running mean over `span` points that skips missing ones; a gap stays a gap."""
    half = span // 2
    out: list[float | None] = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if v is not None]
        out.append(sum(near) / len(near) if value is not None else None)
    return out


def curves(title: str, series: Sequence[Series], *, note: str = "", floor: float | None = None, guide: float | None = None) -> str:
    """A line chart with direct labels: the measured points faint, their running mean strong.

    `floor` extends the vertical axis down to a value; `guide` draws a dashed line, such as a target.
    """
    width, height, left, right, top, bottom = 360, 190, 46, 64, 12, 26
    points = [(s, x, y) for s in series for x, y in zip(s.steps, s.values, strict=True) if y is not None and math.isfinite(y)]
    head = f"<figcaption><b>{html.escape(title)}</b>{f' <span>{html.escape(note)}</span>' if note else ''}</figcaption>"
    if not points:
        return f'<figure class="chart">{head}<p class="empty">not recorded</p></figure>'
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    low, high = min(ys + [v for v in (floor, guide) if v is not None]), max(ys + ([guide] if guide is not None else []))
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = (low if floor is not None and low >= floor else low - margin), high + margin
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x0) / (x1 - x0), (y - low) / (high - low)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = []
    for tick in ticks(low, high):
        y = at(x0, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in ticks(x0, x1, 5):
        x = at(tick, low)[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{_tick(tick)}</text>')
    if guide is not None:
        y = at(x0, guide)[1]
        parts.append(f'<line class="guide" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    labels: list[tuple[float, str]] = []
    for s in series:
        drawn, label_y = _curve(s, at)
        parts.append(drawn)
        last = next((v for v in reversed(smooth(s.values, _span(s))) if v is not None), None)
        if last is not None:
            text = number(last) if len(series) == 1 else f"{s.label} {number(last, 2)}"
            labels.append(
                (label_y, f'<text class="label {s.style}" x="{width - right + 6}" y="{{y:.1f}}">{html.escape(text)}</text>')
            )
    parts += _spread(labels)
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart">{head}{svg}</figure>'


def _tick(value: float) -> str:
    text = f"{value:.6g}"
    return text if len(text) <= 7 else f"{value:.1e}"


def _span(s: Series) -> int:
    return max(1, len(s.values) // 12)


def _curve(s: Series, at: object) -> tuple[str, float]:
    """SVG of one series and the height of its last point."""
    parts, last = [], 0.0
    for values, kind in ((s.values, "raw"), (smooth(s.values, _span(s)), "line")):
        if kind == "raw" and _span(s) == 1:
            continue
        path, pen = [], "M"
        for x, y in zip(s.steps, values, strict=True):
            if y is None or not math.isfinite(y):
                pen = "M"
                continue
            px, py = at(x, y)  # type: ignore[operator]
            path.append(f"{pen}{px:.1f} {py:.1f}")
            pen, last = "L", py
        parts.append(f'<path class="{kind} {s.style}" d="{"".join(path)}"/>')
    return "".join(parts), last


def _spread(labels: list[tuple[float, str]]) -> list[str]:
    """Labels at their heights, pushed apart so that they do not overlap."""
    out, previous = [], -math.inf
    for y, text in sorted(labels, key=lambda item: item[0]):
        placed = max(y, previous + 12)
        out.append(text.format(y=placed + 3.5))
        previous = placed
    return out


def interval(value: float, low: float, high: float, reach: float, verdict: str) -> str:
    """A dot with its 95 % interval on an axis from -reach to reach, zero in the middle; an arrow where it goes on beyond."""
    width, height = 190, 22
    middle = height / 2

    def at(v: float) -> float:
        return width / 2 + max(-1.0, min(1.0, v / reach)) * (width / 2 - 10)

    arrows = "".join(
        f'<path class="beyond" d="M{at(end):.1f} {middle - 4}l{side * 7} 4l{-side * 7} 4"/>'
        for end, side in ((low, -1), (high, 1))
        if end * side > reach
    )
    return (
        f'<svg class="interval {verdict}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="1" y2="{height - 1}"/>'
        f'<line class="bar" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{middle}" y2="{middle}"/>{arrows}'
        f'<circle cx="{at(value):.1f}" cy="{middle}" r="4.5"/></svg>'
    )


def pairs(title: str, before: Sequence[float], after: Sequence[float], better: str) -> str:
    """One dot per clip, before against after; dots on the shaded side of the diagonal improved."""
    size, left, top, bottom = 230, 44, 8, 38
    head = f"<figcaption><b>{html.escape(title)}</b></figcaption>"
    if not before:
        return f'<figure class="chart">{head}<p class="empty">not measured</p></figure>'
    values = [*before, *after]
    margin = (max(values) - min(values)) * 0.06 or abs(values[0]) * 0.1 or 1.0
    low, high = min(values) - margin, max(values) + margin
    right, floor = size - 8, size - bottom

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (high - low) * (right - left), floor - (y - low) / (high - low) * (floor - top)

    corner = f"{left} {top}" if better == "higher" else f"{right} {floor}"
    parts = [
        f'<path class="side" d="M{left} {floor}L{right} {top}L{corner}Z"/><path class="diagonal" d="M{left} {floor}L{right} {top}"/>'
    ]
    for tick in ticks(low, high):
        x, y = at(tick, tick)
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 14}" text-anchor="middle">{_tick(tick)}</text>')
    parts += ['<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*at(x, y)) for x, y in zip(before, after, strict=True)]
    parts.append(f'<text class="tick" x="{(left + right) / 2}" y="{size - 8}" text-anchor="middle">before</text>')
    parts.append(f'<text class="tick" x="{left + 6}" y="{top + 10}">after</text>')
    svg = f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{html.escape(title)}, before against after">{"".join(parts)}</svg>'
    return f'<figure class="chart">{head}{svg}</figure>'


def gap(share: float) -> str:
    """A bar from 0 (base samples) to 1 (round trip of real renders), filled to `share`."""
    width, height = 110, 10
    fill = max(0.0, min(1.0, share)) * width
    return (
        f'<svg class="gap" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<rect class="track" width="{width}" height="{height}" rx="5"/>'
        f'<rect class="fill" width="{fill:.1f}" height="{height}" rx="5"/></svg>'
    )


def shares(parts: Sequence[tuple[str, float]]) -> str:
    """One stacked bar of named non-negative amounts (seconds), labelled with their shares."""
    total = sum(amount for _, amount in parts)
    if total <= 0:
        return '<p class="empty">not recorded</p>'
    cells = "".join(
        f'<div class="share s{i % 6}" style="flex:{amount / total:.4f}" title="{html.escape(name)}: {amount:.1f} s"></div>'
        for i, (name, amount) in enumerate(parts)
    )
    keys = "".join(
        f'<li><i class="share s{i % 6}"></i>{html.escape(name)} <b>{amount / total:.0%}</b> <span>{_duration(amount)}</span></li>'
        for i, (name, amount) in enumerate(parts)
    )
    return f'<div class="shares">{cells}</div><ul class="keys">{keys}</ul>'


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def paths(tracks: Iterable[tuple[str, Sequence[Sequence[float]]]], depth: float) -> str:
    """Camera paths from above, or from the side if they mainly rise or tilt; strokes show where the camera looks.

    Each track is (style, [T, 6] position and viewing direction in camera 0's frame: x right, y down, z forward).
    """
    drawn = [(style, np.asarray(track, np.float64)) for style, track in tracks if len(track)]
    if not drawn:
        return '<p class="empty">no path</p>'
    first = drawn[0][1]
    side = np.ptp(first[:, 1]) + np.ptp(first[:, 4]) > np.ptp(first[:, 0]) + np.ptp(first[:, 3])
    across, up, sign = (2, 1, -1) if side else (0, 2, 1)
    reach = float(np.ptp(first[:, [across, up]], axis=0).max())
    stroke = max(0.22 * depth, 0.5 * reach)
    flat = [(style, t[:, [across, up]] * [1, sign], t[:, [across + 3, up + 3]] * [1, sign] * stroke) for style, t in drawn]
    subject = np.array([[depth, 0.0]]) if side else np.array([[0.0, depth]])
    whole = [np.concatenate([p, p + d]) for _, p, d in flat]
    everything = np.concatenate([*whole, subject] if reach > 0.15 * depth else whole)
    low, high = everything.min(0), everything.max(0)
    size, pad = 200.0, 14.0
    scale = (size - 2 * pad) / max(float((high - low).max()), 1e-6)
    centre = (low + high) / 2

    def at(point: np.ndarray) -> tuple[float, float]:
        x, y = (point - centre) * scale
        return size / 2 + float(x), size / 2 - float(y)

    parts = ['<circle class="subject" cx="{:.1f}" cy="{:.1f}" r="4"/>'.format(*at(subject[0]))]  # cut off where it is out of view
    for style, position, direction in flat:
        line = "".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(at(p) for p in position))
        parts.append(f'<path class="track {style}" d="{line}"/>')
        for i in sorted({0, len(position) // 2, len(position) - 1}):
            (x, y), (u, v) = at(position[i]), at(position[i] + direction[i])
            parts.append(f'<line class="look {style}" x1="{x:.1f}" y1="{y:.1f}" x2="{u:.1f}" y2="{v:.1f}"/>')
        x, y = at(position[-1])
        parts.append(f'<circle class="end {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    view = "side view" if side else "top view"
    svg = f'<svg viewBox="0 0 {size:.0f} {size:.0f}" role="img" aria-label="camera path, {view}">{"".join(parts)}</svg>'
    return f'<figure class="path">{svg}<figcaption>{view}</figcaption></figure>'
