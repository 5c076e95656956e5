"""The layout and the edges of ARCHITECTURE: who may import whom, and what a folder may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "world_r1": ROOT / "world_r1",
    "world_r1_rewards": ROOT / "rewards/world_r1_rewards",
    "world_r1_prompts": ROOT / "prompts/world_r1_prompts",
    "world_r1_kernels": ROOT / "kernels/world_r1_kernels",
}
#: Modules of pure functions: torch, numpy, the standard library, and of ours only types, config and each other.
PURE = ("flow", "camera", "camera_motion", "noise", "noise_map", "advantage", "loss", "rng", "types", "metrics", "comparison")


def sources(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports, relative ones resolved; with `top_level`, only those that run when it is imported."""
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = _dotted(path).split(".")[: -node.level or None]
                base = ".".join([*package, *([base] if base else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif top_level and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _type_checking(node)):
            continue
        stack += ast.iter_child_nodes(node)
    return found


def _dotted(path: Path) -> str:
    for name, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            return ".".join([name, *path.relative_to(folder).with_suffix("").parts])
    raise AssertionError(path)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("folder", ["rewards", "prompts", "kernels", "configs", "scripts", "tests", "docs"])
def test_a_top_level_folder_is_never_a_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), (
        f"{folder}/__init__.py makes `import {folder}` resolve to this checkout. Ray puts the driver's working directory on every "
        "worker's path, so `kernels` would hide Hugging Face's `kernels`."
    )


def test_the_top_level_holds_what_the_map_says() -> None:
    known = {"world_r1", "rewards", "prompts", "kernels", "configs", "tests", "scripts", "docs", "runs"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    folders = {line.partition("/")[0] for line in tracked.stdout.splitlines() if "/" in line and not line.startswith(".")}
    assert folders <= known, f"{sorted(folders - known)}: put it into one of {sorted(known)} or extend the map (README, this test)"


def test_the_distribution_owns_only_prefixed_names() -> None:
    files = metadata.files("world-r1") or []
    owned = {file.parts[0] for file in files if file.suffix == ".py" and not file.is_absolute() and ".." not in file.parts}
    assert owned <= set(PACKAGES), owned


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert (PACKAGES[package] / "py.typed").is_file()


@pytest.mark.parametrize("package", ["world_r1_kernels", "world_r1_prompts"])
def test_kernels_and_prompts_import_nothing_of_ours(package: str) -> None:
    for path in sources(package):
        assert roots(imports(path)) & set(PACKAGES) <= {package}, path


def test_the_core_never_imports_the_rewards() -> None:
    for path in sources("world_r1"):
        assert "world_r1_rewards" not in roots(imports(path)), f"{path}: rewards are loaded by name"


def test_ray_appears_in_actors_serving_and_loops_only() -> None:
    core = PACKAGES["world_r1"]
    allowed = {*(core / "actors").rglob("*.py"), *(core / "serving").rglob("*.py"), *core.glob("loop*.py")}
    for package in PACKAGES:
        for path in sources(package):
            if path not in allowed:
                assert "ray" not in roots(imports(path)), path


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_stay_pure(name: str) -> None:
    path = PACKAGES["world_r1"] / f"{name}.py"
    allowed = {"torch", "numpy", "world_r1", *sys.stdlib_module_names}
    used = imports(path)
    assert roots(used) <= allowed, f"{path}: {sorted(roots(used) - allowed)}"
    ours = {n.split(".")[1] for n in used if n.startswith("world_r1.")}
    assert ours <= {*PURE, "config", "command", "heldout"}, f"{path}: {sorted(ours)}"


def test_importing_world_r1_loads_neither_torch_nor_ray() -> None:
    code = "import sys, world_r1, world_r1.cli, world_r1.config; print(*({'torch', 'ray', 'numpy', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_nothing_unpickles_or_evaluates_what_it_receives() -> None:
    """Weights are safetensors, configurations are read by safe_load; `torch.load` and pickle would run what a file says."""
    for package in PACKAGES:
        for path in sources(package):
            used = imports(path)
            assert not roots(used) & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"), (
                        f"{path}:{node.lineno}: {called}"
                    )
                    if called == "torch.load":
                        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                        assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}: torch.load without weights_only=True"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_readable(package: str) -> None:
    for path in sources(package):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 450, f"{path} has {len(lines)} lines: split it"


def test_shipped_files_stay_small() -> None:
    """Weights: every file below 16 MiB, 45 MiB in all."""
    weights = [path for path in (PACKAGES["world_r1"] / "blockworld/weights").rglob("*") if path.is_file()]
    for path in weights:
        assert path.stat().st_size < 16 * 2**20, path
    assert sum(path.stat().st_size for path in weights) <= 45 * 2**20


def test_the_shipped_weights_are_the_listed_ones() -> None:
    """After replacing weights: python -m world_r1.blockworld.manifest."""
    from world_r1.blockworld import manifest, weights_path

    assert manifest.verify(weights_path()) == []
    listed = {line.partition("  ")[2] for line in (weights_path() / manifest.NAME).read_text(encoding="utf-8").splitlines()}
    there = {path.relative_to(weights_path()).as_posix() for path in weights_path().rglob("*") if path.is_file()}
    assert there - listed == {manifest.NAME}
