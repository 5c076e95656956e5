"""`world-r1 doctor`: what this machine can run, and why not.

Every check looks at the real thing: it opens the encoder, hashes the weights, and imports what has native code (pure Python packages are
looked up, which takes no time). A check is "ok", "note" (something works
slower or is left out) or "bad" (a job cannot run), and then says what to do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from world_r1 import errors

GIB = 2**30
Status = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Check:
    """One finding. Example: `Check("memory", "note", "3.1 GiB free of 8.0", "close other programs: ...")`"""

    name: str
    status: Status
    found: str
    remedy: str = ""


#: Job -> the checks that must not be "bad" for it.
JOBS: Mapping[str, tuple[str, ...]] = {
    "world-r1 sample": ("python", "torch", "diffusers", "transformers", "video", "weights"),
    "world-r1 eval": ("python", "torch", "diffusers", "transformers", "opencv", "video", "weights"),
    "world-r1 train on this CPU": (
        "python",
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "ray",
        "opencv",
        "video",
        "weights",
        "memory",
        "disk",
    ),
    "world-r1 train on a GPU": (
        "python",
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "ray",
        "opencv",
        "video",
        "weights",
        "disk",
        "gpu",
    ),
    "backend: trl": ("python", "torch", "diffusers", "transformers", "peft", "trl", "opencv", "video", "weights"),
}
#: The jobs whose failure makes `doctor` exit with 1.
MAIN = ("world-r1 sample", "world-r1 train on this CPU")

#: Check name -> (module, distribution whose version counts, whether the module is imported).
MODULES = {
    "diffusers": ("diffusers", "diffusers", False),
    "transformers": ("transformers", "transformers", False),
    "peft": ("peft", "peft", False),
    "ray": ("ray", "ray", True),
    "trl": ("trl", "trl", False),
    "opencv": ("cv2", "opencv-python-headless", True),
}


def checks(directory: Path = Path()) -> list[Check]:
    """All findings; `directory` is where runs would be written."""
    found: list[Check | None] = [python(), torch(), gpu()]
    found += [module(name, *target) for name, target in MODULES.items()]
    found += [video(), weights(), cores(), memory(), shared_memory(), disk(directory), triton(), open3d(), torchvision()]
    return [check for check in found if check is not None]


def jobs(found: list[Check]) -> dict[str, list[str]]:
    """Job -> names of the checks that stand in its way; [] where it can run."""
    bad = {check.name for check in found if check.status == "bad"}
    no_gpu = {check.name for check in found if check.name == "gpu" and check.status != "ok"}
    return {job: [name for name in needs if name in bad | no_gpu] for job, needs in JOBS.items()}


def main(*, as_json: bool = False, directory: Path = Path()) -> int:
    """Print the findings; returns 0 if the embedded model can be sampled and trained here, else 1."""
    found = checks(directory)
    possible = jobs(found)
    if as_json:
        print(
            json.dumps(
                {"checks": [asdict(check) for check in found], "jobs": {job: not why for job, why in possible.items()}}, indent=2
            )
        )
    else:
        _print(found, possible)
    return int(any(possible[job] for job in MAIN))


def python() -> Check:
    """The interpreter."""
    version = sys.version_info
    found = f"{version.major}.{version.minor}.{version.micro} at {sys.executable}"
    if (3, 11) <= version[:2] < (3, 14):
        return Check("python", "ok", found)
    return Check("python", "bad", found, "use Python 3.11, 3.12 or 3.13 (ray has no wheels for others)")


def torch() -> Check:
    """PyTorch: its version against our bounds, and its build."""

    def describe() -> str:
        import torch as module

        build = f"CUDA {module.version.cuda}" if module.version.cuda else "CPU build"
        return f"{module.__version__} ({build}), {module.get_num_threads()} thread(s)"

    return _imported("torch", "torch", describe)


def module(name: str, target: str, distribution: str, load: bool) -> Check:
    """A Python package: whether it is there (and imports, with `load`), and its version against our bounds."""

    def describe() -> str:
        if importlib.util.find_spec(target) is None:
            raise ModuleNotFoundError(f"No module named {target!r}", name=target)
        loaded = importlib.import_module(target) if load else None
        return _version(distribution) or str(getattr(loaded, "__version__", "version unknown"))

    return _imported(name, distribution, describe)


def gpu() -> Check:
    """CUDA devices as torch sees them; says why if there is one that torch cannot use."""
    try:
        import torch as module

        if module.cuda.is_available():
            names = []
            for index in range(module.cuda.device_count()):
                free, total = module.cuda.mem_get_info(index)
                names.append(f"{module.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")
            return Check("gpu", "ok", "; ".join(names))
        build = module.version.cuda
    except Exception as error:  # whatever a driver throws is the finding
        return Check("gpu", "note", f"torch cannot ask for one: {_short(error)}", "mend torch first")
    if not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return Check("gpu", "note", "none; everything runs on the CPU")
    if build is None:
        remedy = "this torch is a CPU build: install one for your CUDA version, see https://pytorch.org/get-started/locally"
        return Check("gpu", "note", "an NVIDIA GPU that torch cannot use", remedy)
    return Check(
        "gpu",
        "note",
        f"an NVIDIA GPU that torch (CUDA {build}) cannot use",
        "update the driver, or install a torch for an older CUDA",
    )


def video() -> Check:
    """Whether MP4 can be written and read: PyAV with an H.264 (or MPEG-4) encoder."""

    def describe() -> str:
        import av

        for codec in ("libx264", "h264", "mpeg4"):
            try:
                av.codec.Codec(codec, "w")
            except ValueError:
                continue
            return f"av {av.__version__}, encoder {codec}"
        raise OSError(
            "PyAV has neither an H.264 nor an MPEG-4 encoder; install the wheel from PyPI: pip install --force-reinstall av"
        )

    return _imported("video", "av", describe)


def weights() -> Check:
    """The embedded model's files against their checksums."""
    from world_r1.blockworld import manifest, weights_path

    folder = weights_path()
    try:
        problems = manifest.verify(folder)
    except OSError as error:
        return Check("weights", "bad", _short(error), "reinstall world-r1, or train them: world-r1 blockworld pretrain")
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return Check("weights", "bad", f"{problems[0]}{more}", "reinstall world-r1, or train them: world-r1 blockworld pretrain")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Check("weights", "ok", f"embedded model, {size / 2**20:.1f} MiB, checksums match")


