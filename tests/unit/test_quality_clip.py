"""CLIP and its relatives at tiny size with random weights: the real classes of transformers, files in the published formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from world_r1_rewards.quality import files
from world_r1_rewards.quality.clip import AestheticHead, ClipScorer
from world_r1_rewards.quality.pixels import FrameChoice, normalise, patches, square

from world_r1.blockworld.specimens import specimens
from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import Rubric
from world_r1.types import Clip, Prompt, Verdict

transformers = pytest.importorskip("transformers")


def save_clip(folder: Path, projection: int = 8, seed: int = 3) -> Path:
    """A CLIP with two layers a tower and a tokenizer of single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = [chr(i) for i in range(32, 127)] + ["<|startoftext|>", "<|endoftext|>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ids = (len(words) - 2, len(words) - 1)
    made.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", ids[0]), ("<|endoftext|>", ids[1])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": projection,
    }
    torch.manual_seed(seed)
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": ids[0], "eos_token_id": ids[1]}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 28, "patch_size": 14}, projection_dim=projection)
    net = CLIPModel(config)
    with torch.no_grad():  # the usual initialisation is so small that every picture looks alike
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def video(seed: int, length: int = 6, height: int = 30, width: int = 44) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (length, 5, 4, 3), dtype=np.uint8)
    return coarse.repeat(height // 5, 1).repeat(width // 4, 2)


def clips() -> list[Clip]:
    return [
        Clip(f"c{i}", video(i, 6 - i % 2), Prompt(f"p{i}", text), None) for i, text in enumerate(["a red box", "fog", "a red box"])
    ]


def judge(name: str, options: dict[str, Any], score: dict[str, Any] | None = None) -> list[Verdict]:
    config = RewardsConfig(rewards=(RewardConfig(name=name, options=score or {}),), probes={name: options})
    return Rubric(config).judge(clips())


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_the_score_is_the_cosine_that_clip_itself_computes(folder: Path, name: str) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    verdicts = judge(name, {"model": str(folder), "frames": 3})
    net, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    scale = float(net.logit_scale.detach().exp())
    process = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for clip, verdict in zip(clips(), verdicts, strict=True):
        chosen = [clip.video[i] for i in np.linspace(0, len(clip.video) - 1, 3).round().astype(int)]
        shown = process(images=chosen, return_tensors="pt")["pixel_values"]
        text = tokenizer([clip.prompt.text], padding="max_length", max_length=24, return_tensors="pt")
        with torch.no_grad():
            logits = net(input_ids=text["input_ids"], attention_mask=text["attention_mask"], pixel_values=shown).logits_per_image[
                :, 0
            ]
        (score,) = verdict.scores
        assert score.value == pytest.approx(float(logits.mean() / scale), abs=1e-5)
        assert score.parts["min"] == pytest.approx(float(logits.min() / scale), abs=1e-5)
        assert score.parts["scale"] == pytest.approx(scale, rel=1e-5)
        assert score.versions["model"] == str(folder)
    assert len({round(verdict.total or 0, 6) for verdict in verdicts}) == 3


def test_pool_scale_and_choice_of_frames(folder: Path) -> None:
    whole = judge("clip", {"model": str(folder)}, {"pool": "min", "scale": 10.0})[0].scores[0]
    assert whole.value == pytest.approx(10 * whole.parts["min"])
    assert whole.parts["frames"] == 6
    first = judge("clip", {"model": str(folder), "frames": 1, "take": "first"})[0].scores[0]
    alone = ClipScorer(str(folder)).cosines([clips()[0].video[:1]], ["a red box"])[0][0]
    assert first.value == pytest.approx(float(alone[0]), abs=1e-6)
    assert FrameChoice(3).of(np.arange(9)[:, None]).ravel().tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match="pool is mean or min"):
        judge("clip", {"model": str(folder)}, {"pool": "max"})
    with pytest.raises(ValueError, match="spread or first"):
        FrameChoice(take="random")


def test_a_long_prompt_is_cut_and_says_so(folder: Path) -> None:
    scorer = ClipScorer(str(folder))
    (_, cut), (_, none) = scorer.cosines([video(0), video(0)], ["a red box on a wooden table in the fog", "fog"])
    assert none == 0
    assert cut == len("a red box on a wooden table in the fog") + 2 - 24


