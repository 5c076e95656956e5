"""`backend: trl`: the same policy, sampler, rewards, advantages and loss in one process, driven by TRL's `GRPOTrainer`.

For those who want transformers' trainer around the update. The project's own loop does more: several processes, exact resume, the
other algorithms. A run directory is the same: config.json, metrics.jsonl, samples/, adapter/, evaluations, summary.json, report.html.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from world_r1 import comparison, evaluation, metrics
from world_r1.advantage import group_relative
from world_r1.algorithms.flow_grpo import FlowGRPO
from world_r1.config import Config
from world_r1.ema import EMA
from world_r1.policy import Policy, load_policy
from world_r1.prompts import PromptStream, phase_at
from world_r1.record import Record
from world_r1.reward import Rubric
from world_r1.rollout import sample_group
from world_r1.types import Clip, Group, Rollout, Verdict
from world_r1.update import learning_rate, mean_of, stack

Seed = tuple[int, int, int, int]


def train_with_trl(config: Config) -> Path:
    """Run a configuration through TRL, from the base evaluation to the report; returns the run directory.

    A spent `max_minutes` ends training early and still evaluates; Ctrl-C writes the adapter and passes on. Raises ValueError for a
    configuration that this backend cannot run (another algorithm than flow_grpo, reward pools, a step's videos no multiple of the
    micro-batch, several processes) and `TooManyFailures` if the rewards fail.
    """
    if config.algorithm.name != "flow_grpo":
        raise ValueError(f"backend trl runs flow_grpo only, got algorithm.name={config.algorithm.name}; use backend ray")
    if config.rewards.pools:
        raise ValueError("backend trl scores in its own process; unset rewards.pools, or use backend ray")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("backend trl is a single process; for several GPUs use backend ray, or start it without torchrun")
    if config.cluster.learners > 1:
        raise ValueError(f"backend trl is a single process, got cluster.learners={config.cluster.learners}; use backend ray")
    stream = PromptStream.of(config)
    evaluation.heldout_prompts(config)
    with Record(config) as record:
        job = Job(config, stream, record)
        before = job.evaluate("eval_before", None)
        anchors = evaluation.reference(job.policy, config, config.directory / "reference") if config.evaluation.reference else None
        try:
            job.train()
        finally:
            job.export()
        after = job.evaluate("eval_after", job.average)
        settings = config.evaluation
        record.summary(comparison.compare(before, after, reference=anchors, draws=settings.bootstrap, seed=settings.seed))
        from world_r1 import report

        record.text(f"report: {report.write_report(config.directory)}")
    return config.directory


class Job:
    """One run: policy, rubric, average and the record, around TRL's trainer."""

    def __init__(self, config: Config, stream: PromptStream, record: Record) -> None:
        torch.set_num_threads(config.cluster.threads)
        self.config = config
        self.stream = stream
        self.record = record
        self.policy: Policy = load_policy(config)
        self.rubric = Rubric(config.rewards)
        self.algorithm = FlowGRPO(config)
        lora = config.model.lora
        self.average = EMA(self.policy.named_parameters(), config.model.ema_decay, lora.keep if lora else None)
        self.deadline = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
        self.rollouts: list[Rollout] = []
        self.clips: dict[str, Clip] = {}
        self.verdicts: list[Verdict] = []
        self.row: metrics.Row = {}
        #: Metrics of the optimizer steps since the last row, and the rate of the last.
        self.taken: list[dict[str, float]] = []
        self.rate = 0.0
        self.begin = 0.0

    def train(self) -> None:
        """All optimizer steps, or those that fit into `max_minutes`."""
        if self.config.steps:
            self.record.status("training")
            self.trainer().train()

    def trainer(self) -> Any:
        """TRL's trainer around this job (imports trl)."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from datasets import Dataset
        from transformers import PrinterCallback

        # It prints the whole row of every missing score; the record counts them.
        logging.getLogger("trl.trainer.grpo_trainer").setLevel(logging.ERROR)

        from world_r1 import trl_trainer

        config = self.config
        rows = [(s, g, prompt.text) for s in range(config.steps) for g, prompt in enumerate(self.stream.at(s))]
        columns = {name: [row[i] for row in rows] for i, name in enumerate(("step", "group", "prompt"))}
        settings = config.optimizer
        parameters = list(self.policy.named_parameters().values())
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: learning_rate(n, settings) / settings.learning_rate)
        trainer = trl_trainer.FlowGRPOTrainer(
            model=trl_trainer.FlowModel(self.policy),
            reward_funcs=[self.total],
            args=trl_trainer.arguments(config, str(config.directory / "trl")),
            train_dataset=Dataset.from_dict(columns),
            processing_class=trl_trainer.tokenizer(),
            optimizers=(optimizer, ramp),
            policy=self.policy,
            algorithm=self.algorithm,
            collect=self.collect,
            seeds=lambda: [rollout.seed for rollout in self.rollouts],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(trl_trainer.StepCallback(self._before, lambda: self._after(trainer.taken()), self._logged))
        return trainer

    def collect(self, trainer: Any, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A loop step's videos, sampled, judged through TRL's reward call and compared; the columns that the trainer trains on."""
        self.begin = time.perf_counter()
        step, size = int(rows[0]["step"]), self.config.prompts.group_size
        prompts = self.stream.at(step)
        sampled = [sample_group(self.policy, self.config, prompt, step, g, version=step) for g, prompt in enumerate(prompts)]
        self.rollouts = [rollout for group in sampled for rollout in group.rollouts]
        clips = [clip for group in sampled for clip in group.clips]
        drawn = time.perf_counter()
        self.clips = {clip.id: clip for clip in clips}
        trainer._calculate_rewards(rows, [row["prompt"] for row in rows], list(self.clips), [[]] * len(clips))
        groups = [
            Group(prompt, tuple(r.id for r in group.rollouts), tuple(self.verdicts[g * size : (g + 1) * size]))
            for g, (prompt, group) in enumerate(zip(prompts, sampled, strict=True))
        ]
        self._refuse_failures(step, groups)
        weights = {entry.key: entry.weight for entry in self.config.rewards.rewards}
        advantages = group_relative(groups, weights, self.config.algorithm.advantage)
        seconds = {"rollout": drawn - self.begin, "reward": time.perf_counter() - drawn}
        self.row = metrics.step_row(phase_at(step, self.config.phases), groups, advantages.metrics, {}, seconds)
        self._videos(step + 1, clips[:size], groups[0])
        return self._columns([advantages.values[rollout.id] for rollout in self.rollouts])

    def total(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """TRL's reward function: the rubric's totals of clips, which are named by id (TRL prints completions); keeps the verdicts."""
        self.verdicts = self.rubric.judge([self.clips[name] for name in completions])
        return [verdict.total for verdict in self.verdicts]

    def _columns(self, advantages: Sequence[float | None]) -> dict[str, torch.Tensor]:
        values = torch.tensor([float("nan") if value is None else value for value in advantages], dtype=torch.float32)
        batch = stack(self.policy, self.config, self.rollouts, values)
        columns = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        return columns | {"index": torch.arange(len(values), device=batch.x0.device)}

    def _refuse_failures(self, step: int, groups: Sequence[Group]) -> None:
        rate = metrics.failure_rate(groups)
        if rate > self.config.rewards.max_failure_rate:
            from world_r1.loop import TooManyFailures

            raise TooManyFailures(
                f"step {step}: {rate:.0%} of the videos have no score, rewards.max_failure_rate="
                f"{self.config.rewards.max_failure_rate:g} ({metrics.reasons(groups)}); mend the rewards and start again"
            )

    def _videos(self, step: int, clips: Sequence[Clip], group: Group) -> None:
        if self.record.wants_videos(step):
            totals = [verdict.total for verdict in group.verdicts]
            self.record.videos(step, clips, ["no score" if total is None else f"reward {total:.3f}" for total in totals])

    def _before(self, optimizer: torch.optim.Optimizer) -> None:
        """A step whose videos all lack an advantage changes nothing, not even by weight decay."""
        self.rate = float(optimizer.param_groups[0]["lr"])
        if not self.row["videos_trained"]:
            for parameter in self.policy.named_parameters().values():
                parameter.grad = None

    def _after(self, taken: dict[str, float]) -> bool:
        """After an optimizer step with its mean metrics: KL weight, average; true if the time is spent."""
        if taken:
            taken = {**taken, "lr": self.rate, **self.algorithm.after_update(self.policy, taken)}
            self.average.update()
        self.taken.append(taken)
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _logged(self, updates: int, logs: dict[str, Any]) -> None:
        """TRL's gradient norm completes an update; the row is written after the last update of a loop step."""
        if "grad_norm" not in logs:
            return
        if self.taken[-1]:
            self.taken[-1]["grad_norm"] = float(logs["grad_norm"])
        step, rest = divmod(updates, self.config.algorithm.updates)
        if rest == 0:
            total = time.perf_counter() - self.begin
            spent = float(self.row["time/rollout"]) + float(self.row["time/reward"])
            learned = mean_of([(1.0, taken) for taken in self.taken])
            self.record.step(step, {**self.row, **learned, "time/update": total - spent, "time/total": total})
            self.taken = []
            self._evaluate_midway(step)

    def _evaluate_midway(self, step: int) -> None:
        every = self.config.evaluation.every
        if every and step % every == 0 and step < self.config.steps:
            self.evaluate(f"eval_{step:06d}", self.average)

    def evaluate(self, folder: str, average: EMA | None) -> Any:
        """Held-out evaluation of the present or the averaged weights."""
        state = None if average is None else {name: value.cpu().numpy() for name, value in average.weights().items()}
        progress: Callable[[int, int], None] = lambda n, total: self.record.status(f"{folder}: {n}/{total} clips")  # noqa: E731
        return evaluation.evaluate(self.policy, self.config, state, self.config.directory / folder, progress=progress)

    def export(self) -> None:
        """Write the averaged adapter."""
        with self.average.applied():
            self.policy.save(str(self.config.directory / "adapter"))