def cores() -> Check:
    """Cores that this process may use, and threads per process."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    found = f"{count} core(s), OMP_NUM_THREADS={threads}"
    if threads.isdigit() and int(threads) > 1:
        return Check(
            "cores",
            "note",
            found,
            "unset OMP_NUM_THREADS: two busy processes with two threads each ran 30 times slower than with one",
        )
    return Check("cores", "ok", found)


def memory(limits: Callable[[], tuple[int, int]] | None = None) -> Check:
    """RAM that is free, in a container within its limit."""
    try:
        free, total = (limits or _memory)()
    except OSError as error:
        return Check("memory", "note", f"unknown ({_short(error)})")
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if free < 3 * GIB:
        return Check(
            "memory", "bad", found, "training the embedded model takes 3 GiB (driver, policy, judge, Ray): close other programs"
        )
    return Check("memory", "ok", found)


def shared_memory(path: Path = Path("/dev/shm")) -> Check | None:
    """Ray's object store lives in /dev/shm; None where there is none."""
    if not path.is_dir():
        return None
    free = shutil.disk_usage(path).free
    found = f"{free / GIB:.1f} GiB free in {path}"
    if free < GIB:
        return Check("shared memory", "note", found, "Ray will use slower files instead; start the container with --shm-size=2g")
    return Check("shared memory", "ok", found)


def disk(directory: Path = Path()) -> Check:
    """Room for runs."""
    free = shutil.disk_usage(directory).free
    found = f"{free / GIB:.1f} GiB free in {directory.resolve()}"
    if not os.access(directory, os.W_OK):
        return Check("disk", "bad", f"{directory.resolve()} is read-only", "write runs elsewhere with runs=DIR")
    return (
        Check("disk", "ok", found)
        if free >= GIB
        else Check("disk", "bad", found, "make room, or write runs elsewhere with runs=DIR")
    )


def triton() -> Check:
    """Optional: GPU kernels, or their interpreter on a CPU."""
    return _optional("triton", "kernels use their PyTorch reference")


def open3d() -> Check:
    """Optional: point clouds and TSDF meshes."""
    return _optional("open3d", "rewards that need it are not available")


def torchvision() -> Check | None:
    """None unless it is installed and broken: it then makes transformers' image models unimportable."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a build for another torch raises RuntimeError from its C++ part
        return Check("torchvision", "bad", _short(error), "pip uninstall torchvision (world-r1 does not use it)")
    return Check("torchvision", "ok", f"{_version('torchvision')} (not needed)")


def _optional(name: str, without: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return Check(name, "note", f"not installed (optional): {without}", errors.EXTRAS[name])
    check = _imported(name, name, lambda: str(importlib.import_module(name).__version__))
    return check if check.status == "ok" else Check(name, "note", check.found, check.remedy)


def _imported(name: str, distribution: str, describe: Callable[[], str]) -> Check:
    """The finding of an import: its description, a version out of bounds, or why it failed."""
    try:
        found = describe()
    except Exception as error:  # broken installations raise anything, and it is the finding
        remedy = errors.explain(error) if isinstance(error, ImportError | OSError) else None
        return Check(
            name, "bad", _short(error), remedy or f"pip install --force-reinstall '{_requirement(distribution) or distribution}'"
        )
    wanted = _requirement(distribution)
    if wanted and not _satisfied(wanted, distribution):
        return Check(name, "note", found, f"tested with {wanted}: pip install '{wanted}'")
    return Check(name, "ok", found)


def _requirement(distribution: str) -> str | None:
    """Our own bound on a distribution, such as "ray<2.61,>=2.60"; None if there is none or we are not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("world-r1") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == distribution and "extra" not in line.partition(";")[2]:
            return f"{requirement.name}{requirement.specifier}"
    return None


def _satisfied(wanted: str, distribution: str) -> bool:
    from packaging.requirements import Requirement

    version = _version(distribution)
    return version is None or Requirement(wanted).specifier.contains(version, prereleases=True)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> tuple[int, int]:
    """(available, total) bytes of this machine, or of this container if it is allowed less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.strip()}
    free, total = table["MemAvailable"], table["MemTotal"]
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            total, free = min(total, int(limit)), min(free, int(limit) - used)
    except OSError:
        pass  # not in a version-2 control group: the machine's own numbers stand
    return free, total


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _print(found: list[Check], possible: dict[str, list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    colour = {"ok": "green", "note": "yellow", "bad": "red"}
    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in found:
        table.add_row(check.name, f"[{colour[check.status]}]{check.status}[/]", escape(check.found), escape(check.remedy))
    console.print(table)
    console.print()
    for job, why in possible.items():
        verdict = "[green]yes[/]" if not why else f"[red]no[/]: {escape(', '.join(why))}"
        console.print(f"{job}: {verdict}", highlight=False)
