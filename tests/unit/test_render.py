"""Points, gaussians, meshes: drawn where geometry says, checked against closed forms and against other people's readers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from world_r1_rewards import fuse
from world_r1_rewards.discrimination import world
from world_r1_rewards.probes._views import Views
from world_r1_rewards.render import Gaussians, gaussians, project_gaussians, splat

from world_r1.blockworld import raycast, scenes

K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]])
SIZE = (30, 40)


def looking(x: float = 0.0, z: float = 0.0) -> torch.Tensor:
    pose = torch.eye(4)
    pose[0, 3], pose[2, 3] = x, z
    return pose


def test_a_point_lands_where_the_pinhole_says_and_the_nearer_one_wins() -> None:
    near, far = torch.tensor([[0.0125, 0.0125, 1.0]]), torch.tensor([[0.025, 0.025, 2.0]])  # both at (20.5, 15.5): pixel 20, 15
    red, blue = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 0, 1]])
    for order in ([0, 1], [1, 0]):
        drawn = splat(torch.cat([near, far])[order], torch.cat([red, blue])[order], looking()[None], K, SIZE)
        assert drawn.image[0, 15, 20].tolist() == pytest.approx([1, 0, 0])
        assert drawn.depth[0, 15, 20] == pytest.approx(1.0)
    assert not drawn.covered[0, :10].any()
    assert not splat(near, red, looking(z=5.0)[None], K, SIZE).covered.any()  # behind the camera


def test_views_of_a_batch_are_those_of_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=g) * torch.tensor([2.0, 2, 2]) + torch.tensor([-1.0, -1, 1])
    colours = torch.rand(500, 3, generator=g)
    poses = torch.stack([looking(x) for x in (-0.3, 0.0, 0.4)])
    lenses = torch.stack([K, K * torch.tensor([1.5, 1.5, 1])[:, None] - torch.tensor([[0, 0, 10], [0, 0, 7.5], [0, 0, 0]]), K])
    together = splat(points, colours, poses, lenses, SIZE)
    for i in range(3):
        alone = splat(points, colours, poses[i : i + 1], lenses[i], SIZE)
        assert torch.equal(alone.covered[0], together.covered[i])
        assert torch.allclose(alone.image[0], together.image[i], atol=1e-5)
        assert torch.allclose(alone.depth[0], together.depth[i], atol=1e-5)


def test_a_rendered_world_is_redrawn_from_its_own_depth() -> None:
    scene = world("tuning", 2)
    c2w = scene.tensors.c2w[0, 0] @ scene.poses()[:5]
    tensors = scene.tensors._replace(c2w=c2w[None], centre=scene.tensors.centre[:, :5])
    rgb, depth, _ = raycast.cast(tensors, 48, 80, scenes.PRESET.fov_x, 1)
    lens = raycast.intrinsics(48, 80, scenes.PRESET.fov_x)
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(lens).T
    seen = depth[0, 0] > 0
    points = (rays * depth[0, 0, ..., None])[seen] @ c2w[0, :3, :3].T + c2w[0, :3, 3]
    pictures = rgb[0].permute(1, 2, 3, 0) / 2 + 0.5
    drawn = splat(points, pictures[0][seen], c2w[[0, 4]], lens, (48, 80))
    both = drawn.covered[1] & (depth[0, 4] > 0)
    assert both.float().mean() > 0.5
    error = (drawn.depth[1] - depth[0, 4]).abs()[both] / depth[0, 4][both]
    assert error.median() < 0.03
    assert (drawn.image[1] - pictures[4]).abs()[both].mean() < 0.05
    assert (drawn.image[1] - pictures[4]).abs()[both].mean() < 0.7 * (pictures[0] - pictures[4]).abs()[both].mean()


def ball(count: int = 1, degree: int = 0, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(count, 3, generator=g) + torch.tensor([-0.5, -0.5, 2.0])
    return Gaussians(
        means, 0.02 + 0.1 * torch.rand(count, 3, generator=g), torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        0.3 + 0.6 * torch.rand(count, generator=g), 0.3 * torch.randn(count, 3, (degree + 1) ** 2, generator=g),
    )  # fmt: skip


def test_one_gaussian_is_its_closed_form() -> None:
    """An isotropic one on the axis: alpha = o exp(-r^2 / 2 (f^2 s^2 / z^2 + 0.3)) about the principal point."""
    one = Gaussians(
        torch.tensor([[0.0, 0, 2]]), torch.full((1, 3), 0.1), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0.8]),
        torch.tensor([[[1.0], [0.0], [-1.0]]]),
    )  # fmt: skip
    drawn = gaussians(one, looking()[None], K, SIZE)
    variance = (40 * 0.1 / 2) ** 2 + 0.3
    y, x = np.mgrid[:30, :40] + 0.5
    alpha = 0.8 * np.exp(-((x - 20) ** 2 + (y - 15) ** 2) / (2 * variance))
    alpha[alpha < 1 / 255] = 0
    assert np.allclose(drawn.covered[0].numpy(), alpha, atol=1e-4)
    assert drawn.image[0, 14, 19].tolist() == pytest.approx(
        [alpha[14, 19] * c for c in (0.5 + 0.28209479, 0.5, 0.5 - 0.28209479)], rel=1e-4
    )
    assert drawn.depth[0, 14, 19] == pytest.approx(2.0, rel=1e-4)


def test_gaussians_front_to_back_whatever_their_order() -> None:
    scene = ball(40, degree=2)
    pose = looking(0.2)[None]
    drawn = gaussians(scene, pose, K, SIZE)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    mixed = Gaussians(*(getattr(scene, name)[order] for name in ("means", "scales", "rotations", "opacities", "harmonics")))
    assert torch.allclose(drawn.image, gaussians(mixed, pose, K, SIZE).image, atol=1e-5)
    assert (drawn.covered <= 1).all()
    flipped = Gaussians(scene.means, scene.scales, -scene.rotations, scene.opacities, scene.harmonics)  # the same rotations
    assert torch.allclose(drawn.image, gaussians(flipped, pose, K, SIZE).image, atol=1e-5)


def test_projection_is_that_of_gsplat() -> None:
    reference = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed: pip install 'world-r1[gsplat]'")
    scene, pose = ball(30), looking(0.1)
    covariances, _ = reference._quat_scale_to_covar_preci(scene.rotations, scene.scales, compute_covar=True, compute_preci=False)
    radii, means, depths, conics, _ = reference._fully_fused_projection(
        scene.means, covariances, torch.linalg.inv(pose)[None], K[None], 40, 30, eps2d=0.3
    )
    mean, conic, depth, order = project_gaussians(scene, pose, K)
    assert (radii > 0).any()
    assert torch.allclose(means[0, order], mean, atol=1e-3)
    assert torch.allclose(depths[0, order], depth, atol=1e-5)
    assert torch.allclose(conics[0, order], torch.stack([conic[:, 0, 0], conic[:, 0, 1], conic[:, 1, 1]], -1), rtol=1e-2, atol=1e-3)


def test_gaussians_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="rotations"):
        Gaussians(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="harmonics"):
        Gaussians(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="backend"):
        gaussians(ball(), looking()[None], K, SIZE, backend="opengl")
    with pytest.raises(ValueError, match="CUDA"):
        gaussians(ball(), looking()[None], K, SIZE, backend="gsplat")
    with pytest.raises(ValueError, match="degree"):
        gaussians(ball(2, degree=3), looking()[None], K, SIZE, backend="reference")


def cube() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    return corners, (corners * 255).astype(np.uint8), np.array([[0, 1, 2], [1, 3, 2], [4, 6, 5], [5, 6, 7]])


@pytest.mark.parametrize("with_faces", [False, True])
def test_ply_and_glb_hold_what_was_written(tmp_path: Path, with_faces: bool) -> None:
    points, colours, faces = cube()
    given = faces if with_faces else None
    data = fuse.write_ply(tmp_path / "a.ply", points, colours, given).read_bytes()
    head, _, body = data.partition(b"end_header\n")
    assert b"element vertex 8" in head
    assert np.frombuffer(body[:15], np.float32, 3).tolist() == [0, 0, 0]
    assert len(body) == 8 * 15 + (4 * 13 if with_faces else 0)
    data = fuse.write_glb(tmp_path / "a.glb", points, colours, given).read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size = struct.unpack("<I", data[12:16])[0]
    gltf, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    assert gltf["buffers"][0]["byteLength"] == len(binary)
    found = np.frombuffer(binary[: 8 * 12], np.float32).reshape(8, 3)
    assert np.allclose(found, points * [1, -1, -1])
    assert gltf["accessors"][0]["max"] == [1.0, 0.0, 0.0]
    assert gltf["meshes"][0]["primitives"][0]["mode"] == (4 if with_faces else 0)


def test_what_is_no_cloud_is_refused(tmp_path: Path) -> None:
    points, colours, faces = cube()
    for bad in (
        (points[:, :2], colours, None),
        (points, colours / 255, None),
        (points * np.nan, colours, None),
        (points, colours, faces + 5),
    ):
        with pytest.raises(ValueError, match="must be"):
            fuse.write_ply(tmp_path / "a.ply", *bad)


def test_fusion_of_a_room_is_the_room() -> None:
    pytest.importorskip("open3d", reason="open3d is not installed: pip install 'world-r1[open3d]'")
    scene = world("tuning", 2)
    c2w = (scene.tensors.c2w[0, 0] @ scene.poses())[::4]
    rgb, depth, _ = raycast.cast(
        scene.tensors._replace(c2w=c2w[None], centre=scene.tensors.centre[:, ::4]), 96, 160, scenes.PRESET.fov_x, 1
    )
    images = ((rgb[0].permute(1, 2, 3, 0) + 1) * 127.5).to(torch.uint8).numpy()
    lens = np.repeat(raycast.intrinsics(96, 160, scenes.PRESET.fov_x).numpy()[None], len(c2w), 0)
    maps = depth[0].numpy()
    views = Views(np.arange(len(c2w)), c2w.numpy(), lens, (96, 160), maps, np.ones_like(maps), "exact")
    vertices, colours, faces = fuse.mesh(images, views)
    assert len(faces) > 5000
    assert colours.std() > 5
    floor = vertices[vertices[:, 1] > -0.05]  # the ground is y = 0 in blockworld, y down
    assert len(floor) > 500
    assert np.abs(floor[:, 1]).max() < 0.12
    with_stray = np.concatenate([vertices, [[0, -60, 0]]]).astype(np.float32)
    kept, _ = fuse.without_outliers(with_stray, np.concatenate([colours, colours[:1]]))
    assert kept[:, 1].min() > -59
    assert len(kept) > 0.8 * len(vertices)
