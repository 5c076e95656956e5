"""Weights from a learner to the samplers by broadcast: device to device through NCCL, or through gloo where there are no GPUs.

An adapter of 100 MB goes well through Ray's object store; all weights of a large model are gigabytes, which the store would take from the
GPU to the host, into shared memory, to the other machine and up to its GPU again. Which way is taken: `cluster.weights`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from world_r1.parallel import PATIENCE, buckets

#: How long start-up waits for the others to say what they hold.
MEETING = timedelta(minutes=10)


class Channel:
    """This process's end: rank 0 sends, the others receive. The process may be part of other groups, of which this one knows nothing."""

    def __init__(self, rank: int, size: int, store: dist.Store, parameters: Mapping[str, torch.nn.Parameter], backend: str) -> None:
        """Waits for the others. ValueError, at both ends, if a receiver's parameters are not named and shaped like the sender's.

        `backend`: "nccl", where every process has a GPU of its own, or "gloo". `parameters` by name, float32 masters or not.
        """
        self.rank, self.backend = rank, backend
        self.parameters = dict(sorted(parameters.items()))
        own = dist.PrefixStore("weights", store)
        self._agree(own, size)
        if backend == "nccl":  # it connects with the first broadcast
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = PATIENCE
            self.group: dist.Backend = dist.ProcessGroupNCCL(own, rank, size, options)
        else:
            self.group = dist.ProcessGroupGloo(own, rank, size, PATIENCE)
        int(self._broadcast(torch.zeros(1, device=self._device())))  # a number on the host: it has arrived

    def _agree(self, store: dist.Store, size: int) -> None:
        layout = json.dumps([[name, list(value.shape)] for name, value in self.parameters.items()])
        said = [str(len(self.parameters)), hashlib.sha256(layout.encode()).hexdigest()]
        store.set(f"layout {self.rank}", " ".join(said))
        others = range(1, size) if self.rank == 0 else [0]
        store.wait([f"layout {rank}" for rank in others], MEETING)
        for rank in others:
            theirs = store.get(f"layout {rank}").decode().split()
            if theirs != said:
                trained, held = (said[0], theirs[0]) if self.rank == 0 else (theirs[0], said[0])
                raise ValueError(
                    f"the learner trains {trained} parameters, sampler {max(rank, self.rank) - 1} has {held}, not all of the same names "
                    "and shapes; model.path and model.lora must be the same everywhere"
                )

    @torch.no_grad()
    def send(self, version: int) -> int:
        """Give the present weights to all receivers, which have to call `receive`; returns `version`."""
        if self.rank != 0:
            raise ValueError(f"rank 0 sends, this is rank {self.rank}")
        self._broadcast(torch.tensor([version], dtype=torch.int64, device=self._device()))
        for bucket in buckets(self.parameters.values()):
            self._broadcast(torch.cat([value.detach().flatten().float() for value in bucket]))
        return version

    @torch.no_grad()
    def receive(self) -> int:
        """Take over what the sender gives; returns its version. Waits for it."""
        if self.rank == 0:
            raise ValueError("rank 0 sends and cannot receive")
        version = self._broadcast(torch.zeros(1, dtype=torch.int64, device=self._device()))
        for bucket in buckets(self.parameters.values()):
            sizes = [value.numel() for value in bucket]
            flat = self._broadcast(torch.empty(sum(sizes), device=self._device()))
            for value, part in zip(bucket, flat.split(sizes), strict=True):
                value.copy_(part.view_as(value))
        return int(version)

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device if self.backend == "nccl" else torch.device("cpu")

    def _broadcast(self, value: torch.Tensor) -> torch.Tensor:
        moved = value.to(self._device())
        self.group.broadcast(moved, 0).wait()
        return moved
