"""The Triton kernels against the float64 reference, outputs and gradients: in the interpreter on the CPU, see tests/gpu for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import library

pytest.importorskip("triton")

from world_r1_kernels.pyramid_attention import (
    Plan,
    PyramidConfig,
    api,
    make_plan,
    pyramid_attention,
    pyramid_attention_varlen,
    reference,
    tuning,
)
from world_r1_kernels.pyramid_attention import operator as ops

pytestmark = pytest.mark.skipif(not ops.interpreted(), reason="needs TRITON_INTERPRET=1, set where no GPU is")

BLOCK = 32
SMALL_FORWARD = {"rows": 32, "tile": 16, "pooled_tile": 16}
SMALL_BACKWARD = tuning.BackwardSettings(
    q_rows=32, q_tile=16, q_rest_tile=16, k_rows=16, k_tile=16, pooled_tile=16, rest_tile=16, splits=3, tma=False
)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)


def use(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    """Small tiles, so that short sequences still take several steps of every loop."""
    forward = tuning.ForwardSettings(**{**SMALL_FORWARD, "tma": False, **settings})  # type: ignore[arg-type]
    monkeypatch.setattr(ops, "forward_settings", lambda *_: forward)
    backward = replace(SMALL_BACKWARD, tma=bool(settings.get("tma", False)), q_late=bool(settings.get("late", False)))
    monkeypatch.setattr(ops, "backward_settings", lambda *_: backward)


def random_plan(
    n_q: int, n_k: int, *, batch: int = 1, heads: int = 1, rest: int = BLOCK, sizes: tuple[int, ...] = (1,), has_rest: bool = True,
    everywhere: bool = False, correction: str = "isotropic", causal: bool = False, lengths: list[int] | None = None,
) -> Plan:  # fmt: skip
    """Every legal level with the same chance, dropped blocks among them."""
    generator = torch.Generator().manual_seed(n_q + n_k)
    choices = torch.tensor([0, *sizes, *([rest] if has_rest else [])], dtype=torch.uint8)
    nq, nk = -(-n_q // BLOCK), -(-n_k // BLOCK)
    levels = choices[torch.randint(len(choices), (batch, heads, nq, nk), generator=generator)]
    if causal:
        levels = torch.tril(levels)
        levels[..., range(nq), range(nq)] = 1
    true = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    return Plan(levels, n_q, n_k, BLOCK, rest, sizes, has_rest, everywhere, correction, causal, true).check()


def inputs(plan: Plan, kv_heads: int = 1, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    batch, heads = plan.levels.shape[:2]
    shapes = ((heads, plan.q_length), (kv_heads, plan.k_length), (kv_heads, plan.k_length))
    return [torch.randn(batch, *shape, width, generator=generator) for shape in shapes]


def compare(plan: Plan, kv_heads: int = 1, layout: str = "BHND", tolerance: float = 3e-6, width: int = 16) -> None:
    """Output, log-sum-exp and all gradients, those through the log-sum-exp included."""
    q, k, v = inputs(plan, kv_heads, width)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = reference.attention(*exact, plan)
    seen = torch.isfinite(lse)
    grad_out, grad_lse = torch.randn_like(out), torch.where(seen, torch.randn_like(lse), 0)
    total = (out * grad_out).sum() + (lse.masked_fill(~seen, 0) * grad_lse).sum()
    if total.requires_grad:  # not where the plan sees nothing at all: then every gradient is zero
        total.backward()
    expected = [torch.zeros_like(x) if x.grad is None else x.grad for x in exact]

    def turn(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous() if layout == "BNHD" else x

    ours = [turn(x).requires_grad_() for x in (q, k, v)]
    got, got_lse = pyramid_attention(*ours, plan, layout=layout, return_lse=True, backend="triton")
    grads = torch.autograd.grad([got, got_lse], ours, [turn(grad_out.float()), grad_lse.float()])
    assert torch.equal(torch.isfinite(got_lse), seen)
    pairs = [("out", turn(got), out), ("lse", got_lse[seen], lse[seen])]
    pairs += [(f"d{name}", turn(grad), right) for name, grad, right in zip("qkv", grads, expected, strict=True)]
    for name, value, target in pairs:
        if target.numel() == 0:  # the log-sum-exp of a plan that sees nothing
            continue
        error = (value.double() - target).abs().max() / target.abs().max().clamp(min=1e-9)
        assert error < tolerance, f"{name}: {float(error):.2e}"


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (1, 4), (1, 8), (1, 2, 4, 8)])
@pytest.mark.parametrize("rest", [16, 32])
def test_every_level(sizes: tuple[int, ...], rest: int) -> None:
    compare(random_plan(75, 83, sizes=sizes, rest=rest))


@pytest.mark.parametrize("length", [31, 32, 33, 64, 97])
def test_lengths_that_divide_nothing(length: int) -> None:
    compare(random_plan(length, length, sizes=(1, 4), rest=16, heads=1))


@pytest.mark.parametrize("correction", ["none", "isotropic"])
@pytest.mark.parametrize("width", [16, 64])
def test_corrections_and_widths(correction: str, width: int) -> None:
    compare(random_plan(70, 70, sizes=(1, 8), correction=correction, heads=1), width=width)


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 8)])
def test_causal(sizes: tuple[int, ...]) -> None:
    compare(random_plan(100, 100, causal=True, sizes=sizes, rest=16))


def test_dropped_blocks_and_empty_rows() -> None:
    plan = random_plan(75, 83, has_rest=False, sizes=(1, 2))
    plan.levels[:, :, 1] = 0
    compare(plan)


def test_global_tokens_seen_everywhere() -> None:
    compare(random_plan(75, 83, rest=16, everywhere=True, correction="none"))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads(kv_heads: int) -> None:
    compare(random_plan(50, 50, heads=4, sizes=(1, 8)), kv_heads=kv_heads)


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_of_different_length(causal: bool) -> None:
    compare(random_plan(90, 90, batch=3, heads=1, lengths=[90, 33, 64], causal=causal, sizes=(1, 4), rest=16))


def test_the_other_layout() -> None:
    compare(random_plan(75, 83, sizes=(1, 4)), layout="BNHD")


@pytest.mark.parametrize(
    "settings",
    [
        {"tma": True},
        {"split": True},
        {"tma": True, "split": True, "late": True},
        {"rows": 16, "tile": 32},
        {"late": True},
        {"late": True, "tma": True},
    ],
)
def test_every_way_to_run_the_forward(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, **settings)
    compare(random_plan(75, 83, sizes=(1, 2, 4, 8), rest=16))
    compare(random_plan(75, 83, sizes=(1,)), layout="BNHD")


def test_the_shipped_block() -> None:
    """Blocks of 128 with the tiles of the device."""
    plan = Plan(torch.tensor([[[[1, 128, 4], [8, 1, 1]]]], dtype=torch.uint8), 200, 300, 128, 128)
    forward, backward = tuning.ForwardSettings(tma=True), tuning.BackwardSettings()
    patch = pytest.MonkeyPatch()
    with patch.context() as inner:
        inner.setattr(ops, "forward_settings", lambda *_: forward)
        inner.setattr(ops, "backward_settings", lambda *_: backward)
        compare(plan)


def test_bitwise_repeatable_and_clean_of_old_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same bits, with every buffer that the launches allocate full of NaN the second time."""
    plan = random_plan(75, 83, sizes=(1, 2, 4, 8), rest=16, batch=2, lengths=None)
    q, k, v = (x.requires_grad_() for x in inputs(plan))

    def run() -> list[torch.Tensor]:
        out, lse = pyramid_attention(q, k, v, plan, return_lse=True, backend="triton")
        return [out, lse, *torch.autograd.grad([out, lse], [q, k, v], [out.detach().cos(), lse.detach().nan_to_num(0, 0, 0)])]

    first = run()
    empty, empty_like = torch.empty, torch.empty_like
    poison = lambda x: x.fill_(float("nan")) if x.is_floating_point() else x  # noqa: E731
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: poison(empty(*a, **kw)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **kw: poison(empty_like(*a, **kw)))
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **kw: poison(new_empty(*a, **kw)))
    for before, after in zip(first, run(), strict=True):
        assert torch.equal(before, after)


