"""Several processes that learn together: who takes which micro-batch, and what they tell each other.

Every process holds all trained weights and the whole optimizer; a step's micro-batches are dealt to them, gradients are added up, and all
take the same step. Micro-batches are the same ones at any number of processes, so that the number changes nothing but the order of a sum.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How long one process waits for another in a call: it may sample for a long time before it comes. That it died is noticed at once.
PATIENCE = timedelta(hours=2)
#: Elements of gradients that are added up at a time.
BUCKET = 2**26
#: Linux: the address of a network interface.
SIOCGIFADDR = 0x8915


class Team:
    """A process that learns alone: the whole of every batch is its own."""

    rank, size = 0, 1
    #: Processes, neighbours in rank, that run every micro-batch together and share its tokens: a band (`speed.sequence_parallel`).
    together = 1

    def mine(self, batches: Sequence[T]) -> list[tuple[int, T]]:
        """The micro-batches of this process, with their numbers: every `size`-th one; those of a band's processes are the same."""
        return list(enumerate(batches))[self.rank // self.together :: self.size // self.together]

    def exchange(self, value: Any) -> list[Any]:
        """What every process gives, in the order of ranks; a JSON value. A call that all processes make."""
        return [value]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes. A call that all processes make."""


class Processes(Team):
    """This process among others, connected through a store that all of them see."""

    def __init__(self, rank: int, size: int, store: dist.Store, backend: str = "gloo", together: int = 1) -> None:
        """Waits for the others. `backend` adds gradients up: "nccl" needs a GPU for each process, "gloo" goes through the CPU.

        ValueError for a rank that does not exist, and for bands of `together` that `size` processes cannot form.
        """
        if not 0 <= rank < size:
            raise ValueError(f"a rank is in 0..{size - 1}, got {rank}")
        if together < 1 or size % together:
            raise ValueError(f"{size} processes do not divide into bands of {together}")
        self.rank, self.size, self.backend, self.together = rank, size, backend, together
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
        self.gradients: Any = dist.new_group(backend="nccl", timeout=PATIENCE) if backend == "nccl" else dist.group.WORLD

    def mesh(self, device: str) -> Any:
        """The processes as a device mesh for FSDP2. ValueError where they share a GPU."""
        from torch.distributed.device_mesh import DeviceMesh

        if device == "cuda" and self.backend != "nccl":
            raise ValueError("speed.fsdp needs a GPU for each learner; set cluster.gpus_per_policy to 1 or speed.fsdp to false")
        return DeviceMesh.from_group(self.gradients, device)

    def band(self) -> Any:
        """The `Band` of this process. A call that all processes make: each takes part in the founding of every band."""
        from world_r1.policies.sequence import Band

        firsts = range(0, self.size, self.together)
        groups = [
            dist.new_group(list(range(first, first + self.together)), backend=self.backend, timeout=PATIENCE) for first in firsts
        ]
        number, rank = divmod(self.rank, self.together)
        return Band(rank, self.together, firsts[number], groups[number], staged=self.backend != "nccl")

    def exchange(self, value: Any) -> list[Any]:
        """As bytes of JSON: what comes from another process is data and nothing that could run."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(own)])
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        longest = max(int(one) for one in lengths)
        padded = torch.nn.functional.pad(own, (0, longest - len(own)))
        gathered = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return [json.loads(bytes(one[: int(n)].tolist())) for one, n in zip(gathered, lengths, strict=True)]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """In few calls; a parameter that has a gradient in any process gets one in all, and stays without if it has none in any."""
        parameters = list(parameters)
        present = self.exchange("".join("1" if parameter.grad is not None else "0" for parameter in parameters))
        trained = [parameter for i, parameter in enumerate(parameters) if any(one[i] == "1" for one in present)]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in buckets(trained):
            gradients: list[torch.Tensor] = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten().float() for gradient in gradients])
            summed = flat if self.backend == "nccl" else flat.cpu()
            dist.all_reduce(summed, group=self.gradients)
            parts = summed.to(flat.device).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def buckets(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters in their order, as many together as have BUCKET elements; a larger one alone."""
    found: list[list[torch.nn.Parameter]] = []
    filled = BUCKET
    for parameter in parameters:
        if filled + parameter.numel() > BUCKET:
            found.append([])
            filled = 0
        found[-1].append(parameter)
        filled += parameter.numel()
    return found


def listen(host: str, size: int) -> dist.TCPStore:
    """Open a store on this machine in which `size` processes of several machines meet; its port is one that is free."""
    return dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False)


def meet(place: Mapping[str, Any], size: int, host: str, opened: dist.Store | None = None) -> dist.Store:
    """The store at `place`, {"file": path} or {"host": ..., "port": ...}, for a process on `host`; "apart": not all are on one machine.

    `opened` is what `listen` gave this process, if it was asked. Tells gloo and NCCL by which network interface they speak.
    """
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast over NVLink needs rights that containers lack
    speak_by(host if place["apart"] else "127.0.0.1")
    if "file" in place:
        return dist.FileStore(place["file"], size)
    return opened or dist.TCPStore(place["host"], place["port"], size, is_master=False)


def speak_by(address: str) -> None:
    """Have gloo and NCCL of this process use the network interface with this IPv4 address, unless the environment names one.

    Left to themselves they ask what the host's name resolves to, which on many machines is a loopback address.
    """
    name = interface(address)
    if name is None:
        log.warning("no network interface has %s as its first address; gloo and NCCL choose by themselves", address)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=" it is the beginning of a name


def interface(address: str) -> str | None:
    """Name of the network interface whose first IPv4 address this is; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
