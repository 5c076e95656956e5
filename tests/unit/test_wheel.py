"""The built wheel, used from outside the checkout: it must hold every package, the typed marks, the data and the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pytest.importorskip("hatchling", reason="the build backend; part of the dev extra")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("world_r1-*.whl")
    return found


def test_the_wheel_holds_every_tracked_file_of_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for line in tracked.stdout.splitlines():
        for prefix in ("rewards/", "prompts/", "kernels/", ""):
            inside = line.removeprefix(prefix)
            if line.startswith(prefix) and inside.startswith("world_r1"):
                assert inside in names, f"{line} is missing from the wheel"
                break
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "world_r1", "world_r1_rewards", "world_r1_prompts", "world_r1_kernels",
    }  # fmt: skip


def test_the_wheel_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Unpacked far from the checkout, with the checkout off the path, it lists rewards and prints a configuration."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    config = tmp_path / "run.yaml"
    config.write_text("name: elsewhere\n", encoding="utf-8")
    code = (
        f"import sys; sys.path = [p for p in sys.path if not p.startswith({str(ROOT)!r}) or 'site-packages' in p or '/lib/' in p];"
        f"sys.path.insert(0, {str(site)!r});"
        "import world_r1, world_r1_rewards; assert world_r1.__file__.startswith(sys.path[0]), world_r1.__file__;"
        "assert world_r1_rewards.__file__.startswith(sys.path[0]);"
        "from world_r1 import cli; sys.exit(cli.run(sys.argv[1:]))"
    )
    for arguments, expected in (
        (["rewards", "list", "--json"], "flow_ba"),
        (["train", "--config", str(config), "--print-config"], "elsewhere"),
    ):
        result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout
