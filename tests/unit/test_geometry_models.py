"""Adapters of geometry models: conventions against exact cameras, the contract's refusals, the real packages where they are installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from world_r1_rewards import discrimination
from world_r1_rewards.probes import _model
from world_r1_rewards.probes._assemble import used_frames
from world_r1_rewards.probes._views import Views, measured
from world_r1_rewards.probes.da3 import DA3
from world_r1_rewards.probes.mapanything import MapAnything
from world_r1_rewards.probes.pi3 import Pi3, intrinsics_of
from world_r1_rewards.probes.pycolmap import PyColmap
from world_r1_rewards.probes.vggt import VGGT
from world_r1_rewards.probes.vggt_omega import VGGTOmega
from world_r1_rewards.scores.reconstruction import Reconstruction
from world_r1_rewards.scores.trajectory import TrajectoryReward

from world_r1.blockworld import raycast, scenes
from world_r1.reward import Degenerate
from world_r1.types import Clip

FRAMES = 7


@cache
def truth() -> tuple[Clip, np.ndarray, np.ndarray]:
    """A clip with its exact c2w [T, 4, 4] and z-depth [T, H, W]."""
    world = discrimination.world("tuning", 1)
    c2w = world.tensors.c2w[0, 0] @ world.poses()
    rgb, depth, _ = raycast.cast(world.tensors._replace(c2w=c2w[None]), 96, 160, scenes.PRESET.fov_x, 1)
    video = ((rgb[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return world.clip(video), c2w.numpy(), depth[0].numpy()


def exact(size: tuple[int, int] = (96, 160)) -> Views:
    clip, c2w, depth = truth()
    frames = used_frames(len(clip.video), FRAMES)
    K = clip.trajectory.K if clip.trajectory is not None else np.eye(3)
    scaled = np.diag([size[1] / 160, size[0] / 96, 1]) @ K
    maps = torch.nn.functional.interpolate(torch.from_numpy(depth[frames])[None], size=size, mode="nearest")[0].numpy()
    return Views(
        frames, c2w[frames], np.repeat(scaled[None], FRAMES, 0).astype(np.float32), size, maps, np.full_like(maps, 0.9), "exact"
    )


def score(clip: Clip, geometry: Any) -> float:
    value = TrajectoryReward().score(clip, {"geometry": geometry}).value
    assert value is not None
    return value


class Fake:
    """Stands in for a model whose package is not here: returns what the package documents, made from the exact world."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, pictures: torch.Tensor) -> Any:
        return self.answer(pictures)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        for key, value in contents.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def _observed(probe: Any) -> Any:
    (result,) = probe.observe([truth()[0]], [{}])
    if isinstance(result, Exception):
        raise result
    return result


def _agrees(found: Views, size: tuple[int, int], scale: float = 1.0) -> None:
    """The same cameras, intrinsics and depth as the exact ones at the model's size."""
    wanted = exact(size)
    assert found.size == size
    relative = lambda c2w: np.linalg.inv(c2w[:1].astype(np.float64)) @ c2w  # noqa: E731
    assert np.allclose(relative(found.c2w), relative(wanted.c2w), atol=1e-4)
    assert np.allclose(found.K, wanted.K, rtol=2e-2)
    known = wanted.depth > 0
    assert np.allclose(found.depth[known], scale * wanted.depth[known], rtol=1e-4)
    assert not found.depth[~known].any()
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()


