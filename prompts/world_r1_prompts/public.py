"""Reading a local copy of World-R1's public prompt files (one prompt a line, "Camera <moves>." first) into records.

Nothing of those files is shipped; this lets their users switch to the record format, with checks and statistics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from world_r1_prompts.grammar.compose import CameraLanguage
from world_r1_prompts.grammar.shots import difficulty_of
from world_r1_prompts.record import Record

#: File name -> (split, kind). A folder holds them directly or in `final` and `enhanced`.
FILES = {"train.txt": ("train", "rigid"), "dynamic.txt": ("dynamic", "dynamic"), "test.txt": ("test", "rigid")}
_PREFIX = re.compile(r"^Camera [^.]*\.\s*")


def read(folder: Path, camera: CameraLanguage) -> Iterator[Record]:
    """Records of all files below `folder`. ValueError if there is none of them.

    The public text files carry no category: rigid prompts are filed under "natural", dynamic ones under "dynamic", and `source` names
    file and line. A repeated line keeps its place and is left out.
    """
    found = [path for path in sorted(folder.rglob("*.txt")) if path.name in FILES]
    if not found:
        raise ValueError(f"no {', '.join(FILES)} below {folder}; give the folder that holds the public text files")
    seen: set[str] = set()
    for path in found:
        split, kind = FILES[path.name]
        part = "" if path.parent == folder else f"{path.parent.name}-"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = " ".join(line.split())
            if not text or text in seen:
                continue
            seen.add(text)
            yield Record(
                id=f"world-r1-{part}{split}-{number:06d}",
                split=split,
                category="dynamic" if kind == "dynamic" else "natural",
                subcategory="unlabelled",
                kind=kind,
                base=_PREFIX.sub("", text),
                text=text,
                camera=(plan := camera.read(text)),
                source=f"world-r1-public:{part.rstrip('-')}/{path.name}:{number}",
                licence="MIT",
                generator="World-R1 release",
                quality={"words": len(text.split()), "difficulty": difficulty_of(plan)},
            )
