"""Prompt curation's tools: rewriting by a language model, import, sampling, plots and the embedded world's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from world_r1_prompts import record, summary
from world_r1_prompts.grammar import compose, scenes, shots
from world_r1_prompts.record import CATEGORIES, Record

from world_r1 import cli
from world_r1.curation import Camera, enhance
from world_r1.prompts import load_prompts

BASE = "A squat lighthouse stands on a granite islet. In the foreground, three dinghies lie upturned on trestles near the water."


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


@pytest.fixture(scope="module")
def candidates(camera: Camera) -> list[Record]:
    library = scenes.load()
    return [compose.compose(library, camera, 3, index, dict.fromkeys(CATEGORIES, 1.0)) for index in range(120)]


def one(language: Camera, **changes: object) -> Record:
    text = f"The camera pushes in. {BASE}"
    plain = Record("x-1", "train", "natural", "coast", "rigid", BASE, text, language.read("The camera pushes in."))
    return plain.having(**changes)


LONG = (
    "A squat lighthouse of pale granite stands on a low islet, its iron gallery streaked with orange rust and its door painted green. "
    "In the foreground, three wooden dinghies lie upturned on trestles, their hulls flaking in blue and white plates. To the left of "
    "the lighthouse, a slope of yellow gorse runs down to dark boulders. Behind it, a chain of islands fades from blue to grey under a "
    "thin band of cloud, and the water between them is flat and silver in the low evening light."
)


def test_rewriting_takes_what_keeps_the_rules_and_leaves_the_rest(camera: Camera, tmp_path: Path) -> None:
    answers = iter([LONG + " It is breathtaking.", "Too short.", LONG, "no", "no", "no"])
    records = [one(camera, source="grammar:natural/coast/lighthouse", id=f"x-{k}") for k in range(2)]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(record.to_lines(records), encoding="utf-8")
    assert enhance(source, out, model="m", endpoint="", least=80, most=120, writer=lambda prompt, seed: next(answers)) == (1, 1)
    first, second = record.read(out)
    assert (first.base, first.quality["enhanced"], first.generator) == (LONG, True, "+m")
    assert first.text == f"The camera pushes in. {LONG}"
    assert (second.base, second.quality["enhanced"]) == (BASE, False)
    out.write_text(out.read_text(encoding="utf-8").splitlines()[0] + '\n{"id": "x-', encoding="utf-8")  # a kill in the second line
    answers = iter([LONG])
    assert enhance(source, out, model="m", endpoint="", least=80, most=120, writer=lambda prompt, seed: next(answers)) == (0, 2)


def test_rewriting_speaks_to_an_openai_compatible_endpoint(camera: Camera, tmp_path: Path) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": LONG}}]}).encode()
            self.send_response(200 if self.path == "/v1/chat/completions" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(one(camera, source="grammar:natural/coast/lighthouse").to_json() + "\n", encoding="utf-8")
    address = f"http://127.0.0.1:{server.server_port}"
    assert cli.run(["prompts", "enhance", str(source), "-o", str(out), "--model", "m", "--endpoint", f"{address}/v1"]) == 0
    assert "three dinghies" in asked[0]["messages"][0]["content"]  # type: ignore[index]
    assert record.read(out)[0].base == LONG
    out.unlink()
    assert cli.run(["prompts", "enhance", str(source), "-o", str(out), "--model", "m", "--endpoint", f"{address}/v2"]) == 2
    server.shutdown()


def test_public_text_files_become_records(tmp_path: Path, camera: Camera, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "train.txt").write_text("Camera push in, then pan left. A red barn.\nA blue lake.\nA blue lake.\n", encoding="utf-8")
    (folder / "dynamic.txt").write_text("Camera fixed. A dog runs.\n", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert cli.run(["prompts", "import-world-r1", str(tmp_path), "-o", str(out)]) == 0
    assert "3 records, 2 with a camera plan" in capsys.readouterr().out
    records = {entry.id: entry for entry in record.read(out)}
    first = records["world-r1-final-train-000001"]
    assert (first.base, shots.moves_of(first.camera), first.kind) == ("A red barn.", ("push in", "pan left"), "rigid")
    assert records["world-r1-final-dynamic-000001"].kind == "dynamic"
    assert cli.run(["prompts", "import-world-r1", str(out.parent / "nowhere"), "-o", str(out)]) == 2


def test_the_reading_list_is_fixed_by_its_seed(
    tmp_path: Path, candidates: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = summary.reading_list(candidates)
    assert listed == summary.reading_list(list(reversed(candidates)))
    assert len({entry.id for entry in listed}) == 100
    assert listed != summary.reading_list(candidates, seed=1)
    file = tmp_path / "all.jsonl"
    file.write_text(record.to_lines(candidates), encoding="utf-8")
    assert cli.run(["prompts", "sample", str(file), "--n", "7", "--seed", "5", "--json"]) == 0
    said = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert said == [entry.id for entry in summary.reading_list(candidates, 7, 5)]


def test_plots_are_pictures(tmp_path: Path, candidates: list[Record]) -> None:
    from PIL import Image

    for name in summary.plots(tmp_path, {"a": candidates[:60], "b": candidates[60:100]}):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert pixels.shape[1] == 760
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_blockworld_files_are_the_generated_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prompts", "blockworld", "-o", str(tmp_path), "--train", "5", "--dynamic", "3", "--test", "2"]) == 0
    for split, count in (("train", 5), ("dynamic", 3), ("test", 2)):
        assert load_prompts(str(tmp_path / f"blockworld_{split}.jsonl")) == load_prompts(f"blockworld:{split}:{count}")
