"""Sequence parallelism (Ulysses, arXiv 2309.14509): several processes run one video's forward, each with a part of its tokens.

Between the blocks every process holds N / P of the tokens; within self-attention it holds all of them and H / P of the heads, which one
exchange brings about and another takes back. Cross-attention and all else in a block work token by token. A count of tokens that P does not
divide is filled up with tokens that attention never sees and the end drops.

Gradients. Every process computes the loss from the whole velocity, and what lies before the first and behind the last block once more for
itself. The function that is differentiated is the mean of the P equal losses: the velocity's gradient is divided by P, and a gather's is
the sum over the processes, which is P times its own, all of them being equal. So a parameter's gradients are parts that add up, inside of
the blocks and outside: `Team.sum_gradients` gives those of one process, of the time embedding too, which is met on both ways.

Not diffusers' context parallelism (read in 0.42): its Ulysses refuses odd counts, its version for any count has no backward pass, and both
act only where a processor calls its dispatcher, which pyramid attention does not. Its hooks return plain tuples, so that a call's plans are
lost; its gather leaves parameters behind the blocks with whole gradients in every process, and the time embedding with the sum of a whole
one and a part; and it needs an accelerator, so that no CPU could test it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from world_r1_kernels.pyramid_attention.plan import Plan

    from world_r1.policies.sparse import SparseAttention


@dataclass(frozen=True)
class Band:
    """The processes that share a video's tokens, as one of them sees it: calls that all of them make.

    Example: `Band(rank=1, size=2, first=2, group=<group of ranks 2 and 3>, staged=False)`; `staged` goes through the CPU's memory.
    """

    rank: int
    size: int
    #: Rank of the first process among all learners.
    first: int
    group: Any
    staged: bool

    def exchange(self, parts: torch.Tensor) -> torch.Tensor:
        """[P, ...]: part i goes to process i; what came from the processes, in their order."""
        sent = self._sent(parts)
        found = torch.empty_like(sent)
        dist.all_to_all_single(found, sent, group=self.group)
        return self._received(found, parts)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """[P, ...] the parts of all processes, in their order."""
        sent = self._sent(part)
        found = torch.empty((self.size, *sent.shape), dtype=sent.dtype, device=sent.device)
        dist.all_gather(list(found.unbind(0)), sent, group=self.group)
        return self._received(found, part)

    def first_of(self, value: torch.Tensor) -> torch.Tensor:
        """The first process's value."""
        sent = self._sent(value).clone()
        dist.broadcast(sent, self.first, group=self.group)
        return self._received(sent, value)

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of the processes' numbers."""
        found = torch.tensor([number], device="cpu" if self.staged else device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def _sent(self, value: torch.Tensor) -> torch.Tensor:
        """As bytes, which every backend knows."""
        value = value.detach().contiguous().view(torch.uint8)
        return value.cpu() if self.staged else value

    def _received(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return value.to(like.device).view(like.dtype)


class _Exchange(torch.autograd.Function):
    """Every part goes somewhere else, so that gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, band: Band) -> torch.Tensor:
        ctx.band = band
        return band.exchange(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.band.exchange(gradients[0]), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, band: Band) -> torch.Tensor:
        ctx.band = band
        return band.gather(part)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0][ctx.band.rank] * ctx.band.size, None


class _First(torch.autograd.Function):
    """The first process's value, so that a last bit in which two processes differ does not make them sample two videos."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, band: Band) -> torch.Tensor:
        return band.first_of(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class _Mean(torch.autograd.Function):
    """Equal values of all processes as their mean."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, band: Band) -> torch.Tensor:
        ctx.size = band.size
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] / ctx.size, None


def own_tokens(x: torch.Tensor, band: Band) -> torch.Tensor:
    """This process's part [B, ceil(N / P), ...] of x [B, N, ...], filled up with zeros."""
    each = -(-x.shape[1] // band.size)
    filled = _filled(x, each * band.size)
    return filled[:, band.rank * each : (band.rank + 1) * each].contiguous()


def all_tokens(x: torch.Tensor, count: int, band: Band) -> torch.Tensor:
    """[B, count, ...] from every process's part [B, n, ...]: inverse of `own_tokens`."""
    return _Gather.apply(x, band).transpose(0, 1).flatten(1, 2)[:, :count]


def split_heads(tensors: tuple[torch.Tensor, ...], count: int, band: Band) -> tuple[torch.Tensor, ...]:
    """Each of the tensors [B, n, H, D], own tokens of all heads, as [B, count, H / P, D], all tokens of own heads; one exchange for all."""
    parts = [x.unflatten(2, (band.size, -1)).permute(2, 0, 1, 3, 4) for x in tensors]
    found = _Exchange.apply(torch.stack(parts, 1), band)
    return found.permute(1, 2, 0, 3, 4, 5).flatten(2, 3)[:, :, :count].unbind(0)


def join_heads(x: torch.Tensor, band: Band) -> torch.Tensor:
    """[B, n, H, D], own tokens of all heads, from x [B, count, H / P, D], all tokens of own heads."""
    each = -(-x.shape[1] // band.size)
    parts = _filled(x, each * band.size).unflatten(1, (band.size, each)).transpose(0, 1)
    return _Exchange.apply(parts.contiguous(), band).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _filled(x: torch.Tensor, count: int) -> torch.Tensor:
    return pad(x, (*(0, 0) * (x.ndim - 2), 0, count - x.shape[1])) if count > x.shape[1] else x


class Sharing:
    """Whether the transformers of a policy share their tokens: with the processes of `band`, or with none."""

    band: Band | None = None

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of the processes' numbers, for a decision that all of them have to make alike."""
        return number if self.band is None else self.band.largest(number, device)


class _Tables(tuple):
    """Rotary tables (cos, sin) of own tokens; an argument of every block, so that a checkpointed run finds its own count again."""

    tokens: int
    #: The call of pyramid attention, whose own tables these were.
    call: Any


class SequenceParallel:
    """Hooks and attention of one Wan transformer that share its tokens when `sharing` has a band, and change nothing before.

    To be installed after pyramid attention, whose order of tokens comes first, and before compilation.
    """

    def __init__(self, transformer: Any, sharing: Sharing, size: int, sparse: SparseAttention | None = None) -> None:
        """ValueError for another kind of transformer, and for heads that `size` processes cannot share."""
        name = type(transformer).__name__
        if "Wan" not in name or not all(hasattr(transformer, part) for part in ("blocks", "rope", "patch_embedding")):
            raise ValueError(f"speed.sequence_parallel knows Wan's transformer, got {name}; set speed.sequence_parallel to 1")
        heads = int(transformer.config.num_attention_heads)
        if heads % size:
            fit = [n for n in range(2, heads + 1) if heads % n == 0]
            raise ValueError(f"speed.sequence_parallel={size} does not divide the model's {heads} heads; {fit} do")
        self.sharing = sharing
        blocks = transformer.blocks
        transformer.register_forward_pre_hook(self._same_input)
        transformer.rope.register_forward_hook(self._begin)
        blocks[0].register_forward_pre_hook(self._split)
        blocks[-1].register_forward_hook(self._join, prepend=True)  # before pyramid attention takes back its order
        transformer.register_forward_hook(self._mean)
        if sparse is not None:
            sparse.shared = self
            self._attend_sparse = sparse.handle.attend
            sparse.handle.attend = self._attend_call  # type: ignore[method-assign,assignment]
        else:
            processor = Processor(self)
            for block in blocks:
                block.attn1.set_processor(processor)

    def attend(
        self, inner: Callable[..., torch.Tensor], count: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Self-attention `inner` for q, k, v [B, n, H, D] of own tokens, `count` in all; its output [B, n, H, D]."""
        band = self.sharing.band
        if band is None:
            return inner(q, k, v)
        return join_heads(inner(*split_heads((q, k, v), count, band)), band)

    def whole(self, plans: Mapping[int, Plan]) -> dict[int, Plan]:
        """{layer: plan} of all heads from each process's own: what is stored fits any number of processes."""
        band = self.sharing.band
        if band is None:
            return dict(plans)
        found = {layer: band.gather(plan.levels).transpose(0, 1).flatten(1, 2) for layer, plan in sorted(plans.items())}
        return {layer: replace(plans[layer], levels=levels) for layer, levels in found.items()}

    def own(self, plans: Mapping[int, Plan]) -> dict[int, Plan]:
        """{layer: plan} of own heads from that of all."""
        band = self.sharing.band
        if band is None:
            return dict(plans)
        return {
            layer: replace(plan, levels=plan.levels.chunk(band.size, 1)[band.rank].contiguous()) for layer, plan in plans.items()
        }

    def _attend_call(self, call: Any, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.attend(lambda *heads: self._attend_sparse(call, layer, *heads), len(call.order.forward), q, k, v)

    # Hooks, in the order in which they run.

    def _same_input(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        band = self.sharing.band
        return args if band is None else (_First.apply(args[0], band), *args[1:])

    def _begin(self, _: Any, args: Any, tables: tuple[torch.Tensor, torch.Tensor]) -> _Tables:
        band = self.sharing.band
        found = _Tables(tables if band is None else (own_tokens(table, band) for table in tables))
        found.tokens, found.call = tables[0].shape[1], getattr(tables, "call", None)
        return found

    def _split(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        band = self.sharing.band
        if band is None:
            return args
        if args[2].ndim == 4:
            raise ValueError("speed.sequence_parallel takes one timestep a video, got one a token")
        return (own_tokens(args[0], band), *args[1:])

    def _join(self, _: Any, args: tuple[Any, ...], hidden: torch.Tensor) -> torch.Tensor:
        band = self.sharing.band
        return hidden if band is None else all_tokens(hidden, args[3].tokens, band)

    def _mean(self, _: Any, args: Any, output: Any) -> Any:
        band = self.sharing.band
        if band is None:
            return output
        if not isinstance(output, tuple):
            raise ValueError("speed.sequence_parallel takes the transformer's output as a tuple: call it with return_dict=False")
        return (_Mean.apply(output[0], band), *output[1:])


class Processor:
    """Dense self-attention of any layer. Compiled blocks run up to the attention and go on after it."""

    def __init__(self, owner: SequenceParallel) -> None:
        self.attend = torch.compiler.disable(lambda *given: owner.attend(_dense, *given))

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        from world_r1_kernels.pyramid_attention.video import project, rotate

        if encoder_hidden_states is not None or attention_mask is not None or rotary_emb is None:
            raise ValueError("this replaces Wan's self-attention, which has rotary tables, no mask and no other tokens")
        q, k, v = project(attn, hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        cos, sin = rotary_emb[0][..., ::2], rotary_emb[1][..., ::2]
        out = self.attend(rotary_emb.tokens, rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v), v)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
