"""Configuration: one YAML file -> one typed tree. Every default of the project stands here, in
`config_algorithm`, `config_rewards` and `config_speed`, and nowhere else.

`load(path, overrides)` reads the file, applies `key=value` overrides (dotted keys, YAML values) and validates. An unknown key is
an error that names the nearest known one. This module imports pydantic and yaml only, so that `--help` stays fast.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from world_r1.config_algorithm import AdvantageConfig as AdvantageConfig
from world_r1.config_algorithm import AlgorithmConfig, FlowConfig, OptimizerConfig
from world_r1.config_algorithm import KLConfig as KLConfig
from world_r1.config_algorithm import WindowConfig as WindowConfig
from world_r1.config_rewards import RewardConfig as RewardConfig
from world_r1.config_rewards import RewardsConfig
from world_r1.config_speed import SpeedConfig, Strict

Section = TypeVar("Section", bound=Strict)


class LoraConfig(Strict):
    """Low-rank adapter (Hu et al., 2021) on the transformer's linear layers."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    #: Singular directions of every layer's update that evaluation and the saved adapter keep, the strongest first; null keeps all. What a
    #: reward teaches is in the first, what the others hold is mostly the random walk of noisy gradients (`world_r1.lowrank`).
    keep: int | None = Field(None, ge=1)


class ModelConfig(Strict):
    """Which video model is trained, and how it is held in memory."""

    #: Policy class: a name in `world_r1.policies`, or "module:Class".
    policy: str = "wan"
    #: Hub id, local path in diffusers layout, or "blockworld" for the embedded model.
    path: str = "blockworld"
    #: "auto" is bf16 on a GPU and fp32 on a CPU.
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: float32 matrix products of a GPU in TF32: several times faster, 10 bits of mantissa. Not for ratios that are compared with 1.
    tf32: bool = False
    #: Adapter; null trains all transformer weights.
    lora: LoraConfig | None = LoraConfig()
    #: Adapter directory to start from (safetensors with metadata).
    init_lora: str | None = None
    #: Classifier-free guidance scale g, v = v_u + g (v_c - v_u); 1 means no second forward.
    guidance_scale: float = Field(1.0, ge=1.0)
    negative_prompt: str = ""
    #: Guidance scale of the second, low-noise transformer of Wan2.2 A14B; null uses `guidance_scale`.
    guidance_scale_2: float | None = Field(None, ge=1.0)
    gradient_checkpointing: bool = False
    #: The architecture of `path` with random weights, for benchmarks and dry runs: "full" (or true) size, or "tiny". No file is read.
    random_weights: Literal["full", "tiny"] | None = None
    #: Decay of the exponential moving average of the trained weights; 0 switches it off.
    ema_decay: float = Field(0.95, ge=0.0, lt=1.0)
    max_text_length: int = Field(512, ge=1)

    @field_validator("random_weights", mode="before")
    @classmethod
    def _true_is_full(cls, value: Any) -> Any:
        return {True: "full", False: None}.get(value, value) if isinstance(value, bool) else value


class VideoConfig(Strict):
    """Size of what is generated."""

    frames: int = Field(17, ge=1)
    height: int = Field(96, ge=16)
    width: int = Field(160, ge=16)
    fps: float = Field(8.0, gt=0)


class NoiseConfig(Strict):
    """Camera-warped initial noise (Go-with-the-Flow, arXiv 2501.08331; World-R1 section 1.4)."""

    #: False samples plain white noise for every prompt.
    warp: bool = True
    #: a in ((1-a) warped + a fresh) / sqrt((1-a)^2 + a^2); 0 keeps the full correlation between frames, 1 is white noise.
    degradation: float = Field(0.35, ge=0.0, le=1.0)
    #: s in ((1-s) base + s warped) / sqrt((1-s)^2 + s^2), base drawn independently; 1 uses the warped noise as it is.
    strength: float = Field(1.0, ge=0.0, le=1.0)
    #: Side of the fine grid inside one latent cell; sub-cell motion is resolved to 1/fine of a cell.
    fine: int = Field(8, ge=1, le=32)
    #: The videos of one group share x_T, so that advantages come from the stochastic steps alone.
    shared_in_group: bool = False


class CameraConfig(Strict):
    """Amplitudes of the camera commands."""

    #: "blockworld" (pretraining's amplitudes) or "world_r1" (the public release's).
    preset: Literal["blockworld", "world_r1"] = "blockworld"


class PromptsConfig(Strict):
    """Prompt sets: a text or JSONL file, "blockworld:SPLIT:COUNT" (generated), or "world:SPLIT:COUNT" (shipped; train, dynamic, test)."""

    train: str = "blockworld:train:2000"
    dynamic: str | None = "blockworld:dynamic:400"
    test: str = "blockworld:test:64"
    #: Prompts per step and videos per prompt; neither depends on how many processes there are.
    groups: int = Field(2, ge=1)
    group_size: int = Field(8, ge=2)


