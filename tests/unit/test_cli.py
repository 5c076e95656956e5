"""The command: fast help, exit codes, and one line with a remedy for every mistake of the user's."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from world_r1 import cli, errors
from world_r1.config import ConfigError

ROOT = Path(__file__).parents[2]


def world_r1(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "world_r1.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(f"name: small\nruns: {tmp_path}/runs\nprompts: {{train: {tmp_path}/prompts.txt}}\n", encoding="utf-8")
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake prints; asserts exit code 2 and that nothing else is said."""
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("world-r1: ")
    assert "Traceback" not in err
    return err


def test_help_costs_no_heavy_import() -> None:
    """Below 0.7 s of CPU time (the bar is wall time on a quiet machine; a loaded one inflates the wall, not the work)."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = world_r1("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert result.returncode == 0
    assert min(times) < 0.7, times
    for command in ("train", "sample", "eval", "report", "rewards", "prompts", "blockworld", "bench", "doctor"):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize(
    "arguments", [["train"], ["sample"], ["eval"], ["report"], ["rewards", "score"], ["blockworld", "pretrain"], ["bench", "noise"]]
)
def test_every_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*arguments, "--help"]) == 0
    assert f"Usage: world-r1 {' '.join(arguments)}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from world_r1 import __version__

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"world-r1 {__version__}\n"


def test_print_config_gives_a_file_that_gives_the_same_configuration(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from world_r1.config import load

    assert cli.run(["train", "--config", str(small), "--print-config", "flow.steps=5", "seed=3"]) == 0
    printed = small.with_name("printed.yaml")
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(printed) == load(small, ["flow.steps=5", "seed=3"])
    assert load(printed).flow.steps == 5


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Config"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see world-r1 --help"),
        (["train", "--confg", "x"], "see world-r1 train --help"),
        (["train"], "train needs a configuration, for example: world-r1 train --config configs/blockworld.yaml"),
        (["train", "--config", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["train", "--config", "{small}", "flow.stepz=3"], "did you mean 'steps'?"),
        (["train", "--config", "{small}", "flow.steps=many"], "integer"),
        (["train", "--config", "{small}", "flow.steps"], "an override is written key=value"),
        (["train", "--config", "{small}", "backend=trl", "--resume"], "backend trl cannot resume"),
        (["sample"], "Missing option '--prompt'"),
        (["sample", "--prompt", "A box.", "--out", "clip.gif"], "must be an .mp4 file"),
        (["sample", "--prompt", " ", "--out", "clip.mp4"], "the prompt is empty"),
        (["sample", "--prompt", "A box.", "--config", "{small}", "--model", "blockworld"], "give --config or --model, not both"),
        (["sample", "--prompt", "A box.", "flow.steps=2"], "need --config"),
        (["sample", "--prompt", "A box.", "--seed", "x"], "Invalid value for '--seed'"),
        (["report", "{tmp}"], "there is nothing to report"),
        (["report", "{tmp}/nowhere"], "nowhere"),
        (["rewards", "check", "beauty"], "no reward or probe 'beauty'"),
        (["rewards", "score", "{tmp}/none.mp4"], "none.mp4"),
        (["rewards", "score", "{tmp}/none.mp4", "--reward", "guard", "--config", "configs/blockworld.yaml"], "not both"),
        (["rewards", "score", "{tmp}/none.mp4", "--reward", "constant"], "no such video"),
        (["rewards", "score", "{small}", "--reward", "constant"], "small.yaml"),
        (["prompts", "stats", "{tmp}/none.txt"], "no prompt file at"),
        (["prompts", "stats", "blockworld:nowhere:3"], "unknown blockworld split 'nowhere'"),
        (["blockworld", "pretrain", "--out", "{tmp}/w"], "give either --steps or --minutes"),
        (["blockworld", "pretrain", "--out", "{tmp}/w", "--steps", "1", "--stages", "vea"], "unknown stages ['vea']"),
        (["bench", "noise", "--device", "tpu"], "--device is auto, cpu or cuda, got 'tpu'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, *(argument.format(small=small, tmp=tmp_path) for argument in arguments))
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no prompt file at"),
        (b"", "holds no prompts; write one a line"),
        (b"\n  \n", "holds no prompts; write one a line"),
        (b"\xff\xfe\x00A", "is not UTF-8 text"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_stops_training_before_it_starts(
    content: bytes | None, message: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    assert message in fails(capsys, "train", "--config", str(small))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "prompts.jsonl:2: not a JSON object"),
        ("[1]", "prompts.jsonl:2: expected a JSON object, got list"),
        ('{"txt": "a"}', "prompts.jsonl:2: unknown field 'txt'"),
        ('{"text": ""}', 'prompts.jsonl:2: "text" must be a non-empty string'),
        ('{"text": "a", "kind": "solid"}', "\"kind\" must be one of rigid, dynamic, got 'solid'"),
    ],
)
def test_a_malformed_prompt_is_named_by_its_line(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"text": "A red box."}}\n{line}\n', encoding="utf-8")
    assert message in fails(capsys, "prompts", "stats", str(path))


def test_prompt_stats_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Camera push in, then pan left. A red box.\nA blue sphere.\n\nA blue sphere.\n", encoding="utf-8")
    assert cli.run(["prompts", "stats", str(path), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert (stats["prompts"], stats["distinct texts"], stats["with a camera command"], stats["in several segments"]) == (3, 2, 1, 1)
    assert stats["moves"] == {"push in": 1, "pan left": 1}
    assert stats["words"] == {"least": 3, "mean": 5.0, "most": 9}


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, small: Path, tmp_path: Path) -> None:
    """Only what our own packages raise is for the user; a ValueError out of numpy is a bug report."""
    from world_r1 import inspection

    monkeypatch.setattr(inspection, "prompt_stats", lambda source: np.zeros(2) @ np.zeros(3))
    with pytest.raises(ValueError, match="matmul"):
        cli.run(["prompts", "stats", "x"])


def test_debug_shows_the_traceback(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        cli.run(["train", "--debug"])
    monkeypatch.setenv("WORLD_R1_DEBUG", "1")
    with pytest.raises(ConfigError):
        cli.run(["train"])


def test_an_interrupt_is_130_and_a_lost_reader_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from world_r1 import inspection

    def interrupted(source: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "prompt_stats", interrupted)
    assert cli.run(["prompts", "stats", "x"]) == 130
    assert capsys.readouterr().err == "world-r1: interrupted\n"
    shell = f"{sys.executable} -m world_r1.cli train --schema | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() in ("0", "141")
    assert result.stderr == ""


def test_one_thread_per_process_unless_the_reader_says_otherwise() -> None:
    code = "import os; from world_r1 import cli; cli.run(['--version']); print(os.environ['OMP_NUM_THREADS'])"
    for given, expected in ((None, "1"), ("3", "3")):
        environment = {"PATH": "/usr/bin:/bin", **({"OMP_NUM_THREADS": given} if given else {})}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
        assert result.stdout.split()[-1] == expected


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.mp4"), ["x.mp4: No such file or directory; check the path"]),
        (OSError(28, "No space left on device", "runs/a"), ["runs/a: No space left on device; make room"]),
        (OSError(28, "cannot write the checkpoint a: full; use --resume"), ["cannot write the checkpoint a: full; use --resume"]),
        (ImportError("libusb-1.0.so.0: cannot open shared object file"), ["apt-get install -y libusb-1.0-0"]),
        (ModuleNotFoundError("No module named 'open3d'", name="open3d"), ["open3d is not installed", "world-r1[open3d]"]),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ["GPU memory is full", "optimizer.micro_batch"]),
        (MemoryError(), ["memory is full"]),
        (ValueError("two\n  lines"), ["two lines"]),
    ],
)
def test_errors_say_what_to_do(error: Exception, parts: list[str]) -> None:
    line = errors.explain(error)
    assert line is not None
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_an_unknown_missing_module_is_a_defect() -> None:
    assert errors.explain(ModuleNotFoundError("No module named 'nothing_here'", name="nothing_here")) is None


def test_what_a_ray_task_raised_is_explained_by_its_cause() -> None:
    wrapped = type("RayTaskError(ValueError)", (ValueError,), {"cause": ValueError("mend this")})("a long remote traceback\n...")
    assert errors.explain(wrapped) == "mend this"
