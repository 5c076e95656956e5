"""Out of memory: the message names switches that are not turned yet, with what each saves, in the order of what they save."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from world_r1 import errors, memory
from world_r1.config import Config, parse

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def configured(**sections: Any) -> Config:
    tree: dict[str, Any] = {
        "model": {"path": WAN, "guidance_scale": 5.0, "dtype": "bf16"},
        "video": {"frames": 81, "height": 480, "width": 832},
        "optimizer": {"micro_batch": 4},
    }
    return parse({name: {**tree.get(name, {}), **sections.get(name, {})} for name in tree | sections})


def test_the_estimate_is_what_a_block_keeps() -> None:
    """Against the measurement that "auto" checkpointing makes, on a narrow model with Wan's proportions."""
    from world_r1.policies.source import choose_dtype
    from world_r1.policy import load_policy

    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    config = parse(
        {
            "model": {"path": WAN, "random_weights": "tiny", "dtype": "fp32", "device": "cpu", "lora": {"rank": 2}},
            "video": {"frames": 9, "height": 64, "width": 96},
            "optimizer": {"micro_batch": 1},
            "speed": {"checkpoint": "auto"},
        }
    )
    policy: Any = load_policy(config)
    x = torch.randn(1, *policy.latent_shape(config.video))
    policy.velocity(x, 0.5, policy.encode(["A red box."]))
    each, _ = policy.transformer._gradient_checkpointing_func.seen
    width, forward = memory.KEPT["fp32"]
    estimated = memory.token_count(config) * (width * 48 + forward * 48)
    assert each == pytest.approx(estimated, rel=0.35)  # text tokens and two heads of 24 channels weigh more in so small a model


def test_switches_are_listed_by_what_they_save() -> None:
    found = memory.switches(configured())
    assert [item.saves for item in found] == sorted((item.saves for item in found), reverse=True)
    names = [item.switch for item in found]
    assert names[0] == "speed.checkpoint=auto"
    assert {"optimizer.micro_batch=2", "speed.guidance_batch=false", "speed.text_encoder=free", "video.frames=41"} <= set(names)
    whole, checkpointed, blocks = memory.activations(configured())  # type: ignore[misc]
    assert blocks == 30
    assert whole == pytest.approx(8 * 32760 * (66 * 1536 + 2 * 8960) * 30)
    assert checkpointed < whole / 15


def test_window_steps_that_run_together_count_and_can_be_taken_apart() -> None:
    flow, together = {"steps": 8, "window": {"size": 4}}, {"together": True}
    apart, joined = configured(flow=flow), configured(flow=flow, algorithm=together)
    assert memory.activations(joined)[0] == 4 * memory.activations(apart)[0]  # type: ignore[index]
    advised = {item.switch: item.saves for item in memory.switches(joined)}
    most = max(item.saves for item in memory.switches(apart))
    assert advised["algorithm.together=false"] > 2 * most
    assert "algorithm.together=false" not in {item.switch for item in memory.switches(apart)}


def test_turned_switches_are_not_advised() -> None:
    turned = {"checkpoint": "auto", "guidance_batch": False, "text_encoder": "free"}
    names = [item.switch for item in memory.switches(configured(speed=turned, optimizer={"micro_batch": 1}))]
    assert names == ["video.frames=41"]
    full = [
        item.switch for item in memory.switches(configured(model={"dtype": "fp32", "lora": None}, speed={"vae_decode": "full"}))
    ]
    assert {"model.dtype=bf16", "model.lora={}", "speed.vae_decode=chunked"} <= set(full)
    assert "every switch is turned" in memory.advice(parse({"video": {"frames": 5}}))


def test_every_advised_switch_is_an_override_that_parses() -> None:
    import yaml

    for item in memory.switches(configured(model={"dtype": "fp32", "lora": None}, speed={"vae_decode": "full", "checkpoint": 0.5})):
        key, _, value = item.switch.partition("=")
        section, name = key.split(".")
        changed = configured(**{section: {name: yaml.safe_load(value)}})
        assert changed is not None


def test_running_out_becomes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = configured()
    with pytest.raises(memory.OutOfMemory) as caught, memory.explained(config, "updating the policy"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.20 GiB. GPU 0 has a total capacity of 79 GiB")
    assert errors.report(caught.value) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(r"full while updating the policy: CUDA out of memory; speed\.checkpoint=auto saves about \d+\.\d GiB", line)
    with pytest.raises(KeyError), memory.explained(config, "sampling"):
        raise KeyError("something else")
