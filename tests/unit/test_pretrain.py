"""Pretraining end to end at a fraction of the size: stages write what they promise, and a resumed stage continues."""

import json
from pathlib import Path

import pytest
import torch

from world_r1.blockworld import data, model, pretrain, pretrain_transformer, scenes
from world_r1.blockworld.stage import Options


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    model.vocabulary()  # cached for the process: it must come from all commands
    monkeypatch.setattr(scenes, "HEIGHT", 16)
    monkeypatch.setattr(scenes, "WIDTH", 32)
    monkeypatch.setattr(pretrain_transformer, "LATENT_GRID", (5, 2, 4))
    few = scenes.commands()[0][:3]
    command = torch.tensor([0, 1])
    monkeypatch.setattr(pretrain_transformer.scenes, "commands", lambda: (few, (0.5, 0.3, 0.2)))
    monkeypatch.setattr(scenes, "controls", lambda: torch.zeros(3, 2, scenes.FRAMES, 6))
    assert command.max() < len(few)


@pytest.mark.slow
def test_stages_write_a_pipeline_and_resume(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_r1.blockworld import pretrain_vae

    evaluate = pretrain_vae.evaluate
    monkeypatch.setattr(pretrain_vae, "evaluate", lambda vae, render, options: evaluate(vae, render, options, count=1))
    options = Options(out=tmp_path, device=torch.device("cpu"), steps=1, batch=1, save_seconds=0.0)
    pretrain.pretrain(("index", "vae"), options)
    assert (tmp_path / "vae_roundtrip.png").exists()
    pretrain.pretrain(("vae",), Options(out=tmp_path, device=torch.device("cpu"), steps=2, batch=1, save_seconds=0.0, resume=True))
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["vae"]["steps"] == 2
    vae = model.load_vae(tmp_path, "cpu")
    assert min(vae.config.latents_std) > 0
    how = Options(out=tmp_path, device=torch.device("cpu"), steps=1, batch=2)
    cache = pretrain_transformer.build_cache(options, vae, how, 2, pool=2)
    assert cache.latents.shape == (2, model.LATENT_CHANNELS, 5, 2, 4)
    assert cache.videos.shape == (2, 3, scenes.FRAMES, 16, 32)
    monkeypatch.setattr(pretrain_transformer, "build_cache", lambda *args, **kwargs: cache)
    transformer, _ = pretrain_transformer.train(options, vae, cache)
    assert any(parameter.abs().sum() > 0 for parameter in transformer.proj_out.parameters())
    assert "flow-matching loss" in (pretrain.write_card(tmp_path) or (tmp_path / "README.md").read_text())


def test_too_small_a_cache_is_an_error(small: None, tmp_path: Path) -> None:
    how = Options(out=tmp_path, device=torch.device("cpu"), seconds=0.0, batch=1)
    vae = model.build_vae()
    with pytest.raises(RuntimeError, match="too few to train on"):
        pretrain_transformer.build_cache(how, vae, how, 100)


def test_stage_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown stages"):
        pretrain.pretrain(("vea",), Options(out=tmp_path, device=torch.device("cpu"), steps=1))


def test_held_out_seeds_are_far_from_training_seeds() -> None:
    assert data.HELD_OUT > 1_000_000
