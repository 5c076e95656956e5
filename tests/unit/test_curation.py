"""Prompt curation: grammar, rules, near-duplicates, balance, resume, and the shipped set."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from world_r1_prompts import balance, checks, config, export, pipeline, record, store
from world_r1_prompts.config import Words
from world_r1_prompts.grammar import compose, scenes, shots
from world_r1_prompts.record import CATEGORIES, Record
from world_r1_prompts.validate import defects

from world_r1 import cli
from world_r1.curation import Camera
from world_r1.prompts import load_prompts

ROOT = Path(__file__).parents[2]
DATA = ROOT / "prompts/world_r1_prompts/data"
EVEN = dict.fromkeys(CATEGORIES, 1.0)
LIMITS = Words()


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


@pytest.fixture(scope="module")
def candidates(camera: Camera) -> list[Record]:
    library = scenes.load()
    return [compose.compose(library, camera, 3, index, EVEN) for index in range(400)]


def small(tmp_path: Path, **changes: object) -> config.BuildConfig:
    """The small configuration with fewer candidates and prompts."""
    wanted = config.load(ROOT / "configs/prompts_small.yaml")
    counts = {"train": 60, "dynamic": 12, "test": 28}
    splits = {name: split.model_copy(update={"count": counts[name]}) for name, split in wanted.splits.items()}
    fewer = {
        "candidates": 3200,
        "block": 800,
        "splits": splits,
        "tolerance": 9.0,
        "work": tmp_path / "work",
        "out": tmp_path / "data",
    }
    return wanted.model_copy(update=fewer | changes)


# ---------------------------------------------------------------- composing


def test_a_candidate_depends_on_seed_and_index_alone(camera: Camera, candidates: list[Record]) -> None:
    library = scenes.load()
    assert compose.compose(library, camera, 3, 17, EVEN) == candidates[17]
    assert compose.compose(library, camera, 4, 17, EVEN).base != candidates[17].base


def test_most_candidates_break_no_rule(camera: Camera, candidates: list[Record]) -> None:
    broken = [defect for record in candidates for defect in defects(record, camera, LIMITS)]
    assert len(broken) <= 0.03 * len(candidates), broken[:5]


def test_the_camera_fits_the_content(candidates: list[Record]) -> None:
    """What is orbited stands free, and a rigid scene never has a camera that does not move."""
    free = {subject.key for found in scenes.load().values() for subject in found if "orbit" in subject.flags}
    for found in candidates:
        moves = shots.moves_of(found.camera)
        if any(move.startswith(("orbit", "arc")) for move in moves):
            assert found.source.partition(":")[2] in free
        if found.kind == "rigid":
            assert set(moves) - {"fixed"}


def test_a_move_has_something_to_show(candidates: list[Record]) -> None:
    sides = [found for found in candidates if set(shots.moves_of(found.camera)) == {"pan left"}]
    assert sides
    assert all("left" in found.base.lower() or "right of" in found.base.lower() for found in sides)


def test_the_plan_is_what_the_text_says(camera: Camera, candidates: list[Record]) -> None:
    for found in candidates:
        assert camera.read(found.text) == found.camera
        assert camera.read(found.base) is None


def test_difficulty_of_plans() -> None:
    def step(*moves: str) -> dict[str, object]:
        return {"moves": [{"move": move} for move in moves]}

    assert shots.difficulty_of(None) == shots.difficulty_of({"steps": [step("fixed")]}) == "still"
    assert shots.difficulty_of({"steps": [step("pan left")]}) == "single"
    assert shots.difficulty_of({"steps": [step("pan left", "push in")]}) == "together"
    assert shots.difficulty_of({"steps": [step("pan left"), step("push in")]}) == "pair"
    assert shots.difficulty_of({"steps": [step("pan left")] * 3}) == "triple"


# ---------------------------------------------------------------- rules


GERMAN = "Ein Leuchtturm steht auf einer kleinen Insel und daneben liegen drei alte Boote im hellen Sand am Wasser."
BASE = "A squat lighthouse stands on a granite islet. In the foreground, three dinghies lie upturned on trestles near the water."


def one(language: Camera, **changes: object) -> Record:
    text = f"The camera pushes in. {changes.get('base', BASE)}"
    plain = Record("x-1", "train", "natural", "coast", "rigid", BASE, text, language.read("The camera pushes in."))
    return plain.having(**changes)


@pytest.mark.parametrize(
    ("changes", "rule", "says"),
    [
        ({"base": BASE + " The camera is old."}, "camera words", "'camera'"),
        ({"base": BASE + ' A sign says "open".'}, "quotes", "'\"'"),
        ({"base": BASE + " It is a breathtaking view."}, "stock phrase", "'breathtaking'"),
        ({"base": BASE + " A corpse lies there.".replace("corpse", "naked man")}, "safety", "'naked'"),
        ({"base": BASE + " The the sea is calm."}, "grammar", "'The the'"),
        ({"base": BASE + " A old boat lies there."}, "grammar", "'A'"),
        ({"base": BASE.lower()}, "grammar", "capital"),
        ({"base": GERMAN}, "language", "not English"),
        ({"base": BASE + " 灯塔 stands."}, "language", "灯"),
        ({"base": "A lighthouse stands."}, "length", "words"),
        ({"kind": "dynamic"}, "kind", "'dynamic' in category 'natural'"),
        ({"camera": None}, "camera", "the text says 'push in'"),
        ({"text": "The camera pushes in."}, "length", "4 words"),
    ],
)  # fmt: skip
def test_each_rule_names_field_and_fault(camera: Camera, changes: dict[str, object], rule: str, says: str) -> None:
    assert list(defects(one(camera), camera, LIMITS)) == []
    found = [defect for defect in defects(one(camera, **changes), camera, LIMITS) if defect.rule == rule]
    assert found
    assert says in found[0].what
    assert found[0].mend


def test_a_still_camera_needs_a_moving_scene(camera: Camera) -> None:
    text = f"The camera is fixed. {BASE}"
    still = one(camera, text=text, camera=camera.read(text))
    assert [defect.rule for defect in defects(still, camera, LIMITS)] == ["still"]
    assert list(defects(still.having(category="dynamic", kind="dynamic"), camera, LIMITS)) == []


def test_check_says_file_line_field_and_remedy(camera: Camera, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = one(camera)
    wrong = (good.having(id="x-2", kind="moving"), good, good.having(id="x-3", base=BASE + " Wow, 8k."))
    lines = [good.to_json(), '{"id": 3', *(entry.to_json() for entry in wrong)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert cli.run(["prompts", "check", str(file)]) == 1
    said = capsys.readouterr().out
    for expected in (
        f"{file}:2: line: not JSON",
        f"{file}:3: line: field 'kind' must be one of rigid, dynamic; got 'moving'",
        f"{file}:4: id: 'x-1' was used before ({file}:1); give every record its own id",
        f"{file}:4: base: nearly repeats {file}:1",
        f"{file}:5: base: has '8k' at character",
        f"{file}:5: text: does not contain the scene text; ",
    ):
        assert expected in said, said
    file.write_text(good.to_json() + "\n", encoding="utf-8")
    assert cli.run(["prompts", "check", str(file)]) == 0
    assert cli.run(["prompts", "check", str(tmp_path / "none.jsonl")]) == 2


# ---------------------------------------------------------------- builds


def test_the_small_build_is_whole_and_deterministic(tmp_path: Path, camera: Camera) -> None:
    wanted = small(tmp_path)
    built = pipeline.build(wanted, camera)
    assert {name: len(records) for name, records in built.splits.items()} == {"test": 28, "train": 60, "dynamic": 12}
    apart = {r.source for r in built.splits["test"]}
    assert not apart & {r.source for name in ("train", "dynamic") for r in built.splits[name]}
    cells = Counter((r.category, r.quality["difficulty"]) for r in built.splits["test"])
    assert set(cells.values()) == {1}
    assert len(cells) == 28
    written = export.export(wanted.out, wanted, built.splits, built.report)
    assert all(path.stat().st_size > 0 for path in written)
    assert list(checks.check([path for path in written if path.suffix == ".jsonl"], camera, LIMITS)) == []
    card = (wanted.out / "README.md").read_text(encoding="utf-8")
    for category in CATEGORIES:
        assert f"### {category}" in card
    assert len(load_prompts(str(wanted.out / "train.jsonl"))) == 60
    import datasets

    for name, records in built.splits.items():
        loaded = datasets.load_dataset(str(wanted.out), name, split=name, cache_dir=str(tmp_path / "cache"))
        assert list(loaded["text"]) == [entry.text for entry in records]


def test_a_killed_build_continues_to_the_same_files(tmp_path: Path) -> None:
    """kill -9 while blocks of the first stage are being written, then the same command again; compared with a build in one go."""
    code = (
        "import sys; from pathlib import Path; from world_r1.curation import Camera; from world_r1_prompts import config, pipeline, record;"
        "moves = {'push in': 1, 'pan left': 1, 'pan right': 1};"
        "split = config.Split(count=20, categories={'urban': 1, 'indoor': 1}, moves=moves);"
        "changes = dict(work=Path(sys.argv[2]), candidates=600, block=30, splits={'train': split}, tolerance=9);"
        "wanted = config.load(Path(sys.argv[1])).model_copy(update=changes);"
        "built = pipeline.build(wanted, Camera(), say=lambda line: print(line, flush=True));"
        "Path(sys.argv[3]).write_text(record.to_lines(built.splits['train']), encoding='utf-8')"
    )

    def start(work: Path, out: Path) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", code, str(ROOT / "configs/prompts_small.yaml"), str(work), str(out)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    work = tmp_path / "work"
    process = start(work, killed)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("1-compose: 4/"):
            break
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not killed.exists()
    (folder,) = work.glob("1-compose-*")
    done = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert 4 <= len(done) < 20
    (folder / ".00019.jsonl.1.part").write_text("half a li")  # what a kill between writing and renaming leaves behind
    assert start(work, killed).wait() == 0
    assert start(tmp_path / "other", whole).wait() == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert all((folder / name).read_bytes() == content for name, content in done.items())


def test_a_stored_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = store.Stage(tmp_path, "s", "k", 2, ".txt")
    stage.put(0, b"whole")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        stage.put(1, b"half")
    assert stage.missing == [1]
    assert stage.get(0) == b"whole"
    assert store.key({"a": 1, "b": 2}) == store.key({"b": 2, "a": 1}) != store.key({"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("candidates: 0", "candidates: got 0; the grammar needs a positive number"),
        ("seeds: 3", "seeds: .*not permitted"),
        ("splits: {train: {count: 3, categories: {rural: 1}}}", "unknown category 'rural'"),
        ("splits: {train: {count: 3, categories: {urban: 1}, moves: {jump: 1}}}", "unknown move 'jump'"),
        ("splits: {train: {count: 3, categories: {urban: 1}, difficulties: {hard: 1}}}", "unknown 'hard'"),
        ("- a", "expected a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_configuration_names_the_field(tmp_path: Path, change: str, says: str) -> None:
    file = tmp_path / "c.yaml"
    base = {"name": "n", "candidates": 10, "work": "w", "out": "o", "splits": {"train": {"count": 3, "categories": {"urban": 1}}}}
    if change.startswith(("-", "a:")):
        file.write_text(change)
    else:
        key, _, value = change.partition(": ")
        file.write_text(json.dumps({k: v for k, v in base.items() if k != key})[:-1] + f", {json.dumps(key)}: {value}}}")
    with pytest.raises(ValueError, match=says):
        config.load(file)
    assert cli.run(["prompts", "build", "--config", str(file)]) == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("prompts*.yaml")), ids=lambda path: path.stem)
def test_shipped_build_configurations_are_read(path: Path) -> None:
    assert config.load(path).splits["train"].count >= 100


def test_too_few_candidates_are_an_error_that_says_so(tmp_path: Path, camera: Camera) -> None:
    with pytest.raises(ValueError, match=r"split \w+ has \d+ of \d+ prompts; raise candidates \(now 60\)"):
        pipeline.build(small(tmp_path, candidates=60, block=60), camera)


# ---------------------------------------------------------------- the shipped set


@pytest.mark.skipif(not (DATA / "train.jsonl").is_file(), reason="the set has not been built")
def test_the_shipped_set_is_what_the_card_says(camera: Camera) -> None:
    sets = {name: record.read(DATA / f"{name}.jsonl") for name in ("train", "dynamic", "test")}
    assert len(sets["train"]) >= 3000
    assert len(sets["dynamic"]) >= 500
    assert len(sets["test"]) >= 300
    apart = {entry.source for entry in sets["test"]}
    assert not apart & {entry.source for name in ("train", "dynamic") for entry in sets[name]}
    wanted = config.load(ROOT / "configs/prompts.yaml")
    for name in ("train", "dynamic"):
        counts = Counter(move for entry in sets[name] for move in shots.moves_of(entry.camera))
        quotas = wanted.splits[name].moves  # type: ignore[index]
        # A rare move cannot be met more finely than by one.
        grain = {move: sum(quotas.values()) / (weight * sum(counts.values())) for move, weight in quotas.items()}
        off = balance.off_quota(counts, quotas)
        assert all(abs(value) <= 0.1 + grain[move] for move, value in off.items()), off
    rng = random.Random(0)
    for entry in rng.sample(sets["train"], 150) + rng.sample(sets["test"], 50) + rng.sample(sets["dynamic"], 50):
        assert list(defects(entry, camera, LIMITS)) == []
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= 8 * 2**20


@pytest.mark.skipif(not (DATA / "train.jsonl").is_file(), reason="the set has not been built")
def test_the_shipped_set_is_loaded_by_name() -> None:
    prompts = load_prompts("world:train:600")
    assert len(prompts) == 600
    assert prompts[0].id == "train-000000"
    assert len(Counter(prompt.attributes["category"] for prompt in prompts)) == 6
    assert max(Counter(prompt.attributes["category"] for prompt in prompts).values()) <= 115
    assert {prompt.kind for prompt in load_prompts("world:dynamic")} == {"dynamic"}
    for wrong, says in (
        ("world:valid:3", "SPLIT one of"),
        ("world:train:0", "SPLIT one of"),
        ("world:test:99999", "has 3.. prompts"),
    ):
        with pytest.raises(ValueError, match=says):
            load_prompts(wrong)
