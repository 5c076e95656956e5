"""The README's picture from a finished run: python scripts/before_after.py RUN_DIR [docs/results/before_after.png] [clip numbers]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from world_r1.video import contact_sheet, read_mp4, write_png


def main(run: Path, out: Path, numbers: list[int]) -> Path:
    """One pair of rows a clip, before above after; by default the first three clips that both evaluations kept."""
    kept = sorted(
        path.name for path in (run / "eval_before/clips").glob("*.mp4") if (run / "eval_after/clips" / path.name).is_file()
    )
    names = [f"{number:03d}.mp4" for number in numbers] or kept[:3]
    if not names:
        raise SystemExit(f"{run} has no clips before and after; evaluate with evaluation.keep above 0")
    rows = json.loads((run / "eval_after/eval.json").read_text(encoding="utf-8"))["rows"]
    videos, labels = [], []
    for name in names:
        for folder, when in (("eval_before", "before"), ("eval_after", "after")):
            videos.append(read_mp4(run / folder / "clips" / name)[0])
            labels.append(f"{when}: {rows[int(Path(name).stem)].get('prompt', '')}")
    return write_png(out, contact_sheet(videos, frames=6, labels=labels))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/results/before_after.png")
    print(main(Path(sys.argv[1]), target, [int(number) for number in sys.argv[3:]]))