class PhasesConfig(Strict):
    """Periodic decoupled training (World-R1 section 3), in optimizer-update steps of the loop."""

    rigid_steps: int = Field(100, ge=1)
    dynamic_steps: int = Field(0, ge=0)


class ClusterConfig(Strict):
    """Where the actors run."""

    #: "colocated": sampler and learner are one process that shares the weights. "disaggregated": separate processes.
    mode: Literal["colocated", "disaggregated"] = "colocated"
    #: Ray address to join; null starts a local cluster that ends with the run.
    address: str | None = None
    samplers: int = Field(1, ge=1)
    #: Processes that learn together (data parallel): each holds all weights and takes its share of a step's micro-batches, gradients are
    #: added up. Colocated, each samples its share of the groups too, and `samplers` says nothing. The result does not depend on the number.
    learners: int = Field(1, ge=1)
    judges: int = Field(1, ge=1)
    #: CPUs and GPUs that Ray reserves per actor; the policy's GPUs apply when the model is on a GPU.
    cpus_per_policy: float = Field(1.0, ge=0)
    gpus_per_policy: float = Field(1.0, ge=0)
    cpus_per_judge: float = Field(1.0, ge=0)
    gpus_per_judge: float = Field(0.0, ge=0)
    #: Torch threads in a policy process. Two busy processes with two threads each on two cores were 30 times slower.
    threads: int = Field(1, ge=1)
    #: How samplers of their own get the learner's weights: through Ray's object store, or by broadcast from device to device (NCCL where
    #: every policy has a GPU, else gloo). "auto": adapters through the store, all weights of a model by broadcast.
    weights: Literal["auto", "object_store", "broadcast"] = "auto"
    #: Videos per forward while sampling; null is `optimizer.micro_batch`, so that log-probs are taken again in batches of the same
    #: shape as they were drawn in (another shape may change their last bits).
    sample_batch: int | None = Field(None, ge=1)
    #: Start-up patience in seconds; progress is reported while waiting.
    timeout: float = Field(180.0, gt=0)
    #: Loop with rollouts one step ahead of the learner; 0 is the synchronous loop.
    max_staleness: int = Field(0, ge=0, le=1)


class EvaluationConfig(Strict):
    """Held-out evaluation before and after (paired noise); models and geometry that no reward uses."""

    prompts: int = Field(48, ge=2)
    #: Denoising steps (ODE); null uses `flow.steps`.
    steps: int | None = Field(None, ge=1)
    #: Also evaluate during training every so many steps; 0 only before and after.
    every: int = Field(0, ge=0)
    seed: int = 90_001
    bootstrap: int = Field(2000, ge=100)
    #: Videos kept as MP4 and contact sheet.
    keep: int = Field(8, ge=0)
    #: Processes that measure clips; 1 measures in the evaluating process. The numbers do not depend on it.
    workers: int = Field(1, ge=1)
    #: Also judge with the training rewards, as a reference column.
    rubric: bool = True
    #: Also measure real renders and their VAE round trips once (blockworld only): how far the samples are from what is possible.
    reference: bool = True
    #: Folder `reference` of an earlier run on the same prompts: its figures are taken over instead of measured again.
    reference_from: str | None = None


