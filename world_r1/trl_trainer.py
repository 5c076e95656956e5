"""Flow-GRPO inside TRL's `GRPOTrainer`: denoising steps play the tokens. Imports trl; `world_r1.trl_backend` imports this module late.

TRL drives: data order, reuse of a generation, accumulation, its clipped surrogate, optimizer and callbacks. Ours: sampling, rewards,
advantages, log-probs and the closed-form KL (TRL's own is an estimate). Three private methods are overridden, which is why the
supported versions of trl are pinned and this backend has a test of its own that compares it with the project's trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from world_r1 import loss
from world_r1.algorithms.base import Batch, floats
from world_r1.algorithms.flow_grpo import FlowGRPO
from world_r1.config import Config
from world_r1.policy import Policy

Row = dict[str, Any]


class FlowModelConfig(PretrainedConfig):
    """TRL wants a model with a configuration; this one says nothing."""

    model_type = "world_r1_flow"


class FlowModel(PreTrainedModel):
    """What TRL trains: the policy's trained parameters, by reference, and nothing else."""

    config_class = FlowModelConfig

    def __init__(self, policy: Policy) -> None:
        super().__init__(FlowModelConfig())
        self.trained = torch.nn.ParameterDict({name.replace(".", "/"): p for name, p in policy.named_parameters().items()})
        self.generation_config = GenerationConfig()
        self.all_tied_weights_keys: dict[str, str] = {}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: this module only shows the policy's parameters to the Trainer; log-probs come from the policy itself."""
        raise RuntimeError("this module holds parameters; take velocities from the policy")


def tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one; the policy has its own."""
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def arguments(config: Config, directory: str) -> GRPOConfig:
    """TRL's arguments for a configuration; ValueError if the step's videos are no multiple of `optimizer.micro_batch`."""
    videos, micro = config.prompts.groups * config.prompts.group_size, config.optimizer.micro_batch
    if videos % micro:
        raise ValueError(
            f"backend trl splits a step's videos into equal micro-batches: prompts.groups x prompts.group_size = {videos} must be a "
            f"multiple of optimizer.micro_batch={micro}"
        )
    algorithm = config.algorithm
    return GRPOConfig(
        output_dir=directory,
        seed=config.seed,
        use_cpu=config.model.device == "cpu",
        bf16=False,  # the policy holds its own precision
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=videos // micro,
        num_generations=config.prompts.group_size,
        num_iterations=algorithm.updates,
        max_steps=config.steps * algorithm.updates,
        max_completion_length=config.flow.window.size,
        shuffle_dataset=False,  # the prompt stream is in order already
        loss_type="grpo",
        beta=0.0,  # the closed-form KL is added below
        epsilon=algorithm.clip_low,
        epsilon_high=algorithm.clip_high,
        max_grad_norm=config.optimizer.grad_clip,
        gradient_checkpointing=False,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class FlowGRPOTrainer(GRPOTrainer):
    """`collect(rows)` gives a generation batch: the columns of `Batch` as tensors [N, ...], with `advantages` (NaN: none) and
    `index`, the position in `seeds()`. `measured(metrics)` gets the means over every optimizer step."""

    def __init__(
        self,
        *args: Any,
        policy: Policy,
        algorithm: FlowGRPO,
        collect: Callable[[FlowGRPOTrainer, list[Row]], dict[str, torch.Tensor]],
        seeds: Callable[[], list[tuple[int, int, int, int]]],
        **kwargs: Any,
    ) -> None:
        self.policy = policy
        self.algorithm = algorithm
        self.collect = collect
        self.seeds = seeds
        self._terms: list[tuple[int, dict[str, float]]] = []
        self._kl: torch.Tensor | None = None
        self._inputs: dict[str, torch.Tensor] = {}
        super().__init__(*args, **kwargs)

    def taken(self) -> dict[str, float]:
        """Means of our metrics since the last call, over the videos that were trained on."""
        total = sum(count for count, _ in self._terms)
        names = self._terms[0][1] if self._terms else {}
        means = {name: sum(count * metrics[name] for count, metrics in self._terms) / total for name in names}
        self._terms = []
        return means

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, torch.Tensor]:
        columns = self.collect(self, inputs)
        advantages, k = columns.pop("advantages"), columns["steps"].shape[1]
        valid = torch.isfinite(advantages)
        count = len(advantages)
        # TRL averages over all videos; the mean over those with an advantage is this share of it.
        share = count / max(1, int(valid.sum()))
        zeros = torch.zeros(count, k, dtype=torch.long, device=advantages.device)
        return {
            **columns,
            "advantages": torch.where(valid, advantages * share, 0.0),
            "weight": valid.float() * share,
            "old_per_token_logps": columns["log_probs"],
            "prompt_ids": zeros[:, :1],
            "prompt_mask": zeros[:, :1],
            "completion_ids": zeros,
            "completion_mask": valid.long()[:, None].expand(count, k).contiguous(),
        }

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        self._inputs = inputs
        value = super()._compute_loss(model, inputs)
        return value if self._kl is None else value + self._kl

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        """[B, k] log-probs of the window steps; leaves the weighted KL in `_kl`. Videos without an advantage cost nothing."""
        inputs, self._kl = self._inputs, None
        rows = inputs["weight"].nonzero().squeeze(1)
        log_probs = inputs["log_probs"].clone()
        if not len(rows):  # a loss without a graph cannot be differentiated
            return log_probs + 0.0 * next(iter(self.policy.named_parameters().values())).sum(), torch.zeros_like(log_probs), None
        batch = self._batch(inputs, rows)
        noise = self.algorithm.replayed(batch)
        ratios, divergences = [], []
        for j in range(log_probs.shape[1]):
            log_ratio, kl = self.algorithm.terms(self.policy, batch, j, noise)
            surrogate = loss.clipped_surrogate(log_ratio.detach(), batch.advantages, self.epsilon_low, self.epsilon_high)
            metrics = {"policy_loss": surrogate.mean(), **self.algorithm.measured(log_ratio, kl, batch.x0[0].numel())}
            self._terms.append((len(rows), floats(metrics)))
            ratios.append(log_ratio)
            if kl is not None:
                divergences.append(kl)
        if divergences:
            weight = inputs["weight"][rows] / (len(log_probs) * self.current_gradient_accumulation_steps)
            self._kl = self.algorithm.beta.value * (torch.stack(divergences, 1).mean(1) * weight).sum()
        log_probs = log_probs.index_put((rows,), batch.log_probs + torch.stack(ratios, 1))
        return log_probs, torch.zeros_like(log_probs), None

    def _batch(self, inputs: dict[str, torch.Tensor], rows: torch.Tensor) -> Batch:
        seeds = self.seeds()
        names = ("steps", "latents", "next_latents", "log_probs", "x0", "condition")
        return Batch(
            **{name: inputs[name][rows] for name in names},
            advantages=inputs["advantages"][rows] / inputs["weight"][rows],
            seeds=tuple(seeds[i] for i in inputs["index"][rows].tolist()),
        )


class StepCallback(TrainerCallback):
    """Calls back around optimizer steps: `before(optimizer)`, `after() -> stop?`, `logged(steps taken, TRL's numbers)`."""

    def __init__(
        self, before: Callable[[Any], None], after: Callable[[], bool], logged: Callable[[int, dict[str, Any]], None]
    ) -> None:
        self.before, self.after, self.logged = before, after, logged

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are clipped; the optimizer has not stepped."""
        self.before(kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has stepped."""
        control.should_training_stop = self.after() or control.should_training_stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """TRL's own numbers of the step."""
        self.logged(state.global_step, logs or {})
