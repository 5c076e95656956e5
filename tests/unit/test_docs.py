"""What the README says exists: files of the map, commands with their options, configurations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from world_r1 import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    lines = re.findall(r"^(?:\.venv/bin/)?world-r1 (.+)$", README, re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_readme_has_its_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in arguments if re.fullmatch(r"[a-z]+", word)]
    depth = 2 if words[0] in ("rewards", "prompts", "blockworld", "bench") else 1
    assert cli.run([*arguments[:depth], "--help"]) == 0
    text = capsys.readouterr().out
    for option in (word for word in arguments if word.startswith("--")):
        assert f"{option} " in text, f"{option} is not an option of {' '.join(arguments[:depth])}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/\w+\.yaml", README))))
def test_configurations_that_the_readme_names_exist(path: str) -> None:
    assert (ROOT / path).is_file()


def test_links_and_the_map_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    rows = re.findall(r"^\| (`.+?) \|", README.partition("## Map")[2], re.M)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(links) >= 4
    assert len(named) >= 12
    for name in [*links, *named]:
        assert (ROOT / name).exists() or (ROOT / "world_r1" / name).exists(), name


def test_the_readme_needs_two_commands() -> None:
    assert "```\nmake demo\nmake test\n```" in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert re.search(rf"^{target}: setup", makefile, re.M)


def test_ci_runs_the_readmes_test_command() -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert text.rstrip().endswith("make test")
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_no_path_of_a_builders_machine_is_in_the_repository() -> None:
    for folder in ("world_r1", "rewards", "prompts", "kernels", "configs", "docs", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".md", ".yaml", ".sh", ".json"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"(?<![\w.])/(work|opt/wheels|tmp|root)/", text), path
