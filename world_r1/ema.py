"""Exponential moving average of named parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from world_r1.lowrank import strongest_directions


class EMA:
    """Shadow copies a <- d a + (1 - d) w, float32, on the parameters' devices.

    The decay starts low, d = min(decay, (1 + n) / (10 + n)) at update n, so that the average of a short run is not the initial
    weights. decay = 0 keeps the average equal to the weights. With `keep`, what is handed out of every adapter pair is its `keep` strongest
    directions (`world_r1.lowrank`); the running average itself stays whole.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float, keep: int | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must be in [0, 1), got {decay}; 0 switches it off")
        self.parameters = dict(parameters)
        self.decay = decay
        self.keep = keep
        self.updates = 0
        self.average = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights into the average; call it once after every optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1.0 - decay)

    def weights(self) -> dict[str, torch.Tensor]:
        """What evaluation and the saved adapter use: the averages by name, adapters cut to `keep` directions."""
        return dict(self.average) if self.keep is None else strongest_directions(self.average, self.keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold `weights()`; afterwards the trained weights are back, bit for bit."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._write(self.weights())
        try:
            yield
        finally:
            self._write(trained)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Averages by parameter name (copies) and the number of updates under "updates"."""
        return {**{name: value.clone() for name, value in self.average.items()}, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`; ValueError names missing and unexpected entries."""
        missing, unexpected = sorted({*self.average, "updates"} - set(state)), sorted(set(state) - {*self.average, "updates"})
        if missing or unexpected:
            raise ValueError(f"the average does not fit the parameters: missing {missing[:3]}, unexpected {unexpected[:3]}")
        for name, value in self.average.items():
            if state[name].shape != value.shape:
                raise ValueError(f"the average of {name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}")
        for name, value in self.average.items():
            value.copy_(state[name])
        self.updates = int(state["updates"])

    @torch.no_grad()
    def _write(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
