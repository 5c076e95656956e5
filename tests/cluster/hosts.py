"""Two hosts on one machine: network namespaces with an address each, joined by a cable, with a Ray node in each.

Everything that runs in them was started here, and is ended by its id.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
PORT = 6391


def lacking() -> str:
    """Why there can be no such hosts here; "" if there can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "two hosts need Linux and the command ip (package iproute2)"
    if os.geteuid() != 0:
        return "two hosts need root, to make network namespaces"
    name = f"p{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("link", "add", name, "netns", name, "type", "veth", "peer", "name", f"{name}b", "netns", name)
    except RuntimeError as error:
        return f"no network namespaces, or no cables between them, here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


class Hosts:
    """Use as a context manager. Host 0 has the head node, and a driver runs there; host 1 can go and come back."""

    addresses = ("10.77.0.1", "10.77.0.2")

    def __init__(self, cpus: int = 1) -> None:
        self.cpus = cpus
        self.names = [f"wr1{letter}{os.getpid()}" for letter in "ab"]
        self.ends = [f"v{letter}{os.getpid()}" for letter in "ab"]
        self.folder = Path(tempfile.mkdtemp(prefix="wr1-", dir="/tmp"))  # short: sockets' paths have at most 107 characters
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        token.chmod(0o600)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A host that says nothing is given up after some 10 s; by Ray's own settings it took a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "PYTHONPATH": str(ROOT),
        }

    def __enter__(self) -> Hosts:
        try:
            for name in self.names:
                ip("netns", "add", name)
            ip("link", "add", self.ends[0], "type", "veth", "peer", "name", self.ends[1])
            for name, end, address in zip(self.names, self.ends, self.addresses, strict=True):
                ip("link", "set", end, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
                ip("-n", name, "link", "set", "lo", "up")
            self.start(0)
            self.start(1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host, name in enumerate(self.names):
            self.kill(host)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.addresses[0]}:{PORT}"

    def start(self, host: int) -> None:
        """Start the Ray node of a host, with its cable in."""
        ip("-n", self.names[host], "link", "set", self.ends[host], "up")
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host == 0 else [f"--address={self.address}"]
        place = [f"--temp-dir={self.folder}/ray"] if host == 0 else []
        size = [f"--num-cpus={self.cpus}", "--object-store-memory=200000000"]
        ray = str(Path(sys.executable).with_name("ray"))
        self.run(
            host, [ray, "start", *role, *place, *size, f"--node-ip-address={self.addresses[host]}", "--disable-usage-stats"], 120
        )

    def run(self, host: int, command: list[str], timeout: float) -> str:
        """Run a command on a host; returns its output. RuntimeError with the end of both outputs if it fails."""
        # To files: what a node leaves running in the background would keep a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                ["ip", "netns", "exec", self.names[host], *command],
                stdout=out, stderr=err, timeout=timeout, env=self.environment, check=False,
            )  # fmt: skip
            texts = [_whole(file) for file in (out, err)]
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {texts[0][-1500:]} {texts[1][-3000:]}")
        return texts[0]

    def kill(self, host: int) -> None:
        """End everything that runs on a host, as a power cut would: the cable is out first, so that nobody is told."""
        subprocess.run(["ip", "-n", self.names[host], "link", "set", self.ends[host], "down"], capture_output=True, check=False)
        for _ in range(50):
            found = subprocess.run(
                ["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=False
            ).stdout.split()
            if not found:
                return
            for process in map(int, found):
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)


def _whole(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def ip(*arguments: str) -> None:
    """Run the command ip. RuntimeError with what it says if it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
