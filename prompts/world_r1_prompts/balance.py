"""Which candidates make a split: quotas of categories, camera difficulties and moves, and no subject too often.

Categories times difficulties are met exactly, moves within a tolerance; a candidate is chosen because its moves are short, never given
other moves than those that were composed for its content.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from world_r1_prompts.config import Split

#: How many candidates of each short move are weighed against each other.
_WINDOW = 6
#: What a repeated beginning costs, in units of a move that is wholly missing.
_AGAIN = 0.5
#: One subject of so many in a scene is kept for the test split.
HELD_OUT = 7


@dataclass(frozen=True, slots=True)
class Item:
    """What selection needs to know of a candidate. Example: `Item(412, "urban", "pair", "urban/harbour/crane", ("pan left",))`"""

    index: int
    category: str
    difficulty: str
    subject: str
    moves: tuple[str, ...]
    #: The first words, so that prompts do not all begin alike.
    opening: str = ""
    #: Written for the test split, and for no other.
    apart: bool = False


def held_out(subjects: Iterable[str], seed: int) -> frozenset[str]:
    """The subjects ("category/scene/name") of the test split: of every scene, the first seventh in the order of a hash."""
    scenes: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(set(subjects)):
        scenes[subject.rpartition("/")[0]].append(subject)
    chosen: list[str] = []
    for names in scenes.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        chosen += names[: max(1, round(len(names) / HELD_OUT))]
    return frozenset(chosen)


def shares(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` divided by weights, by largest remainder, so that the parts sum to it."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: math.floor(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def select(items: Sequence[Item], split: Split, count: int) -> list[int]:
    """Positions in `items` of the chosen ones, in the order chosen: any beginning is balanced too. Shorter than `count` if they run out."""
    cells = _cells(split, count)
    target = {move: weight for move, weight in split.moves.items() if weight > 0}
    waiting: dict[tuple[str, str], dict[str, list[int]]] = {cell: defaultdict(list) for cell in cells}
    for position in range(len(items) - 1, -1, -1):  # reversed, so that the end of each list is the earliest candidate
        item = items[position]
        lists = waiting.get((item.category, item.difficulty))
        if lists is not None:
            for move in dict.fromkeys(item.moves):
                lists[move].append(position)
    subjects = Counter(item.category for item in {i.subject: i for i in items}.values())
    caps = {category: math.ceil(1.6 * count / len({c for c, _ in cells}) / max(1, n)) + 1 for category, n in subjects.items()}
    used: set[int] = set()
    moves: Counter[str] = Counter()
    said: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    chosen: list[int] = []
    left = dict(cells)
    while left:
        cell = max(left, key=lambda name: (left[name] / cells[name], name))
        best = _best(items, waiting[cell], used, moves, target, (said, opened), caps.get(cell[0], 1))
        if best is None:
            del left[cell]
            continue
        chosen.append(best)
        used.add(best)
        moves.update(items[best].moves)
        said[items[best].subject] += 1
        opened[items[best].opening] += 1
        left[cell] -= 1
        if left[cell] == 0:
            del left[cell]
    return chosen


def _cells(split: Split, count: int) -> dict[tuple[str, str], int]:
    """Quota of every (category, difficulty) that is not zero."""
    cells = {}
    for category, number in shares(count, split.categories).items():
        for difficulty, part in shares(number, split.difficulties).items():
            if part:
                cells[category, difficulty] = part
    return cells


def _best(
    items: Sequence[Item],
    lists: dict[str, list[int]],
    used: set[int],
    moves: Counter[str],
    target: Mapping[str, float],
    used_up: tuple[Counter[str], Counter[str]],
    cap: int,
) -> int | None:
    """The candidate of one cell whose moves are missed most, with a subject and first words that were not used up."""
    said, opened = used_up
    total, whole = sum(moves.values()) + 1, sum(target.values())
    need = {move: 1.0 - moves[move] * whole / (weight * total) for move, weight in target.items()}
    best, best_score = None, -math.inf
    looked = 0
    for move in sorted(lists, key=lambda name: (-need.get(name, -9.0), name)):  # the name breaks ties
        waiting = _fresh(lists[move], used)
        for position in waiting:
            item = items[position]
            score = sum(need.get(name, -9.0) for name in item.moves) / len(item.moves)
            score -= 0.5 * said[item.subject] / cap + (4.0 if said[item.subject] >= cap else 0.0)
            score -= _AGAIN * opened[item.opening] if item.opening else 0.0
            if score > best_score:
                best, best_score = position, score
        looked += bool(waiting)
        if looked >= 4:
            break
    return best


def _fresh(waiting: list[int], used: set[int]) -> list[int]:
    """The last unused positions of a list; used ones that were met on the way leave it."""
    tail: list[int] = []
    while waiting and len(tail) < _WINDOW:
        position = waiting.pop()
        if position not in used:
            tail.append(position)
    waiting.extend(reversed(tail))
    return tail


def off_quota(moves: Mapping[str, int], target: Mapping[str, float]) -> dict[str, float]:
    """How far each move's share is from its target, relative to it: 0.05 is five per cent too many."""
    total, whole = sum(moves.get(name, 0) for name in target), sum(target.values())
    return {name: moves.get(name, 0) * whole / (weight * max(1, total)) - 1.0 for name, weight in target.items() if weight > 0}
