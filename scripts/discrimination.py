"""Discrimination benchmark of the 3D scores on synthetic clips; writes docs/results/discrimination.json.

    python scripts/discrimination.py --out docs/results/discrimination.json --cache runs/discrimination

Every scene takes some 15 CPU seconds; with --cache, a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import cv2
import torch
from world_r1_rewards.discrimination import SPLITS, world
from world_r1_rewards.discrimination_report import accuracy, measure, measure_accuracy, summarise
from world_r1_rewards.probes.flow_ba import FlowBA
from world_r1_rewards.scores.consistency import Consistency
from world_r1_rewards.scores.reconstruction import Reconstruction
from world_r1_rewards.scores.trajectory import TrajectoryReward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--split", choices=sorted(SPLITS), default="held_out")
    parser.add_argument("--quality", choices=("train", "fine", "eval"), default="train", help="settings of flow_ba")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accuracy", action="store_true", help="poses of clean clips only, added to an --out that is there")
    parser.add_argument("--cache", type=Path, help="folder for one file a scene")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    probe, rewards = FlowBA(options.quality, device=options.device), [Consistency(), Reconstruction(), TrajectoryReward()]
    make = (lambda w: measure_accuracy(w, probe)) if options.accuracy else (lambda w: measure(w, probe, rewards))
    rows = []
    for index in range(options.scenes):
        rows.append(_cached(options, index, lambda i=index: make(world(options.split, i))))
        print(f"{rows[-1]['world']:14} {rows[-1]['command']:30} {rows[-1]['seconds']:.2f} CPU-s a clip", flush=True)
    found = json.loads(options.out.read_text()) if options.accuracy else _found(options, rows, [reward.name for reward in rewards])
    found["geometry"][f"flow_ba {options.quality} {options.device}"] = accuracy(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    _show(found)


def _found(options: argparse.Namespace, rows: list[dict[str, Any]], rewards: list[str]) -> dict[str, Any]:
    return {
        "what": "clips of 17x96x160 from world_r1_rewards.discrimination; AUC of clean against damaged clips over all pairs of scenes",
        "command": f"python scripts/discrimination.py --split {options.split} --scenes {options.scenes} --quality {options.quality}",
        "split": options.split,
        "scenes": options.scenes,
        "rewards": {name: summarise(rows, name) for name in rewards},
        "geometry": {},
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__, "threads": 1},
    }


def _cached(options: argparse.Namespace, index: int, make: Any) -> dict[str, Any]:
    if options.cache is None:
        return make()  # type: ignore[no-any-return]
    kind = "accuracy-" if options.accuracy else ""
    file = options.cache / f"{options.split}-{options.quality}-{kind}{index}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def _show(found: dict[str, Any]) -> None:
    for name, one in found["rewards"].items():
        print(f"\n{name}: clean {one['clean']}, by amplitude {one['amplitudes']} (band {one['band']})")
        for damage, row in one["damages"].items():
            bar = "" if "bar" not in row else f"  bar {row['bar']}: {'holds' if row['holds'] else 'MISSED'}"
            print(f"  {damage:14} AUC {row['auc']:.3f}  pairs {row['paired_wins']:.2f}  mean {row['mean']}{bar}")
    print(json.dumps(found["geometry"], indent=2))


if __name__ == "__main__":
    main()
