"""Speed and memory switches on a transformer and an autoencoder: compilation by block, selective checkpointing, memory layout."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from world_r1.policies.sparse import SparseAttention

log = logging.getLogger(__name__)

#: The compiler of `compile_blocks`.
COMPILER = "inductor"
#: Share of the memory left that activations may take, the rest being for the optimizer step, fragmentation and peaks within a block.
USABLE = 0.8


def compile_blocks(blocks: Sequence[nn.Module], sparse: SparseAttention | None = None, hooked: bool = False) -> None:
    """torch.compile every block in place. They share their code, so that one compilation serves all (and one more without adapters).

    It also serves every batch size: a step whose videos do not all have a score would otherwise wait for a program of its own.
    Sparse attention itself stays as it is: a compiled block runs up to it and goes on after it, and every batch size is a program
    of its own (what attention returns is new to the compiler, so that a mark on the block's input does not reach it).
    `hooked` blocks have hooks and attention that stay outside of their program as well.
    """
    if sparse is not None:
        _compile_around(blocks, sparse)
        return
    for block in blocks:
        if hooked:
            block.forward = torch.compile(block.forward, dynamic=False, backend=COMPILER)
            continue
        block.compile(dynamic=False, backend=COMPILER)
        block._compiled_call_impl = functools.partial(_any_batch, block._compiled_call_impl)


def _any_batch(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a compiled block after telling the compiler that the size of the batch, unless it is 1, will not stay."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() >= 3 and value.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    return run(*args, **kwargs)


def _compile_around(blocks: Sequence[Any], sparse: SparseAttention) -> None:
    """A layer's number that the compiler sees would make every layer a program of its own, and it gives up after eight.

    So a hook, which runs outside the program, notes the number, and attention, which is outside too, reads it.
    """
    attend, running = sparse.handle.attend, [0]

    def attend_here(call: Any, _: int, *qkv: torch.Tensor) -> torch.Tensor:
        return attend(call, running[0], *qkv)

    sparse.handle.attend = torch.compiler.disable(attend_here)  # type: ignore[method-assign]
    for layer, block in enumerate(blocks):
        block.attn1.processor.layer = 0
        block.register_forward_pre_hook(functools.partial(_note, running, layer))
        block.forward = torch.compile(block.forward, dynamic=False, backend=COMPILER)


def _note(running: list[int], layer: int, *_: Any) -> None:
    running[0] = layer


def channels_last(module: nn.Module) -> nn.Module:
    """Convolution weights in channels-last layout, 2-D and 3-D each in their own."""
    from world_r1.policies import wan_vae

    return wan_vae.channels_last(module)


def checkpoint_blocks(
    transformer: Any, blocks: Sequence[nn.Module], share: float | str, agree: Callable[[int, torch.device], int] | None = None
) -> None:
    """Recompute the activations of a share of the blocks in the backward pass; "auto" decides at the first forward that needs gradients.

    `agree` turns one process's number of blocks into that of all which run a forward together.
    """
    if share == 1.0:
        transformer.enable_gradient_checkpointing()
        return
    chosen = Chosen(blocks, share, agree=agree)
    transformer.enable_gradient_checkpointing(chosen)


class Chosen:
    """Runs a block with or without checkpointing. The last blocks are kept: their activations are used first in the backward pass."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        share: float | str,
        memory: Callable[[], int] | None = None,
        agree: Callable[[int, torch.device], int] | None = None,
    ) -> None:
        self.names = {id(block): index for index, block in enumerate(blocks)}
        self.count = len(blocks)
        #: How many blocks, from the first, are checkpointed; None: not decided yet.
        self.checkpointed = None if share == "auto" else round(float(share) * self.count)
        self.memory = memory
        self.agree = agree
        #: What "auto" saw: bytes that one block keeps, and bytes that were left.
        self.seen: tuple[int, int] | None = None

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        index = self.names[id(block)]
        if self.checkpointed is None and (index > 0 or self.count == 1):  # the first block's inputs may carry none
            self._decide(block, args)
        if self.checkpointed is None or index < self.checkpointed:
            return checkpoint(block.__call__, *args, use_reentrant=False)
        return block(*args)

    def _decide(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Measure what one block keeps for its backward pass; checkpoint as many blocks as do not fit, in this and every later pass."""
        each = kept_bytes(block, args)
        device = next(value.device for value in args if isinstance(value, torch.Tensor))
        left = self.memory() if self.memory is not None else free_bytes(device)
        fit = int(USABLE * left // max(each, 1))
        self.checkpointed = max(0, self.count - fit)
        if self.agree is not None:
            self.checkpointed = self.agree(self.checkpointed, device)
        self.seen = (each, left)
        log.info(
            "checkpointing %d of %d blocks: one keeps %.2f GiB, %.1f GiB are left",
            self.checkpointed,
            self.count,
            each / 2**30,
            left / 2**30,
        )


def kept_bytes(block: nn.Module, args: tuple[Any, ...]) -> int:
    """Bytes that autograd keeps of one forward of a block beyond its inputs and weights, each storage counted once."""
    known = {value.untyped_storage().data_ptr() for value in block.parameters()}
    known |= {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(value)
        return value

    inputs = [value.detach().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value for value in args]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        block(*inputs)
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is left: on a GPU what the driver has and the allocator holds unused; on a CPU what the system can give."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _available()


@functools.cache
def _page() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return _page() * os.sysconf("SC_AVPHYS_PAGES")