def _pose_encoding(size: tuple[int, int]) -> tuple[torch.Tensor, Any]:
    """The encoding stands for itself; the decoder gives world-to-camera [1, F, 3, 4] and K in pixels, as vggt's does."""
    views = exact(size)
    w2c = torch.from_numpy(np.linalg.inv(views.c2w)[:, :3]).float()[None]

    def decode(encoding: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        assert tuple(image_size) == size
        assert encoding.shape == (1, FRAMES, 9)
        return w2c, torch.from_numpy(views.K)[None]

    return torch.zeros(1, FRAMES, 9), decode


def test_vggt_is_read_as_world_to_camera(modules: Any) -> None:
    size = (308, 518)
    encoding, decode = _pose_encoding(size)
    depth = torch.from_numpy(exact(size).depth)[None, ..., None]

    class Model(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name: str) -> Model:
            assert name == "facebook/VGGT-1B"
            return cls()

        def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            assert pictures.shape == (1, FRAMES, 3, *size)
            assert 0 <= pictures.min() < pictures.max() <= 1
            return {"pose_enc": encoding, "depth": depth, "depth_conf": torch.full(depth.shape[:-1], 5.0)}

    modules("vggt.models.vggt", VGGT=Model)
    modules("vggt.utils.pose_enc", pose_encoding_to_extri_intri=decode)
    found = _observed(VGGT(frames=FRAMES, device="cpu"))
    _agrees(found["views"], size)
    assert found["views"].confidence.max() == pytest.approx(0.8)
    assert score(truth()[0], found["geometry"]) > 0.98


def test_vggt_omega_refuses_without_consent_and_reads_plain_tensors_only(modules: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accept_noncommercial"):
        VGGTOmega("model.pt")
    with pytest.raises(ValueError, match="accept_noncommercial"):
        VGGTOmega("model.pt", accept_noncommercial="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="checkpoint"):
        VGGTOmega(accept_noncommercial=True)
    size = (304, 512)
    encoding, decode = _pose_encoding(size)
    depth = torch.from_numpy(exact(size).depth)[None, ..., None]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            assert pictures.shape == (FRAMES, 3, *size)
            return {"pose_enc": encoding, "depth": self.scale * depth, "depth_conf": torch.full(depth.shape[:-1], 5.0)}

    modules("vggt_omega.models", VGGTOmega=Model)
    modules("vggt_omega.utils.pose_enc", pose_encoding_to_extri_intri=decode)
    file = tmp_path / "model.pt"
    torch.save({"scale": torch.tensor(2.0)}, file)
    found = _observed(VGGTOmega(str(file), accept_noncommercial=True, frames=FRAMES, device="cpu"))
    _agrees(found["views"], size, scale=2.0)
    torch.save({"scale": torch.tensor(2.0), "hook": Path("x")}, file)  # an object: only loadable by running code
    (result,) = VGGTOmega(str(file), accept_noncommercial=True, device="cpu").observe([truth()[0]], [{}])
    assert isinstance(result, Exception)
    (result,) = VGGTOmega(str(tmp_path / "no.pt"), accept_noncommercial=True, device="cpu").observe([truth()[0]], [{}])
    assert isinstance(result, ValueError)


@pytest.mark.parametrize(("weights", "module", "name"), [("yyfz233/Pi3X", "pi3x", "Pi3X"), ("yyfz233/Pi3", "pi3", "Pi3")])
def test_pi3_gives_intrinsics_from_its_points(modules: Any, weights: str, module: str, name: str) -> None:
    size = (308, 518)
    views = exact(size)
    local = _local_points(views)

    class Model(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, asked: str) -> Model:
            assert asked == weights
            return cls()

        def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            assert pictures.shape == (1, FRAMES, 3, *size)
            logits = torch.where(local[..., 2:] > 0, 3.0, -9.0)
            return {"camera_poses": torch.from_numpy(views.c2w)[None], "local_points": local[None], "conf": logits[None]}

    modules(f"pi3.models.{module}", **{name: Model})
    found = _observed(Pi3(weights, frames=FRAMES, device="cpu"))
    _agrees(found["views"], size)
    assert score(truth()[0], found["geometry"]) > 0.98


def _local_points(views: Views) -> torch.Tensor:
    y, x = np.mgrid[: views.size[0], : views.size[1]] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(views.K[0]).T
    return torch.from_numpy(rays * views.depth[..., None]).float()


def test_focal_length_of_points() -> None:
    views = exact()
    K = intrinsics_of(_local_points(views).numpy(), (views.depth > 0).astype(float))
    assert np.allclose(K, views.K, rtol=1e-4)
    with pytest.raises(ArithmeticError, match="focal"):
        intrinsics_of(np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4)))


@pytest.mark.parametrize("hosts", [None, "vggt"])
def test_mapanything_itself_and_a_model_that_it_hosts(modules: Any, hosts: str | None) -> None:
    size = (294, 518)
    views = exact(size)
    local = _local_points(views)

    def answer(asked: list[Any]) -> list[dict[str, torch.Tensor]]:
        assert len(asked) == FRAMES
        out = []
        for i, pose in enumerate(torch.from_numpy(views.c2w)):
            one = {"pts3d_cam": local[i][None], "conf": torch.full((1, *size), 3.0)}
            if hosts is None:
                one |= {"camera_poses": pose[None], "intrinsics": torch.from_numpy(views.K[i])[None]}
                one["mask"] = torch.ones(1, *size, 1, dtype=torch.bool)
            else:
                one |= {"cam_trans": pose[None, :3, 3], "cam_quats": _quaternion(pose[:3, :3])[None]}
            out.append(one)
        return out

    class Model(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name: str) -> Model:
            assert name == "facebook/map-anything-apache"
            return cls()

        def infer(self, asked: list[Any], **options: Any) -> Any:
            assert options["use_amp"] is False
            return answer(asked)

        def forward(self, asked: list[Any]) -> Any:
            return answer(asked)

    modules("mapanything.models", MapAnything=Model, init_model_from_config=lambda name, device: Model())
    modules("mapanything.utils.image", preprocess_inputs=lambda views: views)
    found = _observed(MapAnything(hosts=hosts, frames=FRAMES, device="cpu"))
    _agrees(found["views"], size)
    assert found["views"].metric is (hosts is None)
    with pytest.raises(ValueError, match="hosts"):
        MapAnything(hosts="nothing")


def _quaternion(R: torch.Tensor) -> torch.Tensor:
    """x, y, z, w of a rotation by less than half a turn."""
    w = (1 + R.trace()).sqrt() / 2
    return torch.stack([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1], 4 * w * w]) / (4 * w)