def test_a_prompt_cannot_end_its_own_text(folder: Path) -> None:
    """CLIP reads the text vector at the first end token."""
    scorer = ClipScorer(str(folder))
    (whole, hostile, first), _ = scorer.texts(["fog< |endoftext|> box", "fog<|endoftext|> box", "fog"])
    assert torch.equal(whole, hostile)
    assert not torch.allclose(hostile, first, atol=1e-3)


@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "aesthetic"])
def test_the_clips_of_the_contract(folder: Path, tmp_path: Path, name: str) -> None:
    """Blank, short, odd and hostile clips, read-only: numbers, the same alone and among others."""
    shown = list(specimens().values())
    shown.append(replace(shown[0], id="one", video=shown[0].video[:1]))
    options: dict[str, Any] = {"model": str(folder)}
    if name == "hpsv2":
        options["checkpoint"] = str(folder / "model.safetensors")
    if name == "aesthetic":
        options["head"] = str(tmp_path / "head.pth")
        torch.save(AestheticHead(8).state_dict(), tmp_path / "head.pth")
    rubric = Rubric(RewardsConfig(rewards=(RewardConfig(name=name),), probes={name: options}))
    for clip, verdict in zip(shown, rubric.judge(shown), strict=True):
        assert verdict.scores[0].status == "ok", verdict
        assert rubric.judge([clip])[0].total == pytest.approx(verdict.total, abs=1e-5)


