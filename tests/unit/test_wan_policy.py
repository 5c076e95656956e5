"""The Wan policy keeps its contract on a tiny random pipeline: guidance, reference, adapters, state, precision, and clear errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open

from world_r1 import config as configuration
from world_r1.policies import adapter, wan_files
from world_r1.policies.tiny import tiny_wan_pipeline
from world_r1.policies.wan import WanPolicy, clean
from world_r1.policy import load_policy, policy_class

PROMPTS = ["Camera orbit left. A red box on grass.", "Camera fixed. A blue sphere."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_wan_pipeline(tmp_path_factory.mktemp("tiny")))


def make(path: str, trainable: bool = True, **model: Any) -> WanPolicy:
    section = {"path": path, "device": "cpu", "lora": {"rank": 4, "alpha": 8.0}, **model}
    video = {"frames": 5, "height": 32, "width": 48}
    return WanPolicy(configuration.parse({"model": section, "video": video}), trainable=trainable)


def inputs(policy: WanPolicy, count: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *policy.latent_shape(policy.config.video), generator=generator)
    return x, torch.linspace(0.9, 0.2, count), policy.encode((PROMPTS * count)[:count])


def disturb(policy: WanPolicy, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.named_parameters().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def test_is_found_by_name(model: str) -> None:
    policy = load_policy(configuration.parse({"model": {"path": model, "device": "cpu"}}), trainable=False)
    assert isinstance(policy, WanPolicy)
    assert policy_class(policy.config.model) is WanPolicy


def test_latent_shape_and_its_errors(model: str) -> None:
    policy = make(model)
    assert policy.latent_shape(configuration.VideoConfig(frames=17, height=96, width=160)) == (4, 5, 12, 20)
    for size in ((6, 32, 48), (5, 40, 48), (5, 32, 50)):
        with pytest.raises(ValueError, match="the nearest size is 5x32x48"):
            policy.latent_shape(configuration.VideoConfig(frames=size[0], height=size[1], width=size[2]))


def test_text_equals_the_pipeline(model: str) -> None:
    pipeline = WanPipeline.from_pretrained(model)
    policy = make(model)
    texts = [*PROMPTS, "A  red &amp; blue   box ", "box " * 60, ""]
    expected, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=24)
    first, second = policy.encode(texts), policy.encode(texts)
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert clean(" a &lt;b&gt;\n c ") == "a <b> c"


def test_text_length_is_the_smaller_of_config_and_weights(model: str) -> None:
    assert make(model).max_text_length == 24
    assert make(model, max_text_length=8).encode(PROMPTS).shape == (2, 8, 16)


def test_velocity_is_the_transformers(model: str) -> None:
    policy = make(model, lora=None)
    x, sigma, condition = inputs(policy)
    with torch.no_grad():
        expected = WanPipeline.from_pretrained(model).transformer(x, 1000 * sigma, condition).sample
        torch.testing.assert_close(policy.velocity(x, sigma, condition), expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(policy.velocity(x, 0.3, condition), policy.velocity(x, torch.tensor([0.3, 0.3]), condition))


def test_guidance_formula(model: str) -> None:
    guided = make(model, guidance_scale=3.5, negative_prompt="a small torus")
    plain = make(model)
    x, sigma, condition = inputs(plain)
    negative = plain.encode(["a small torus"]).expand(2, -1, -1)
    with torch.no_grad():
        v_c, v_u = plain.velocity(x, sigma, condition), plain.velocity(x, sigma, negative)
        actual = guided.velocity(x, sigma, condition)
    assert (v_c - v_u).abs().max() > 1e-3
    torch.testing.assert_close(actual, v_u + 3.5 * (v_c - v_u), atol=1e-5, rtol=1e-4)


def test_a_video_does_not_depend_on_its_batch(model: str) -> None:
    policy = make(model, guidance_scale=2.0)
    disturb(policy)
    x, sigma, condition = inputs(policy, 3)
    with torch.no_grad():
        together = policy.velocity(x, sigma, condition)
        assert torch.equal(together, policy.velocity(x, sigma, condition))
        for i in (2, 0, 1):
            assert torch.equal(together[i : i + 1], policy.velocity(x[i : i + 1], sigma[i : i + 1], condition[i : i + 1]))


def test_a_new_adapter_changes_nothing_and_reference_is_the_base(model: str) -> None:
    base, policy = make(model, lora=None), make(model)
    x, sigma, condition = inputs(policy)
    with torch.no_grad():
        v_base = base.velocity(x, sigma, condition)
        assert torch.equal(policy.velocity(x, sigma, condition), v_base)
        disturb(policy)
        moved = policy.velocity(x, sigma, condition)
        assert (moved - v_base).abs().max() > 1e-4
        with policy.reference():
            with policy.reference():
                assert torch.equal(policy.velocity(x, sigma, condition), v_base)
            assert torch.equal(policy.velocity(x, sigma, condition), v_base)
        assert torch.equal(policy.velocity(x, sigma, condition), moved)


def test_reference_leaves_training_switches_alone(model: str) -> None:
    for trainable in (True, False):
        policy = make(model, trainable=trainable)
        with policy.reference():
            pass
        assert {p.requires_grad for p in policy.named_parameters().values()} == {trainable}
        assert all(p.requires_grad == (trainable and ".lora_" in n) for n, p in policy.transformer.named_parameters())


def test_full_fine_tuning_has_a_frozen_reference(model: str) -> None:
    policy = make(model, lora=None)
    x, sigma, condition = inputs(policy)
    with torch.no_grad():
        v_base = policy.velocity(x, sigma, condition)
    assert set(policy.named_parameters()) == {n for n, _ in policy.transformer.named_parameters()}
    disturb(policy, 0.01)
    with torch.no_grad(), policy.reference():
        assert torch.equal(policy.velocity(x, sigma, condition), v_base)
    policy.velocity(x, sigma, condition).square().mean().backward()
    assert all(p.grad is None for p in policy._base["transformer"].parameters())
    assert policy.transformer.proj_out.weight.grad is not None


def test_adapter_initialisation_follows_the_run_seed_alone(model: str) -> None:
    first = make(model).state()
    torch.manual_seed(99)
    torch.rand(3)
    second = make(model).state()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = WanPolicy(configuration.parse({"seed": 1, "model": {"path": model, "device": "cpu", "lora": {"rank": 4}}})).state()
    assert all(np.array_equal(first[name], other[name]) != (".lora_A." in name) for name in first)


def test_state_round_trip(model: str) -> None:
    source, target = make(model), make(model, trainable=False)
    disturb(source)
    state = source.state()
    assert all(value.dtype == np.float32 for value in state.values())
    for value in state.values():
        value.setflags(write=False)  # as Ray hands it out
    target.load_state(state)
    x, sigma, condition = inputs(source)
    with torch.no_grad():
        assert torch.equal(source.velocity(x, sigma, condition), target.velocity(x, sigma, condition))
    disturb(source)
    assert any(not np.array_equal(state[name], value) for name, value in source.state().items())


def test_load_state_names_what_does_not_fit(model: str) -> None:
    policy = make(model)
    before = policy.state()
    name = next(iter(before))
    with pytest.raises(ValueError, match=r"1 missing .*1 unexpected"):
        policy.load_state({**{n: v + 1 for n, v in before.items() if n != name}, "extra": np.zeros(1)})
    with pytest.raises(ValueError, match="has shape"):
        policy.load_state({**{n: v + 1 for n, v in before.items()}, list(before)[-1]: np.zeros((1, 2), np.float32)})
    assert all(np.array_equal(before[n], v) for n, v in policy.state().items())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_saved_adapter_is_bit_equal_with_its_alpha(model: str, tmp_path: Path, dtype: str) -> None:
    source = make(model, dtype=dtype, lora={"rank": 3, "alpha": 7.5, "targets": ["to_q", "ffn.net.2"]})
    disturb(source)
    source.save(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [adapter.FILE]
    loaded = make(model, dtype=dtype, init_lora=str(tmp_path))  # rank and alpha of the config differ on purpose
    assert loaded.transformer.peft_config["default"].lora_alpha == 7.5
    state = source.state()
    assert set(loaded.state()) == set(state)
    assert all(np.array_equal(state[name], value) for name, value in loaded.state().items())
    assert {p.dtype for p in loaded.named_parameters().values()} == {torch.float32}
    x, sigma, condition = inputs(source)
    with torch.no_grad():
        assert torch.equal(source.velocity(x, sigma, condition), loaded.velocity(x, sigma, condition))


def test_the_stock_pipeline_reads_our_adapter(model: str, tmp_path: Path) -> None:
    source = make(model)
    disturb(source)
    source.save(str(tmp_path))
    with safe_open(str(tmp_path / adapter.FILE), "pt") as file:
        assert all(key.startswith("transformer.blocks.") for key in file.keys())  # noqa: SIM118
        assert json.loads(file.metadata()["lora_adapter_metadata"])["transformer.lora_alpha"] == 8.0
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(tmp_path), weight_name=adapter.FILE)
    x, sigma, condition = inputs(source)
    with torch.no_grad():
        expected = pipeline.transformer(x, 1000 * sigma, condition).sample
        torch.testing.assert_close(source.velocity(x, sigma, condition), expected, atol=1e-6, rtol=1e-5)


def test_we_read_diffusers_own_adapter(model: str, tmp_path: Path) -> None:
    source = make(model)
    disturb(source)
    source.transformer.save_lora_adapter(tmp_path, weight_name="mine.safetensors")
    loaded = make(model, init_lora=str(tmp_path / "mine.safetensors"))
    assert all(np.array_equal(source.state()[name], value) for name, value in loaded.state().items())
    with pytest.raises(ValueError, match=r"found mine\.safetensors; name the file"):
        make(model, init_lora=str(tmp_path))


def test_saved_transformer_starts_a_full_run(model: str, tmp_path: Path) -> None:
    source = make(model, lora=None)
    disturb(source, 0.01)
    source.save(str(tmp_path))
    loaded = make(model, lora=None, init_lora=str(tmp_path))
    x, sigma, condition = inputs(source)
    with torch.no_grad():
        v = source.velocity(x, sigma, condition)
        assert torch.equal(loaded.velocity(x, sigma, condition), v)
        with loaded.reference():
            assert not torch.equal(loaded.velocity(x, sigma, condition), v)
    with pytest.raises(ValueError, match=r"set model\.lora to null"):
        make(model, init_lora=str(tmp_path))


def test_gradient_checkpointing_gives_the_same_gradients(model: str) -> None:
    grads = []
    for checkpointing in (False, True):
        policy = make(model, gradient_checkpointing=checkpointing, guidance_scale=2.0)
        disturb(policy)
        x, sigma, condition = inputs(policy)
        loss = policy.velocity(x, sigma, condition).square().mean()
        with torch.no_grad(), policy.reference():
            policy.velocity(x, sigma, condition)
        loss.backward()
        grads.append({name: p.grad for name, p in policy.named_parameters().items()})
    assert all(g is not None and g.abs().max() > 0 for g in grads[0].values())
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("lora", [{"rank": 4}, None])
def test_bf16_base_with_float32_masters(model: str, lora: dict[str, Any] | None) -> None:
    exact, policy = make(model, lora=lora), make(model, lora=lora, dtype="bf16")
    assert {p.dtype for p in policy.named_parameters().values()} == {torch.float32}
    x, sigma, condition = inputs(exact)
    velocity = policy.velocity(x, sigma, condition.to(torch.bfloat16))
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, exact.velocity(x, sigma, condition), atol=0.05, rtol=0.05)
    assert (velocity - exact.velocity(x, sigma, condition)).abs().max() > 0
    velocity.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.named_parameters().values())
    with torch.no_grad(), policy.reference():
        assert torch.equal(policy.velocity(x, sigma, condition), velocity)


def test_timesteps_keep_float32_precision_in_bf16(model: str) -> None:
    policy = make(model, dtype="bf16")
    x, _, condition = inputs(policy, 1)
    # 881.0 and 881.9 are one number in bf16 (spacing 4); float32 timesteps tell them apart.
    with torch.no_grad():
        first, second = policy.velocity(x, 0.8810, condition), policy.velocity(x, 0.8819, condition)
    assert not torch.equal(first, second)


def test_decode_equals_the_pipeline(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(model)
    z = inputs(policy)[0]
    video = policy.decode(z)
    assert video.shape == (2, 5, 32, 48, 3)
    assert video.dtype == np.uint8
    vae = wan_files.load_vae(model)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = ((vae.decode(z * std + mean).sample + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()
    assert np.abs(video - expected).max() <= 0.501
    monkeypatch.setattr("world_r1.policies.wan_vae.LARGE", 0)
    assert np.abs(policy.decode(z).astype(int) - video).max() <= 1


def test_errors_are_one_line_with_a_remedy(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def broken(name: str, file: str, content: bytes | dict[str, Any] | None) -> str:
        folder = tmp_path / name
        shutil.copytree(model, folder)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(folder)

    index = json.loads((Path(model) / "model_index.json").read_text())
    cases = {
        str(tmp_path / "nowhere"): "no such folder",
        str(tmp_path): "not a model in diffusers layout",
        broken(
            "two", "model_index.json", {**index, "boundary_ratio": 0.875}
        ): "second transformer or a boundary_ratio, but not both",
        broken("i2v", "model_index.json", {**index, "_class_name": "WanImageToVideoPipeline"}): "not a text-to-video WanPipeline",
        broken("json", "model_index.json", b"{"): "not readable JSON",
        broken("truncated", "transformer/diffusion_pytorch_model.safetensors", b"12345"): "cannot read the transformer",
        broken("absent", "transformer/diffusion_pytorch_model.safetensors", None): "cannot read the transformer",
        broken("key", "world_r1.json", {"max_length": 3}): "unknown key 'max_length'",
        broken("type", "world_r1.json", {"steps": "8"}): "steps must be of type int",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            make(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="names no linear layer"):
        make(model, lora={"rank": 2, "targets": ["to_q", "to_z"]})
    with pytest.raises(ValueError, match="no adapter in"):
        make(model, init_lora=str(tmp_path / "nowhere"))


def test_an_adapter_of_another_model_is_refused(model: str, tmp_path: Path) -> None:
    policy = make(model)
    policy.save(str(tmp_path))
    with safe_open(str(tmp_path / adapter.FILE), "pt") as file:
        tensors = {key: torch.zeros(5, 5) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    from safetensors.torch import save_file

    save_file(tensors, str(tmp_path / adapter.FILE), metadata)
    with pytest.raises(ValueError, match="not an adapter of this model"):
        make(model, init_lora=str(tmp_path))


def test_asking_for_an_absent_gpu_is_an_error(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no CUDA device"):
        make(model, device="cuda")
