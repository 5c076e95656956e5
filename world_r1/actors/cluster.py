"""The cluster: starts or joins Ray, places the actors, and offers the verbs of the loop.

Videos, latents and weights stay in the object store; what comes back to the driver are ids, verdicts and plain numbers. Nothing waits
without saying for what: start-up reports the resources that are registered, and gives up with a remedy.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from world_r1.actors.judge import Judges, first_line
from world_r1.actors.learners import ClusterError, Learners, shares
from world_r1.actors.publishing import Publishing
from world_r1.actors.sampler import Receipt, Sampler
from world_r1.config import Config
from world_r1.serving.attached import Attached
from world_r1.serving.client import PoolClient
from world_r1.serving.config import PoolConfig
from world_r1.serving.pool import start_worker
from world_r1.types import Group, Prompt, Verdict

log = logging.getLogger(__name__)

#: Settings of a cluster of our own: Ray would run its workers at niceness 15, where any other process of the machine starves them.
LOCAL = {"worker_niceness": 0}

#: Seconds between looks at the stop flag while waiting.
TICK = 0.25


class Interrupted(Exception):
    """The wait was given up because the run is to stop."""


@dataclass(frozen=True)
class Scored:
    """One step's groups with their verdicts, and references to what was sampled.

    Example: `Scored(step=3, version=3, groups=(Group(...), Group(...)), rollouts=(<ref>, <ref>), clips=(<ref>, <ref>), seconds={...})`
    """

    step: int
    version: int
    groups: tuple[Group, ...]
    #: Per group: reference to its list of `Rollout`, of `Clip`.
    rollouts: tuple[ray.ObjectRef, ...]
    clips: tuple[ray.ObjectRef, ...]
    #: "rollout": until the last group was sampled; "reward": from then until the last verdict (the rest of judging overlaps).
    seconds: dict[str, float]


class Pending:
    """A rollout under way."""

    def __init__(self, helping: Mapping[ray.ObjectRef, str] | None = None) -> None:
        #: Calls of learners, by name, that share the samplers' tokens: they end with the samplers' own, none of which is left out then.
        self.helping = helping or {}
        self.abandoned = threading.Event()
        self.future: Future[Scored] = Future()

    def abandon(self) -> None:
        """Leave it behind: the groups that are being sampled run to their end, those behind them never start."""
        self.abandoned.set()


class Cluster:
    """Actors of one run. Use as a context manager; `stop` (checked while waiting for rollouts) raises `Interrupted` when true; `say`
    gets a line now and then while start-up waits."""

    def __init__(self, config: Config, stop: Callable[[], bool] = lambda: False, say: Callable[[str], None] = log.info) -> None:
        self.config = config
        self.stop = stop
        self.say = say
        self.owned = not ray.is_initialized()
        self.judges: Judges | Attached = Judges(config.rewards, self._make_judge, config.cluster.timeout)
        self.samplers: list[Any] = []
        #: The first learner, which saves, publishes and leads evaluations, and all of them.
        self.learner: Any = None
        self.learners: Learners | None = None
        #: Two: the groups of one step go to the judges while the last verdicts of the step before are waited for.
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="rollout")
        self.started: list[Pending] = []
        #: Where samplers have weights of their own: how they get the learner's, and their answers to the last `publish`.
        self.publishing: Publishing | None = None
        self.loads: list[ray.ObjectRef] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # The verbs of the loop. Those that begin with "async" return at once.

    def async_rollout(self, step: int, prompts: Sequence[Prompt]) -> Pending:
        """Start sampling one group a prompt with the weights published last; every group goes to a judge once it is decoded."""
        start = time.perf_counter()
        calls: list[Sequence[ray.ObjectRef]] = [()] * len(prompts)
        helping: dict[ray.ObjectRef, str] = {}
        together = max(1, (self.config.cluster.sample_batch or self.config.optimizer.micro_batch) // self.config.prompts.group_size)
        for sampler, groups in shares(len(prompts), self.samplers, together):
            results = sampler.sample.options(num_returns=3 * len(groups)).remote([prompts[g] for g in groups], step, groups)
            for i, g in enumerate(groups):
                calls[g] = results[3 * i : 3 * i + 3]
            if self.learners is not None:
                helping |= self.learners.help_sampling(sampler, [prompts[g] for g in groups], step, groups)
        pending = Pending(helping)
        self.started = [other for other in self.started if not other.future.done()] + [pending]
        pending.future = self.threads.submit(self._collect, step, prompts, calls, self.loads, pending, start)
        return pending

    def wait(self, pending: Pending) -> Scored:
        """Result of a started rollout. Raises `Interrupted` if the run is to stop, and leaves the rollout behind."""
        while not pending.future.done():
            if self.stop():
                pending.abandon()
                raise Interrupted
            wait([pending.future], timeout=TICK)
        return pending.future.result()

    def rollout(self, step: int, prompts: Sequence[Prompt]) -> Scored:
        """`async_rollout`, waited for."""
        return self.wait(self.async_rollout(step, prompts))

    def update(self, scored: Scored, advantages: dict[str, float | None]) -> dict[str, float]:
        """One policy update; returns its metrics. It is never left half done."""
        assert self.learners is not None
        names = [group.rollouts for group in scored.groups]
        return self.learners.all("the policy update", "update", advantages, names, list(scored.rollouts))[0]

    def publish(self) -> None:
        """Give the learner's weights to the samplers; nothing to do where they share them."""
        if self.publishing is not None:
            self.loads = self.publishing.publish()

    def save(self, directory: Path, step: int) -> Path:
        """Checkpoint of the state after `step` steps."""
        return Path(self._call("saving", self.learner.save.remote(str(directory.resolve()), step)))

    def restore(self, path: Path) -> int:
        """Load a checkpoint into learners and samplers; returns its step."""
        assert self.learners is not None
        step = self.learners.all("restoring", "restore", str(path.resolve()))[0]
        self.publish()
        return int(step)

    def evaluate(self, directory: Path, what: str, progress: Callable[[int, int], None]) -> Any:
        """Held-out evaluation by learner and samplers; see `Learner.evaluate`. Raises `Interrupted` if the run is to stop."""
        assert self.learners is not None
        others = [sampler for sampler in self.samplers if sampler is not self.learner]
        for item in self.learners.evaluate(str(directory.resolve()), what, others):
            report = self._get("evaluating", item)
            if not isinstance(report, tuple):
                return report
            if self.stop():
                raise Interrupted
            progress(*report)
        raise ClusterError("the evaluation ended without a result")

    def export(self, directory: Path) -> Path:
        """Write the averaged adapter for inference."""
        return Path(self._call("exporting the adapter", self.learner.export.remote(str(directory.resolve()))))

    def clips(self, scored: Scored, group: int) -> list[Any]:
        """Videos of one group, fetched here (for the record)."""
        return self._call("fetching videos", scored.clips[group])

    # Start-up and shutdown.

    def _start(self) -> None:
        begin = time.monotonic()
        if self.owned:
            self._connect()
        demand = self._demand()
        self._await_resources(demand, begin)
        self._place()
        self._await_actors(begin)
        self.publish()

    def _connect(self) -> None:
        address = self._address()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        common: dict[str, Any] = {
            "include_dashboard": False,
            "logging_level": logging.ERROR,
            "log_to_driver": log.isEnabledFor(logging.DEBUG),
        }
        try:
            if address:
                del common["include_dashboard"]
                ray.init(address=address, **common)
            else:
                # Reservations are logical: one core may carry two busy actors, slowly. GPUs are never invented.
                cpus = max(os.cpu_count() or 1, int(self._cpus() + 0.999))
                ray.init(address="local", num_cpus=cpus, _system_config=LOCAL, **common)  # not a node that `ray start` left here
        except Exception as error:  # a bare Exception is what Ray raises when its own processes are slow to start
            where = f"join the Ray cluster at {address}" if address else "start a local Ray cluster"
            raise ClusterError(f"cannot {where}: {first_line(error)}") from error

    def _address(self) -> str | None:
        """The cluster to join: the one that is told, or, for running pools, whichever is there."""
        return self.config.cluster.address or ("auto" if self.config.rewards.pools else None)

    def _judges(self) -> int:
        """Judges of this run's own."""
        return 0 if self.config.rewards.pools else self.config.cluster.judges

    def _policies(self) -> int:
        """Processes that hold a policy."""
        settings = self.config.cluster
        return settings.learners + (0 if settings.mode == "colocated" else settings.samplers)

    def _cpus(self) -> float:
        settings = self.config.cluster
        return self._policies() * settings.cpus_per_policy + self._judges() * settings.cpus_per_judge

    def _policy_gpus(self) -> float:
        """GPUs per policy process: none on a CPU; with device "auto" whatever the cluster can give all of them, or none."""
        device, each = self.config.model.device, self.config.cluster.gpus_per_policy
        if device == "cpu":
            return 0.0
        if device == "auto" and ray.cluster_resources().get("GPU", 0.0) < self._policies() * each:
            return 0.0
        return each

    def _demand(self) -> dict[str, float]:
        settings = self.config.cluster
        gpus = self._policies() * self._policy_gpus() + self._judges() * settings.gpus_per_judge
        return {"CPU": self._cpus(), **({"GPU": gpus} if gpus > 0 else {})}

    def _await_resources(self, demand: dict[str, float], begin: float) -> None:
        """Until every resource is registered; with an own local cluster nothing can still arrive, so lacking ones are an error at once."""
        while True:
            have = ray.cluster_resources()
            lacking = [name for name, amount in demand.items() if have.get(name, 0.0) < amount]
            report = ", ".join(f"{have.get(name, 0.0):g} of {amount:g} {name}" for name, amount in demand.items())
            if not lacking:
                log.info("cluster: %s registered", report)
                return
            if (self.owned and not self._address()) or time.monotonic() - begin > self.config.cluster.timeout:
                raise ClusterError(
                    f"this run needs more than the cluster has ({report} registered); lower cluster.learners, cluster.samplers, "
                    "cluster.judges or the cpus_per/gpus_per settings, set model.device=cpu, or add nodes"
                )
            self.say(f"waiting for resources: {report} registered")
            time.sleep(2.0)

    def _place(self) -> None:
        settings = self.config.cluster
        options = {"num_cpus": settings.cpus_per_policy, "num_gpus": self._policy_gpus()}
        self.learners = Learners(self.config, options, self._get, TICK, self._check_published)
        self.learner = self.learners.actors[0]
        if settings.mode == "colocated":
            self.samplers = self.learners.leaders
        else:
            self.samplers = [ray.remote(Sampler).options(**options).remote(self.config) for _ in range(settings.samplers)]
            self.publishing = Publishing(self.config, self.learner, self.samplers, self._call, self.learners.fetch)
        if self.config.rewards.pools:
            self.judges = Attached(self.config.rewards, [PoolClient(name) for name in self.config.rewards.pools])
        self.judges.crew = [self._make_judge() for _ in range(self._judges())]

    def _make_judge(self) -> Any:
        settings = self.config.cluster
        share = {"cpus": settings.cpus_per_judge, "gpus": settings.gpus_per_judge, "threads": settings.threads}
        return start_worker(PoolConfig(rewards=self.config.rewards, **share))

    def _await_actors(self, begin: float) -> None:
        """Until every actor has loaded what it needs; an actor's own error (an unreadable model, an unknown reward) is raised as it is."""
        assert self.learners is not None
        policies = self.learners.names
        if self.learner is not self.samplers[0]:
            policies |= {f"sampler {i}": sampler for i, sampler in enumerate(self.samplers)}
        actors = policies | {f"judge {i}": judge for i, judge in enumerate(self.judges.crew)}
        pending = {actor.setup.remote(): name for name, actor in actors.items()}
        said = time.monotonic()
        while pending:
            ready, _ = ray.wait(list(pending), timeout=1.0)
            for call in ready:
                name = pending.pop(call)
                log.info("%s is ready: %s", name, self._call(f"starting {name}", call))
            if pending and time.monotonic() - begin > self.config.cluster.timeout:
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                raise ClusterError(
                    f"not ready after {self.config.cluster.timeout:g} s: {', '.join(pending.values())} (free in the cluster: {free}); "
                    "raise cluster.timeout if the model is large, or ask for fewer actors"
                )
            if pending and time.monotonic() - said > 5.0:
                said = time.monotonic()
                self.say(f"waiting for {', '.join(pending.values())} to load")
        self.learners.join(self.publishing.hosts() if self.publishing is not None else ())
        if self.publishing is not None:
            self.publishing.connect()
        if isinstance(self.judges, Judges):
            self.judges.employ(self.judges.crew)

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for pending in self.started:
            pending.abandon()
        if ray.is_initialized():
            self.judges.close()
            learners = self.learners.actors if self.learners is not None else []
            for actor in {id(a): a for a in [*learners, *self.samplers]}.values():
                ray.kill(actor)
        for part in (self.learners, self.publishing):
            if part is not None:
                part.close()
        self.threads.shutdown(wait=True, cancel_futures=True)
        if self.owned and ray.is_initialized():
            ray.shutdown()

    def _collect(
        self,
        step: int,
        prompts: Sequence[Prompt],
        calls: Sequence[Sequence[ray.ObjectRef]],
        loads: Sequence[ray.ObjectRef],
        waited: Pending,
        start: float,
    ) -> Scored:
        """Runs beside the driver's thread: hands every sampled group to the judges at once, in whatever order groups arrive."""
        assert self.learners is not None
        published = list(loads)
        while published:  # whichever fails first: the others may wait for it
            (call, *_), published = ray.wait(published)
            self.learners.fetch("publishing weights", call, published, {})
        pending = {call[0]: g for g, call in enumerate(calls)} | dict.fromkeys(waited.helping, -1)
        receipts: dict[int, Receipt] = {}
        judging: dict[int, list[Future[list[Verdict]]]] = {}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=TICK)
            if waited.abandoned.is_set():
                for call in pending if not waited.helping else ():
                    ray.cancel(call)
                raise CancelledError
            for call in ready:
                g = pending.pop(call)
                receipt = self.learners.fetch("sampling", call, list(pending) if waited.helping else [], waited.helping)
                if g < 0:
                    continue
                receipts[g] = receipt
                judging[g] = self.judges.score(calls[g][2], receipts[g].ids, prompts[g], receipts[g].hashes)
        sampled = time.perf_counter()
        futures = [future for group in judging.values() for future in group]
        while wait(futures, timeout=TICK).not_done:
            if waited.abandoned.is_set():
                raise CancelledError
        return Scored(
            step=step,
            version=min(receipt.version for receipt in receipts.values()),
            groups=tuple(
                Group(prompt, receipts[g].ids, tuple(verdict for future in judging[g] for verdict in future.result()))
                for g, prompt in enumerate(prompts)
            ),
            rollouts=tuple(call[1] for call in calls),
            clips=tuple(call[2] for call in calls),
            seconds={"rollout": sampled - start, "reward": time.perf_counter() - sampled},
        )

    def _call(self, what: str, call: ray.ObjectRef) -> Any:
        """Wait for a reference on the driver's thread in short ticks, so that signals are handled."""
        while True:
            try:
                return self._get(what, call, TICK)
            except GetTimeoutError:
                self._check_published()

    def _check_published(self) -> None:
        """Raise what has gone wrong with the last `publish`: the learner, or a sampler, might wait for the other without end."""
        if self.learners is not None and self.loads:
            ready, self.loads = ray.wait(self.loads, num_returns=len(self.loads), timeout=0)
            for call in ready:  # a death may be among those that are ready, behind its echo
                self.learners.fetch("publishing weights", call, [*ready, *self.loads], {})

    def _get(self, what: str, call: ray.ObjectRef, timeout: float | None = None) -> Any:
        """`ray.get` that raises an actor's own error without Ray's traceback around it."""
        try:
            return ray.get(call, timeout=timeout)
        except GetTimeoutError:
            raise
        except (RayTaskError, RayActorError) as error:
            log.info("%s failed in an actor", what, exc_info=error)
            death = error.cause if isinstance(error, RayTaskError) else error
            if not isinstance(death, RayActorError):
                raise death from None
            raise ClusterError(  # its own, or that of an actor it had asked for something
                f"{what}: the process that holds the policy died ({first_line(death)}); if memory ran out, lower optimizer.micro_batch or "
                "cluster.sample_batch; continue from the last checkpoint with --resume"
            ) from error