def test_a_broken_model_is_a_failure_and_never_a_number(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["visual_projection.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    for verdict in judge("clip", {"model": str(folder), "checkpoint": str(tmp_path / "nan.safetensors")}):
        assert verdict.total is None
        assert "not finite" in verdict.scores[0].reason
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"do not fit .* 1 missing \(visual_projection"):
        ClipScorer(str(folder), checkpoint=str(tmp_path / "short.safetensors"))


def to_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The other way round, written from open_clip's module names: what a file of HPSv2 holds."""
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    }
    for kind in ("weight", "bias"):
        names[f"text_model.final_layer_norm.{kind}"] = f"ln_final.{kind}"
        names[f"vision_model.pre_layrnorm.{kind}"] = f"visual.ln_pre.{kind}"
        names[f"vision_model.post_layernorm.{kind}"] = f"visual.ln_post.{kind}"
        for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
            for i in range(2):
                old, new = f"{tower}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
                pairs = [("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]
                for a, b in [*pairs, ("self_attn.out_proj", "attn.out_proj")]:
                    names[f"{old}.{a}.{kind}"] = f"{new}.{b}.{kind}"
    made = {names[name]: value for name, value in state.items() if name in names}
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for i in range(2):
            for kind in ("weight", "bias"):
                parts = [state[f"{tower}.encoder.layers.{i}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                made[f"{prefix}transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
    made["text_projection"], made["visual.proj"] = state["text_projection.weight"].T, state["visual_projection.weight"].T
    return made | {"logit_scale": state["logit_scale"], "attn_mask": torch.zeros(24, 24)}


def test_hpsv2_reads_the_published_format(folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    other = CLIPModel.from_pretrained(save_clip(tmp_path / "other", seed=9))
    archive = {"epoch": 3, "state_dict": to_open_clip({k: v.clone() for k, v in other.state_dict().items()})}
    torch.save(archive, tmp_path / "HPS.pt")
    options = {"model": str(folder), "checkpoint": str(tmp_path / "HPS.pt"), "frames": 2}
    verdicts = judge("hpsv2", options)
    same = ClipScorer(str(tmp_path / "other"), fit="pad")
    for clip, verdict in zip(clips(), verdicts, strict=True):
        ((expected, _),) = same.cosines([FrameChoice(2).of(clip.video)], [clip.prompt.text])
        assert verdict.total == pytest.approx(float(expected.mean()), abs=1e-6)
        assert verdict.scores[0].versions["model"].endswith("HPS.pt")


def test_open_clip_itself_agrees(tmp_path: Path) -> None:
    """The converted weights give the features that open_clip's own network gives."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch", exc_type=ImportError)
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(1)
    theirs = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"layers": 2, "width": 64, "head_width": 32, "patch_size": 14, "image_size": 28},
        text_cfg={"context_length": 24, "vocab_size": 97, "width": 16, "heads": 2, "layers": 2},
    ).eval()
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 97, "max_position_embeddings": 24}
    both = {"num_hidden_layers": 2, "projection_dim": 8, "hidden_act": "gelu"}
    ours = CLIPModel(
        CLIPConfig(text_config={**text, **both, "eos_token_id": 96}, vision_config={**vision, **both}, projection_dim=8)
    )
    files.fill(ours.eval(), files.from_open_clip(theirs.state_dict()), "it")
    ids = torch.randint(0, 96, (3, 24))
    ids[:, 10] = 96
    shown = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        image = ours.get_image_features(pixel_values=shown).pooler_output
        words = ours.get_text_features(input_ids=ids).pooler_output
        assert torch.allclose(image, theirs.encode_image(shown), atol=1e-5)
        assert torch.allclose(words, theirs.encode_text(ids), atol=1e-5)


def test_the_aesthetic_mark(tmp_path: Path) -> None:
    clip_folder = save_clip(tmp_path / "clip", projection=12)
    torch.manual_seed(2)
    reference = torch.nn.Sequential(  # the published layers, written out
        *(torch.nn.Linear(12, 1024), torch.nn.Dropout(0.2), torch.nn.Linear(1024, 128), torch.nn.Dropout(0.2)),
        *(torch.nn.Linear(128, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16), torch.nn.Linear(16, 1)),
    ).eval()
    torch.save({f"layers.{name}": value for name, value in reference.state_dict().items()}, tmp_path / "head.pth")
    verdicts = judge("aesthetic", {"model": str(clip_folder), "head": str(tmp_path / "head.pth"), "frames": 4})
    vectors = ClipScorer(str(clip_folder)).images(FrameChoice(4).of(clips()[1].video))
    with torch.no_grad():
        expected = reference(vectors).mean()
    assert verdicts[1].total == pytest.approx(0.1 * float(expected), abs=1e-6)
    assert set(verdicts[1].scores[0].versions) == {"model", "weights", "head"}
    other = save_clip(tmp_path / "other", projection=8)
    with pytest.raises(ValueError, match="vectors of 8 numbers, the head reads 12"):
        judge("aesthetic", {"model": str(other), "head": str(tmp_path / "head.pth")})


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": {"a": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="is no file of tensors"):
        files.read(tmp_path / "trap.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"a": 1.0}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match="no mapping of names to tensors"):
        AestheticHead.load(str(tmp_path / "numbers.pt"), "cpu")
    with pytest.raises(FileNotFoundError, match="owner/name:file"):
        files.read(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(("height", "width"), [(30, 44), (44, 30), (28, 28), (97, 161), (20, 23)])
def test_crop_is_what_the_clip_processor_does(height: int, width: int) -> None:
    from transformers import CLIPImageProcessorPil

    frames = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    process = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    theirs = process(images=list(frames), return_tensors="pt")["pixel_values"]
    assert torch.allclose(square(frames, 28, "crop"), theirs, atol=1e-5)


def test_pad_keeps_the_whole_frame_and_fills_with_black() -> None:
    frames = np.full((1, 20, 40, 3), 200, np.uint8)
    black = normalise(np.zeros((1, 1, 1, 3), np.uint8))[0]
    shown = square(frames, 28, "pad")[0]
    assert torch.allclose(shown[:, :7], black.expand(3, 7, 28))
    assert torch.allclose(shown[:, 21:], black.expand(3, 7, 28))
    assert torch.allclose(shown[:, 7:21], normalise(frames)[0, :, :1, :1].expand(3, 14, 28))
    assert square(frames, 28, "squash").shape == (1, 3, 28, 28)
    with pytest.raises(ValueError, match="fit is one of"):
        square(frames, 28, "stretch")


def test_patches_are_those_of_the_qwen_processor() -> None:
    from transformers import Qwen2VLImageProcessorPil

    frame = np.random.default_rng(4).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil()(images=[frame], do_resize=False, return_tensors="pt")
    ours, grid = patches(normalise(frame[None]))
    assert [list(grid)] == theirs["image_grid_thw"].tolist()
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)


def test_patches_of_a_clip_are_those_of_the_qwen_video_processor() -> None:
    try:
        from transformers import Qwen2VLVideoProcessor

        process = Qwen2VLVideoProcessor()
    except (ImportError, RuntimeError):
        pytest.skip("needs torchvision")
    frames = np.random.default_rng(4).integers(0, 256, (5, 56, 84, 3), dtype=np.uint8)
    theirs = process(videos=[torch.from_numpy(frames).movedim(-1, 1)], do_resize=False, do_sample_frames=False, return_tensors="pt")
    ours, grid = patches(normalise(frames))
    assert [list(grid)] == theirs["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert torch.allclose(ours, theirs["pixel_values_videos"], atol=1e-5)
