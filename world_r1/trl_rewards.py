"""Rewards in both directions between this project and TRL, whose reward functions are f(prompts=, completions=, **columns) -> list of
float or None.

Into this project, a TRL function is one entry of the configuration:

    rewards: {rewards: [{name: "world_r1.trl_rewards:TrlReward", label: steady, options: {function: "acme.rewards:steady"}}]}

Out of it, `as_trl(reward_or_rubric)` is a reward function for a TRL trainer. A completion is a clip's video, [T, H, W, 3] uint8. Neither
direction imports trl.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from world_r1.reward import Reward, Rubric
from world_r1.types import Clip, Kind, Prompt, Score, Trajectory, Verdict


class TrlReward(Reward):
    """A TRL reward function as a reward; its range is the function's own.

    The function is called with one video at a time and with what TRL itself passes: `prompts`, `completions`, `completion_ids` (empty),
    `trainer_state` (None), `log_extra` and `log_metric`, and the columns `id`, `kind`, `trajectory` (`types.Trajectory` or None) and
    `fps`. Metrics that it logs become parts of the score. It may be a coroutine function. None and NaN are a missing value, and so
    is an exception.
    """

    name: ClassVar[str] = "trl"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, function: str | Callable[..., Any]) -> None:
        """`function` is "module:function" (or the function). ValueError if there is no such function."""
        self.function = function if callable(function) else _import(function)

    def score(self, clip: Clip, evidence: Mapping[str, Any]) -> Score:
        """The function's value for one clip."""
        parts: dict[str, float] = {}
        values = self.function(
            prompts=[clip.prompt.text],
            completions=[evidence["frames"]],
            completion_ids=[[]],
            trainer_state=None,
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: parts.__setitem__(name, float(value)),
            id=[clip.prompt.id],
            kind=[clip.prompt.kind],
            trajectory=[clip.trajectory],
            fps=[clip.fps],
        )
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        if len(values) != 1:
            raise ValueError(f"a reward function returns one value per completion; got {len(values)} for 1")
        if values[0] is None or not np.isfinite(float(values[0])):
            return self.missing(f"the reward function returned {values[0]}")
        return self.ok(float(values[0]), **parts)


def reward_class(function: Callable[..., Any]) -> type[Reward]:
    """The reward class of a TRL function: what naming the function itself ("acme.rewards:steady") in a configuration leads to.

    Options of the configuration become keyword arguments of the function.
    """

    class FunctionReward(TrlReward):
        name = function.__name__

        def __init__(self, **options: Any) -> None:
            super().__init__(functools.partial(function, **options) if options else function)

    FunctionReward.__doc__ = inspect.getdoc(function)
    FunctionReward.__name__ = FunctionReward.__qualname__ = function.__name__
    FunctionReward.__module__ = function.__module__
    return FunctionReward


async def _awaited(value: Any) -> Any:
    return await value


def _import(path: str) -> Callable[..., Any]:
    module_name, colon, name = path.partition(":")
    if not colon or not name:
        raise ValueError(f'a TRL reward function is named "module:function", got {path!r}')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise ValueError(f"no module {module_name!r} for the reward function {path!r}; is it on PYTHONPATH?") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name!r}")
    return function


class TrlRubric:
    """A rubric, or one reward that needs no probe, as a TRL reward function: totals, None where a score is missing.

    Completions are videos or finished `Clip`s. For a video, the columns `kind`, `trajectory` and `fps` of the data set (each optional)
    say what the clip was asked for. `verdicts` keeps those of the last call. Example: `GRPOTrainer(reward_funcs=[as_trl(rubric)], ...)`
    """

    def __init__(self, judge: Callable[[Sequence[Clip]], list[Verdict]], name: str) -> None:
        self.judge = judge
        self.__name__ = name
        self.verdicts: list[Verdict] = []

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Total per completion; ValueError for a prompt that is neither text nor a conversation with text."""
        clips = [_clip(i, prompt, item, columns) for i, (prompt, item) in enumerate(zip(prompts, completions, strict=True))]
        self.verdicts = self.judge(clips)
        return [verdict.total for verdict in self.verdicts]


def as_trl(judge: Reward | Rubric) -> TrlRubric:
    """A TRL reward function; ValueError for a single reward that needs a probe (give the `Rubric` that has it)."""
    if isinstance(judge, Rubric):
        return TrlRubric(judge.judge, "rubric")
    if needs := [need for need in judge.needs if need != "frames"]:
        raise ValueError(
            f"reward {judge.name!r} needs the evidence {needs}; build a Rubric with its probes and give that to as_trl"
        )

    def one_by_one(clips: Sequence[Clip]) -> list[Verdict]:
        scores = [judge.score(clip, {"frames": clip.video}) for clip in clips]
        return [Verdict(clip.id, score.value, (score,)) for clip, score in zip(clips, scores, strict=True)]

    return TrlRubric(one_by_one, judge.name)


def _clip(index: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> Clip:
    if isinstance(completion, Clip):
        return completion
    video = np.asarray(completion)
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ValueError(f"a completion is a uint8 video [T, H, W, 3] or a Clip, got {video.dtype} {list(video.shape)}")
    kind = cast(Kind, _entry(columns, "kind", index, "rigid"))
    trajectory = cast("Trajectory | None", _entry(columns, "trajectory", index, None))
    name = str(_entry(columns, "id", index, index))
    return Clip(name, video, Prompt(name, _text(prompt), kind), trajectory, float(_entry(columns, "fps", index, 8.0)))


def _entry(columns: Mapping[str, Any], name: str, index: int, default: Any) -> Any:
    return columns[name][index] if name in columns else default


def _text(prompt: Any) -> str:
    """The text of a prompt: a string, or the last message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[-1], Mapping) and isinstance(prompt[-1].get("content"), str):
        return prompt[-1]["content"]
    raise ValueError(f"a prompt is a text or a conversation whose last message has text, got {prompt!r}")
