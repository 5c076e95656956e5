"""The covariance factors that pretraining draws noise with have the law of the noise that sampling uses."""

import torch

from world_r1 import camera, noise
from world_r1.blockworld import pretrain_transformer, scenes
from world_r1.config import NoiseConfig


def test_factors_reproduce_the_covariance_of_the_warped_noise(monkeypatch) -> None:
    command = next(c for c in scenes.commands()[0] if c.text == "push in")
    monkeypatch.setattr(pretrain_transformer.scenes, "commands", lambda: ((command,), (1.0,)))
    factor = pretrain_transformer.noise_factors(torch.device("cpu"))[0]
    covariance = factor @ factor.T
    assert (covariance.diagonal() - 1).abs().max() < 1e-3
    path = camera.trajectory(command, scenes.FRAMES, (scenes.HEIGHT, scenes.WIDTH), scenes.PRESET)
    config = NoiseConfig(degradation=0.0, fine=pretrain_transformer.FINE)
    draws = torch.cat([noise.initial_noise(path, (64, 5, 12, 20), config, seed) for seed in range(24)]).flatten(1)
    measured = draws.T @ draws / len(draws)
    error = (measured - covariance)[:240, 240:]
    assert error.pow(2).mean().sqrt() < 1.15 * len(draws) ** -0.5  # pure sampling error
    assert covariance[:240, 240:480].max() > 0.5