class RecordConfig(Strict):
    """What is written beside metrics.jsonl."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "world-r1"
    #: Save one group's videos every so many steps; 0 never.
    video_every: int = Field(10, ge=0)
    #: Rich progress display; "auto" shows it on a terminal and prints one line a step elsewhere.
    progress: Literal["auto", "always", "never"] = "auto"


class Config(Strict):
    """The whole run."""

    name: str = "run"
    #: Parent of the run directory `<runs>/<name>/`.
    runs: str = "runs"
    seed: int = 0
    #: Loop steps (one rollout batch each).
    steps: int = Field(100, ge=0)
    #: "ray": the project's own loop. "trl": a single-job GRPOTrainer subclass.
    backend: Literal["ray", "trl"] = "ray"
    #: Checkpoint every so many steps, and at the end; `keep` newest are kept.
    save_every: int = Field(10, ge=1)
    keep: int = Field(2, ge=1)
    #: Wall-clock budget in minutes after which the run saves and evaluates; null means none.
    max_minutes: float | None = Field(None, gt=0)
    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    camera: CameraConfig = CameraConfig()
    noise: NoiseConfig = NoiseConfig()
    flow: FlowConfig = FlowConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rewards: RewardsConfig = RewardsConfig()
    prompts: PromptsConfig = PromptsConfig()
    phases: PhasesConfig = PhasesConfig()
    cluster: ClusterConfig = ClusterConfig()
    speed: SpeedConfig = SpeedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    record: RecordConfig = RecordConfig()

    @model_validator(mode="after")
    def _window_fits_the_schedule(self) -> Config:
        window, steps = self.flow.window, self.flow.steps
        candidates = min(window.within or steps - 1, steps - 1) if window.position == "random" else steps
        if window.size > candidates:
            raise ValueError(
                f"flow.window.size={window.size} does not fit into {candidates} candidate steps (flow.steps={steps}); "
                "lower window.size or raise flow.steps"
            )
        if self.speed.latents == "bf16" and self.algorithm.ratio_norm:
            raise ValueError(
                "algorithm.ratio_norm replays the exact noise of a step, which speed.latents=bf16 rounds; use one of them"
            )
        return self

    @model_validator(mode="after")
    def _learners_that_share_a_base_keep_step(self) -> Config:
        """With FSDP every pass of the transformer is one of all learners together."""
        cluster, learners, attention = self.cluster, self.cluster.learners, self.speed.attention
        if not self.speed.fsdp:
            return self
        drawn = self.algorithm.name != "flow_grpo" or self.flow.window.position == "random"
        levels_mix = drawn and (self.optimizer.micro_batch > 1 or self.algorithm.together)
        for wrong, remedy in (
            (learners < 2, "cluster.learners of 2 or more"),
            (cluster.mode != "colocated", "cluster.mode=colocated"),
            (cluster.max_staleness > 0, "cluster.max_staleness=0"),
            (self.model.lora is None and self.model.init_lora is None, "an adapter (model.lora)"),
            (self.prompts.groups % learners != 0, f"prompts.groups that cluster.learners={learners} divides"),
            (self.evaluation.prompts % learners != 0, f"evaluation.prompts that cluster.learners={learners} divides"),
            (self.speed.checkpoint == "auto", "a number for speed.checkpoint (1.0 recomputes every block)"),
            (
                attention.kind != "dense" and attention.dense_above is not None and levels_mix,
                "speed.attention.dense_above=null, or optimizer.micro_batch=1 and algorithm.together=false (a batch on both sides of "
                "dense_above is two passes)",
            ),
        ):
            if wrong:
                raise ValueError(f"speed.fsdp makes the learners run the base together, and needs {remedy}")
        return self

    @model_validator(mode="after")
    def _learners_that_share_tokens_keep_step(self) -> Config:
        """With sequence parallelism every pass of the transformer is one of a band of learners together."""
        shared, learners = self.speed.sequence_parallel, self.cluster.learners
        for wrong, remedy in (
            (learners % shared != 0, f"cluster.learners in multiples of {shared}, got {learners}"),
            (self.cluster.mode != "colocated", "cluster.mode=colocated"),
            (self.speed.fsdp, "speed.fsdp=false"),
        ):
            if wrong and shared > 1:
                raise ValueError(f"speed.sequence_parallel={shared} lets learners share a video's tokens, and needs {remedy}")
        return self

    @property
    def directory(self) -> Path:
        """`runs/<name>`, where everything of this run is written."""
        return Path(self.runs) / self.name


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what is wrong, what was got and what to do."""


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and `key=value` overrides into a validated `Config`.

    Raises `ConfigError` for a missing or malformed file, an unknown key (with the nearest known one), or a bad value.
    """
    return parse(read_tree(Path(path), overrides), source=str(path))


def read_tree(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """A YAML file with overrides as a nested mapping, not validated yet; raises `ConfigError` as `load` does."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no configuration file at {path}{hint}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(tree).__name__}")
    for text in overrides:
        override(tree, text)
    return tree


def parse(tree: dict[str, Any], source: str = "configuration") -> Config:
    """Validate a nested mapping; raises `ConfigError` with one line per problem."""
    return parse_as(Config, tree, source)


def parse_as(root: type[Section], tree: dict[str, Any], source: str) -> Section:
    """`parse` for another root than `Config`."""
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(problem, root) for problem in error.errors())
        raise ConfigError(f"{source}: {problems}") from error


def json_schema() -> str:
    """JSON schema of the configuration, for editors (`# yaml-language-server: $schema=...`)."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def override(tree: dict[str, Any], text: str) -> None:
    """Set one `key=value` (dotted key, YAML value) in a nested mapping. Raises `ConfigError` for one that cannot be read."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override is written key=value, for example flow.steps=8; got {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of override {text!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(parsed, str) and _is_number(parsed):
        parsed = float(parsed)  # YAML 1.1 reads 1e-4 as a string
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {text!r}: {parent} is {child!r}, which has no keys")
        node = child
    node[leaf] = parsed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _explain(problem: Any, root: type[BaseModel]) -> str:
    """One pydantic problem in one line, with the nearest key for a misspelt one."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{where or 'configuration'}: {message} (got {problem['input']!r})" if where else message
    known = _keys_at(problem["loc"][:-1], root)
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
    return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known keys are {', '.join(known)}")


def _keys_at(location: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    section: type[BaseModel] = root
    for part in location:
        if part in section.model_fields:  # else an index of a list, or a key of a mapping of sections
            section = _section(section.model_fields[str(part)].annotation)
    return list(section.model_fields)


def _section(annotation: Any) -> type[BaseModel]:
    """The section inside an annotation such as `Section | None`, `tuple[Section, ...]` or `dict[str, Section]`."""
    options = [annotation]
    while not (isinstance(options[0], type) and issubclass(options[0], BaseModel)):
        options = [*options[1:], *get_args(options[0])]
    return options[0]
