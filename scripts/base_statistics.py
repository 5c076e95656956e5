"""Measure the base model's look and write base_statistics.json, the ranges of the `guard` reward.

python scripts/base_statistics.py configs/blockworld.yaml world_r1/blockworld/weights/base_statistics.json --clips 48
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from world_r1_rewards.scores.guard import ranges_of

from world_r1.config import load
from world_r1.policy import load_policy
from world_r1.prompts import load_prompts
from world_r1.sample import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", help="configuration whose model, sampling settings and training prompts are used")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=48)
    options = parser.parse_args()
    config = load(options.config)
    policy = load_policy(config, trainable=False)
    prompts = load_prompts(config.prompts.train)[: options.clips]
    videos = generate(policy, config, prompts, list(range(len(prompts))))
    options.out.write_text(json.dumps({"clips": len(videos), "ranges": ranges_of(videos)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
