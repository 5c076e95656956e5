"""The pieces of a training step that `world-r1 bench step` times: velocities, with gradients and without, decoding, whole steps.

Every piece is written down as soon as it is timed, so that a run that is cut short keeps what it has. One policy is alive at a time, and
the pieces of equal settings are timed once.
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from world_r1.config import Config, parse

log = logging.getLogger(__name__)

#: Timed repetitions after one that warms up, and seconds after which no further one begins.
REPEATS, ENOUGH = 3, 2.5
PROMPT = "Camera orbit left. A red box on grass under a blue sky."
#: Switches that change no piece's cost but the optimizer step's, which is timed in both ways.
INDIFFERENT = ("latents", "fused_optimizer", "text_encoder")


class Bench:
    """Times pieces by their settings; `save` is called after each."""

    def __init__(self, save: Callable[[], None] = lambda: None) -> None:
        self.save = save
        #: Pieces of a transformer's settings, and of a decoder's, by `keys`; seconds a video, bytes, counts.
        self.timed: dict[str, dict[str, Any]] = {}
        #: Why settings could not be timed: what failed once is not tried again for every row.
        self.failed: dict[str, Exception] = {}
        self._policy: Any = None
        self._key = ""

    def pieces(self, config: Config, spare: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """All pieces of a configuration, timed now or before. `spare` says whether there is time for those that could be estimated."""
        key, decoder = keys(config)
        found = self.timed.setdefault(key, {})
        if "publish" not in found:
            if key in self.failed:
                raise self.failed[key]
            try:
                self._time_transformer(self.policy(config), config, found, spare)
            except Exception as error:
                self.failed[key] = error.with_traceback(None)  # which holds the memory of what was being computed
                raise
        if decoder not in self.timed:
            policy = self.policy(config)
            with _decoding_by(policy, config):
                self._time_decoder(policy, config, decoder)
        return {**found, **self.timed[decoder]}

    def policy(self, config: Config) -> Any:
        """The policy of these settings: the one that is alive, or a new one after that was put away."""
        from world_r1.policy import load_policy

        key, _ = keys(config)
        if self._key != key or self._policy is None:
            self.put_away()
            self._policy, self._key = load_policy(config), key
        return self._policy

    def put_away(self) -> None:
        """Free the policy, its compiled programs (which the compiler's cache gives back quickly) and the memory they hold."""
        import torch

        self._policy = None
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _put(self, into: dict[str, Any], **values: Any) -> None:
        into.update(values)
        self.save()

    def _time_transformer(self, policy: Any, config: Config, found: dict[str, Any], spare: Callable[[], bool]) -> None:
        import torch

        batch = config.optimizer.micro_batch
        x, sigma, condition = _inputs(policy, config)

        def rollout() -> None:
            with torch.no_grad():
                policy.velocity(x, sigma, condition)

        def reference() -> None:
            with torch.no_grad(), policy.reference():
                policy.velocity(x, sigma, condition)

        begin = _now(policy.device)
        plans = _plans(policy, x, sigma, condition)
        first = _now(policy.device) - begin

        def trained() -> None:
            with policy.replaying(plans) if plans else nullcontext():
                policy.velocity(x, sigma, condition).square().mean().backward()

        plain = config.speed.attention.kind == "dense" and not config.speed.compile
        with _peak(policy.device) as peak:
            if plain:
                self._put(found, **{"default forward": _default_forward(policy, x, sigma, condition)})
            seconds, second = _seconds(rollout, policy.device)
            self._put(found, rollout=seconds / batch, **{"first calls": first + second})
            seconds, third = _seconds(trained, policy.device)
            self._put(found, trained=seconds / batch, checkpointed=_checkpointed(policy))
        self._put(found, peak=peak.get("bytes"), **{"first calls": first + second + third})
        self._optimizer(policy, config, found)
        if spare():
            self._put(found, reference=_seconds(reference, policy.device)[0] / batch)
        if spare() and not plain:
            self._put(found, busy=_busy(trained, policy.device))
        _drop_gradients(policy)

    def _optimizer(self, policy: Any, config: Config, found: dict[str, Any]) -> None:
        from world_r1.update import Trainer

        for name, fused in (("optimizer", False), ("fused optimizer", True)):
            speed = {"speed": {"fused_optimizer": fused}}
            trainer = Trainer(parse(merged(config.model_dump(mode="json"), speed)), policy)
            before = {key: parameter.detach().clone() for key, parameter in trainer.parameters.items()}
            self._put(found, **{name: _seconds(partial(_optimize, trainer), policy.device)[0]})
            for key, parameter in trainer.parameters.items():
                parameter.data.copy_(before[key])
        self._put(found, publish=_seconds(policy.state, policy.device)[0])

    def _time_decoder(self, policy: Any, config: Config, decoder: str) -> None:
        x, _, _ = _inputs(policy, config)
        with _peak(policy.device) as peak:
            seconds, _ = _seconds(lambda: policy.decode(x[:1]), policy.device)
        self.timed[decoder] = {"decode": seconds, "decode peak": peak.get("bytes")}
        self.save()


def whole_step(policy: Any, config: Config) -> dict[str, Any]:
    """One step as in training: a group of two sampled and decoded by `sample_group`, learned from by `Trainer`; seconds a video."""
    import torch

    from world_r1.rollout import sample_group
    from world_r1.types import Prompt
    from world_r1.update import Trainer

    config = parse(merged(config.model_dump(mode="json"), {"prompts": {"groups": 1, "group_size": 2}}))
    trainer = Trainer(config, policy)
    before = {key: parameter.detach().clone() for key, parameter in trainer.parameters.items()}
    with _peak(policy.device) as peak, _decoding_by(policy, config):
        _warm(policy, config)
        marks = [_now(policy.device)]
        sampled = sample_group(policy, config, Prompt("bench", PROMPT), 0, 0, trainer.version)
        marks.append(_now(policy.device))
        metrics = trainer.update(sampled.rollouts, dict(zip((r.id for r in sampled.rollouts), (1.0, -1.0), strict=True)))
        marks.append(_now(policy.device))
        policy.state()
        marks.append(_now(policy.device))
    with torch.no_grad():
        for key, parameter in trainer.parameters.items():
            parameter.copy_(before[key])
    video = {name: (b - a) / 2 for name, a, b in zip(("rollout", "update", "publish"), marks, marks[1:], strict=False)}
    first = sampled.rollouts[0]
    return {
        "seconds per video": {**video, "decode": 0.0, "total": sum(video.values())},
        "ratio at the first update": metrics["ratio_mean"],
        "log ratio at the first update": abs(metrics["ratio_mean"] - 1.0),
        "checkpointed blocks": _checkpointed(policy),
        "peak GiB": peak["bytes"] / 2**30 if peak.get("bytes") else None,
        "stored MB a video": sum(a.nbytes for a in (first.latents, first.next_latents, first.x0)) / 1e6,
        "plans MB a video": sum(plan.packed.nbytes for plan in first.plans if plan is not None) / 1e6,
    }


def keys(config: Config) -> tuple[str, str]:
    """What the transformer's pieces and what the decoder's depend on."""
    speed = config.speed.model_dump(mode="json")
    decoder = {name: speed.pop(name) for name in list(speed) if name.startswith("vae_")}
    for name in INDIFFERENT:
        speed.pop(name)
    model = [config.model.path, config.model.guidance_scale, config.model.gradient_checkpointing]
    size = config.video.model_dump(mode="json")
    return json.dumps([*model, size, speed, config.optimizer.micro_batch]), json.dumps([config.model.path, size, decoder])


def merged(tree: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with the entries of another laid over it."""
    both = dict(tree)
    for key, value in more.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both


def _inputs(policy: Any, config: Config) -> tuple[Any, Any, Any]:
    """x_t, sigma and text of a micro-batch; sigma is below those where a policy may keep attention dense."""
    import torch

    batch = config.optimizer.micro_batch
    x = torch.randn(batch, *policy.latent_shape(config.video), generator=torch.Generator().manual_seed(0)).to(policy.device)
    return x, torch.full((batch,), 0.7, device=policy.device), policy.encode([PROMPT]).expand(batch, -1, -1)


def _plans(policy: Any, x: Any, sigma: Any, condition: Any) -> list[Any]:
    """Sparse-attention plans of the batch, which an update replays; empty where attention is dense."""
    import torch

    if policy.config.speed.attention.kind == "dense":
        return []
    with torch.no_grad(), policy.recording() as taken:
        policy.velocity(x, sigma, condition)
    return taken[0] if all(plan is not None for plan in taken[0]) else []


def _default_forward(policy: Any, x: Any, sigma: Any, condition: Any) -> float:
    """Seconds of one row through the transformer as diffusers' pipelines run it: without adapter and autocast."""
    import torch

    dtype = policy.dtype

    def forward() -> None:
        with torch.no_grad(), policy.reference():
            policy.transformer(x[:1].to(dtype), 1000.0 * sigma[:1], condition[:1].to(dtype), return_dict=False)

    return _seconds(forward, policy.device)[0]


def _warm(policy: Any, config: Config) -> None:
    """One velocity without gradients, one with: what is compiled at first use is no part of a step."""
    import torch

    x, sigma, condition = _inputs(policy, config)
    plans = _plans(policy, x, sigma, condition)
    with policy.replaying(plans) if plans else nullcontext(), torch.enable_grad():
        policy.velocity(x, sigma, condition).square().mean().backward()
    if config.algorithm.kl.beta > 0:
        with torch.no_grad(), policy.reference():
            policy.velocity(x, sigma, condition)
    _drop_gradients(policy)


def _drop_gradients(policy: Any) -> None:
    for parameter in policy.named_parameters().values():
        parameter.grad = None


@contextmanager
def _decoding_by(policy: Any, config: Config) -> Iterator[None]:
    """Inside, the policy decodes by the switches of `config`, with an autoencoder of its own if they hold it in another way."""
    before = policy.config
    policy.config = config
    if config.speed.vae_dtype != before.speed.vae_dtype or config.speed.vae_channels_last != before.speed.vae_channels_last:
        policy.__dict__.pop("vae", None)
    try:
        yield
    finally:
        policy.config = before
        policy.__dict__.pop("vae", None)


def _optimize(trainer: Any) -> None:
    import torch

    for parameter in trainer.parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(trainer.parameters.values(), 1.0)
    trainer.optimizer.step()
    trainer.average.update()


def _checkpointed(policy: Any) -> int | None:
    chosen = getattr(policy.transformer, "_gradient_checkpointing_func", None)
    if not getattr(policy.transformer, "gradient_checkpointing", False):
        return 0
    return getattr(chosen, "checkpointed", len(getattr(policy.transformer, policy.blocks)))


def _seconds(call: Callable[[], Any], device: Any) -> tuple[float, float]:
    """Median of up to `REPEATS` calls, and the first call before them."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= REPEATS and sum(times[1:]) < ENOUGH):
        begin = _now(device)
        call()
        times.append(_now(device) - begin)
    return statistics.median(times[1:]), times[0]


def _now(device: Any) -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def _busy(call: Callable[[], Any], device: Any) -> float | None:
    """Share of the time in which the GPU computed something, by the profiler; None without a GPU."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        begin = _now(device)
        call()
        wall = _now(device) - begin
    spans = sorted((e.time_range.start, e.time_range.end) for e in seen.events() if str(e.device_type).endswith("CUDA"))
    covered, end = 0.0, 0.0
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e6 / wall if spans else None


@contextmanager
def _peak(device: Any) -> Iterator[dict[str, int]]:
    """Fills {"bytes": most GPU memory that was allocated inside}; nothing without a GPU."""
    import torch

    seen: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield seen
    if device.type == "cuda":
        seen["bytes"] = torch.cuda.max_memory_allocated()
