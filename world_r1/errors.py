"""Which exceptions are the user's to mend, and how each is said in one line.

An error that this project, the operating system or a model library raised about files, values or memory becomes one line with exit code 2.
A ValueError or RuntimeError from anywhere else is a defect: it keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from types import TracebackType

#: Missing shared libraries by name -> the Debian package that has them.
LIBRARIES = {
    "libusb-1.0.so": "libusb-1.0-0",
    "libGL.so": "libgl1",
    "libgomp.so": "libgomp1",
    "libX11.so": "libx11-6",
    "libEGL.so": "libegl1",
}

#: Optional modules -> what installs them.
EXTRAS = {
    "open3d": "pip install 'world-r1[open3d]'",
    "triton": "pip install 'world-r1[triton]'",
    "wandb": "pip install 'world-r1[wandb]'",
    "fastapi": "pip install 'world-r1[gateway]'",
    "uvicorn": "pip install 'world-r1[gateway]'",
    "torchvision": "pip install 'world-r1[judge]'",
}

#: Packages whose own ValueErrors and RuntimeErrors are addressed to the user.
OURS = ("world_r1", "world_r1_rewards", "world_r1_prompts", "world_r1_kernels")


def explain(error: BaseException) -> str | None:
    """One line that says what is wrong and what to do, or None if the traceback is what is needed."""
    error = _cause(error)
    if hasattr(error, "format_message"):  # the command line itself
        command = getattr(getattr(error, "ctx", None), "command_path", "world-r1")
        return f"{_one_line(error.format_message()).rstrip('.')}; see {command} --help"
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"GPU memory is full ({_one_line(error).split('. ')[0]}); lower optimizer.micro_batch or video size, "
            "or set model.gradient_checkpointing=true"
        )
    if isinstance(error, MemoryError):
        return "memory is full; lower optimizer.micro_batch, prompts.group_size or cluster.judges"
    if isinstance(error, ImportError):
        return _import(error)
    if isinstance(error, OSError):
        return _os(error)
    if type(error).__name__ == "SafetensorError":
        return f"a weights file is damaged ({_one_line(error)}); fetch or write it again"
    if isinstance(error, ValueError | RuntimeError) and (error.__traceback__ is None or _is_ours(error.__traceback__)):
        return _one_line(error)
    return None


def _cause(error: BaseException) -> BaseException:
    """What was raised inside a Ray task or actor, else the error itself."""
    inner = getattr(error, "cause", None)
    return inner if type(error).__name__.startswith("RayTaskError") and isinstance(inner, BaseException) else error


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _os(error: OSError) -> str:
    if error.errno is None or not error.filename:
        text = error.strerror if error.errno is not None and error.strerror else error
        return _one_line(text)
    path, reason = os.fsdecode(error.filename), error.strerror or type(error).__name__
    remedy = {
        errno.ENOENT: "check the path",
        errno.ENOSPC: "make room, or write to another disk with runs=",
        errno.EACCES: "check its permissions",
        errno.EROFS: "write to another place with runs=",
        errno.ENOTDIR: "check the path",
    }.get(error.errno)
    return f"{path}: {reason}" + (f"; {remedy}" if remedy else "")


def _import(error: ImportError) -> str | None:
    text = str(error)
    for library, package in LIBRARIES.items():
        if library in text:
            return f"the system library {library} is missing; install it with: apt-get install -y {package}"
    root = (error.name or "").partition(".")[0]
    return f"{root} is not installed; install it with: {EXTRAS[root]}" if root in EXTRAS else None


def _is_ours(traceback: TracebackType) -> bool:
    """Whether the innermost frame is in one of this project's packages."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    package = traceback.tb_frame.f_globals.get("__package__") or ""  # unlike __name__, right under `python -m` too
    return package.partition(".")[0] in OURS


def report(error: BaseException) -> int:
    """Print the line for `error` to stderr and return the exit code 2; re-raise what is not the user's to mend."""
    line = explain(error)
    if line is None:
        raise error
    print(f"world-r1: {line}", file=sys.stderr)
    return 2