def _shim_torchvision() -> None:
    """torchvision from PyPI beside a CPU build of torch misses two operators at import, which nothing here calls."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        from torch import library as operators

        declared = operators.Library("torchvision", "FRAGMENT")
        for name in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor d, Tensor s, float t) -> Tensor",
        ):
            declared.define(name)
        globals()["_declared"] = declared  # declared for as long as the process lives
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]


def test_da3_through_its_own_package() -> None:
    """The real DA3-SMALL class with random weights, its camera decoder set to a camera that is known."""
    pytest.importorskip("depth_anything_3", reason="depth-anything-3 is not installed (it wants an environment of its own)")
    _shim_torchvision()
    from depth_anything_3.api import DepthAnything3

    model = DepthAnything3(model_name="da3-small").eval()
    decoder = model.model.cam_dec
    with torch.no_grad():
        for layer, bias in (
            (decoder.fc_fov[0], (0.7, 1.2)),
            (decoder.fc_qvec, (0.0, 0.0, 0.0, 1.0)),
            (decoder.fc_t, (0.3, 0.0, -0.2)),
        ):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))

    class Small(DA3):
        def load(self) -> Any:
            return model

    found = _observed(Small(frames=5, size=112, device="cpu"))
    views, geometry = found["views"], found["geometry"]
    assert views.size == (70, 112)  # 67.2 x 112, each a multiple of the patch
    assert views.K[0, 0, 0] == pytest.approx(56 / np.tan(0.6), rel=1e-3)
    assert views.K[0, 1, 1] == pytest.approx(35 / np.tan(0.35), rel=1e-3)
    assert np.allclose(views.c2w[:, :3, :3], np.eye(3), atol=1e-4)
    assert np.allclose(np.abs(views.c2w[:, :3, 3]), [0.3, 0.0, 0.2], atol=1e-4)
    assert geometry.c2w.shape == (17, 4, 4)
    assert 0 <= geometry.rigidity <= 1


def test_colmap_through_its_own_package() -> None:
    pytest.importorskip("pycolmap", reason="pycolmap is not installed: pip install 'world-r1[colmap]'")
    probe = PyColmap(frames=FRAMES)
    (small,) = probe.observe([truth()[0]], [{}])
    assert isinstance(small, Degenerate)
    assert "480" in str(small)
    rng = np.random.default_rng(0)
    noise = replace(truth()[0], video=rng.integers(0, 256, (5, 480, 640, 3), dtype=np.uint8), trajectory=None)
    (lost,) = PyColmap(frames=5, size=640).observe([noise], [{}])
    assert isinstance(lost, Degenerate)
    assert "place" in str(lost)


def test_gaussians_come_with_some_weights_only() -> None:
    with pytest.raises(ValueError, match="giant"):
        DA3(gaussians=True)
    assert DA3("depth-anything/DA3-GIANT-1.1", gaussians=True).gaussians


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vggt", None)
    monkeypatch.setitem(sys.modules, "vggt.models.vggt", None)
    with pytest.raises(ImportError, match="pip install"):
        VGGT().load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": np.full((FRAMES, 96, 160), np.nan, np.float32)}, "finite"),
        ({"depth": np.full((FRAMES, 96, 160), -1.0, np.float32)}, "depth"),
        ({"depth": np.ones((FRAMES, 96, 80), np.float32)}, "depth must be"),
        ({"confidence": np.full((FRAMES, 96, 160), 7.0, np.float32)}, "confidence"),
        ({"c2w": np.zeros((FRAMES, 4, 4), np.float32)}, "rotations"),
        ({"c2w": np.tile(np.diag([1.0, 1.0, -1.0, 1.0]), (FRAMES, 1, 1))}, "rotations"),
        ({"K": np.tile(np.diag([1e-3, 1e-3, 1.0]), (FRAMES, 1, 1))}, "focal"),
        ({"frames": np.arange(FRAMES)[::-1]}, "ascend"),
    ],
)
def test_what_is_not_as_documented_is_refused(change: dict[str, Any], message: str) -> None:
    exact().checked()
    with pytest.raises(ValueError, match=message):
        replace(exact(), **change).checked()


def test_wrong_geometry_is_told_from_right_one_by_the_clip() -> None:
    """Not by the model: its confidence is the same in all of these."""
    clip = truth()[0]
    right = measured(clip, exact())
    value = lambda views: Reconstruction().score(clip, {"geometry": measured(clip, views)}).value  # noqa: E731
    best = value(exact())
    assert best is not None
    assert best > 0.75
    views = exact()
    flat = replace(views, depth=np.where(views.depth > 0, np.median(views.depth), 0).astype(np.float32))
    fast = replace(views, c2w=np.concatenate([views.c2w[:, :, :3], 1.6 * views.c2w[:, :, 3:] - 0.6 * views.c2w[:1, :, 3:]], -1))
    wide = replace(views, K=views.K * np.array([0.6, 0.6, 1])[:, None] + np.array([[0, 0, 32], [0, 0, 19.2], [0, 0, 0]]))
    for wrong in (flat, fast, wide):
        found = value(wrong)
        assert found is not None
        assert found < best - 0.1
    other = replace(views, size=(48, 80), depth=views.depth[:, ::2, ::2], confidence=views.confidence[:, ::2, ::2])
    halved = measured(clip, replace(other, K=views.K * np.array([0.5, 0.5, 1])[:, None]))
    assert halved.rigidity == pytest.approx(right.rigidity, abs=0.05)
    assert np.allclose(halved.K, right.K, rtol=1e-4)


def test_unknown_depth_is_degenerate() -> None:
    views = exact()
    with pytest.raises(Degenerate, match="depth"):
        measured(truth()[0], replace(views, depth=np.where(np.arange(160) < 40, views.depth, 0).astype(np.float32)))


def test_memory_is_tried_once_more_with_half_the_frames() -> None:
    asked: list[int] = []

    class Large(VGGT):
        def load(self) -> Any:
            return SimpleNamespace()

        def predict(self, model: Any, images: np.ndarray, frames: np.ndarray) -> Views:
            asked.append(len(frames))
            raise torch.OutOfMemoryError("no memory")

    (result,) = Large(frames=17, device="cpu").observe([truth()[0]], [{}])
    assert isinstance(result, RuntimeError)
    assert asked == [17, 8]
    assert _model.from_ratio(np.array([1.0, 2.0, np.inf])).tolist() == [0.0, 0.5, 1.0]