def test_a_plan_is_drawn_and_replayed() -> None:
    q, k, v = inputs(random_plan(150, 150, heads=2), kv_heads=2)
    config = PyramidConfig(density=0.5, block=BLOCK)
    drawn = pyramid_attention(q, k, v, config, backend="triton")
    replayed = pyramid_attention(q, k, v, make_plan(q, k, config), backend="triton")
    assert torch.equal(drawn, replayed)


def test_packed_sequences() -> None:
    cu = torch.tensor([0, 40, 41, 97])
    q, k, v = (torch.randn(97, heads, 16) for heads in (2, 1, 1))
    config = PyramidConfig(density=0.6, block=BLOCK, causal=True)
    packed = pyramid_attention_varlen(q, k, v, cu, config, backend="triton")
    for start, end in zip(cu.tolist(), cu.tolist()[1:], strict=False):
        one = [x[None, start:end] for x in (q, k, v)]
        torch.testing.assert_close(packed[start:end], pyramid_attention(*one, config, layout="BNHD", backend="reference")[0])
    with pytest.raises(ValueError, match="rise from 0"):
        pyramid_attention_varlen(q, k, v, torch.tensor([0, 50]), config)


@pytest.mark.parametrize("layout", [False, True])
def test_registered_as_torch_wants_it(layout: bool) -> None:
    plan = random_plan(40, 40, heads=2)
    q, k, v = ((x.transpose(1, 2).contiguous() if layout else x).requires_grad_() for x in inputs(plan))
    settings = (plan.block, plan.rest, list(plan.sizes), plan.has_rest, plan.everywhere, plan.correction, plan.causal)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    library.opcheck(ops._attend, (q, k, v, plan.levels, None, 0.25, layout, *settings), test_utils=checks)


def test_bad_input_is_refused() -> None:
    plan = random_plan(40, 40, heads=1)
    q, k, v = inputs(plan)
    cases = [
        ("head widths", [x[..., :12].contiguous() for x in (q, k, v)], {}),
        ("one dtype", [q.half(), k, v], {}),
        ("computes torch.bfloat16 wrongly", [x.bfloat16() for x in (q, k, v)], {}),
        ("plan was made for", [q[:, :, :39], k, v], {}),
        ("belong together", [q, k[..., :8], v], {}),
        ("layout", [q, k, v], {"layout": "BDHN"}),
        ("backend is one of", [q, k, v], {"backend": "cuda"}),
        ("positive", [q, k, v], {"scale": 0.0}),
    ]
    for complaint, tensors, options in cases:
        with pytest.raises(ValueError, match=complaint):
            pyramid_attention(*tensors, plan, **{"backend": "triton", **options})
    with pytest.raises(ValueError, match="blocks of 64 or 128 tokens, got 8"):
        pyramid_attention(q, k, v, make_plan(q, k, PyramidConfig(block=8)), backend="triton")


def test_falling_back_is_never_silent() -> None:
    plan = random_plan(40, 40, heads=1)
    q, k, v = inputs(plan)
    api._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="reference in plain PyTorch"):
        pyramid_attention(q, k, v, plan)
    with pytest.raises(ValueError, match="training has to ask for it"):
        pyramid_attention(q.requires_grad_(), k, v, plan)
