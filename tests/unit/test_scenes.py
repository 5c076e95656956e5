"""blockworld's scenes: exact geometry, seeded sampling, captions that the camera parser reads back."""

import random

import pytest
import torch

from world_r1 import camera
from world_r1.blockworld import captions, data, model, raycast, scenes


@pytest.fixture(scope="module")
def batch() -> scenes.Scenes:
    return scenes.sample(6, seed=5)


@pytest.fixture(scope="module")
def rendered(batch: scenes.Scenes) -> raycast.Render:
    return scenes.render(batch, 24, 40, supersample=1)


def test_render_has_the_promised_shapes_and_ranges(rendered: raycast.Render) -> None:
    assert rendered.rgb.shape == (6, 3, scenes.FRAMES, 24, 40)
    assert rendered.depth.shape == rendered.surface.shape == (6, scenes.FRAMES, 24, 40)
    assert rendered.rgb.min() >= -1
    assert rendered.rgb.max() <= 1
    assert rendered.rgb.std() > 0.1
    assert torch.equal(rendered.depth == 0, rendered.surface == -1)


def test_depth_is_exact(batch: scenes.Scenes, rendered: raycast.Render) -> None:
    """Back-projected floor pixels lie on y = 0 and back-projected sphere pixels on their sphere."""
    k_inverse = torch.linalg.inv(raycast.intrinsics(24, 40, scenes.PRESET.fov_x))
    v, u = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1) @ k_inverse.T
    local = rays * rendered.depth[..., None]
    c2w = batch.tensors.c2w
    world = torch.einsum("btij,bthwj->bthwi", c2w[..., :3, :3], local) + c2w[:, :, None, None, :3, 3]
    floor = rendered.surface == raycast.FLOOR
    assert floor.any()
    assert world[floor][:, 1].abs().max() < 2e-3
    for k in range(scenes.MAX_OBJECTS):
        ball = (rendered.surface == raycast.OBJECTS + k) & (batch.tensors.shape[:, k] == 1)[:, None, None, None]
        distance = (world - batch.tensors.centre[:, :, None, None, k]).norm(dim=-1)
        radius = batch.tensors.half[:, k, 0][:, None, None, None].expand_as(distance)
        assert torch.allclose(distance[ball], radius[ball], atol=5e-3)


def test_supersampling_keeps_the_geometry(batch: scenes.Scenes, rendered: raycast.Render) -> None:
    fine = scenes.render(batch[:2], 24, 40, supersample=2)
    same = (fine.surface == rendered.surface[:2]).float().mean()
    assert same > 0.93
    assert (fine.rgb - rendered.rgb[:2]).abs().mean() < 0.12


def test_same_seed_same_scene_and_other_seed_another() -> None:
    first, again, other = (scenes.sample(4, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, again.tensors, strict=True))
    assert not torch.equal(first.tensors.attr, other.tensors.attr)
    assert captions.captions(first, 1) == captions.captions(again, 1)


def test_cameras_execute_their_commands(batch: scenes.Scenes) -> None:
    """Relative to the first pose, the path has the command's controls at the scene's own depth and pitch."""
    many = scenes.sample(400, seed=11)
    relative = torch.linalg.inv(many.tensors.c2w[:, :1]) @ many.tensors.c2w
    move = torch.tensor([0.0, 0.0, 1.0])
    for index, command in enumerate(many.command.tolist()):
        text = scenes.commands()[0][command].text
        position, forward = relative[index, -1, :3, 3], relative[index, -1, :3, :3] @ move
        if text == "fixed":
            assert torch.allclose(relative[index, -1], torch.eye(4), atol=1e-5)
        elif text == "push in":
            assert position[2] > 1.0
        elif text == "move right":
            assert position[0] > 0.9
            assert abs(position[2]) < 1e-4
        elif text == "pan left":
            assert position.norm() < 1e-4
            assert forward[0] < -0.4
        elif text == "orbit right":
            assert position[0] > 1.5
            assert forward[0] < -0.4


def test_the_camera_stays_inside_the_room() -> None:
    many = scenes.sample(300, seed=17)
    position = many.tensors.c2w[..., :3, 3]
    half_x, rear, front, high = many.tensors.room.unbind(-1)
    assert (position[..., 0].abs().amax(1) < half_x).all()
    assert (position[..., 2].amin(1) > rear).all()
    assert (position[..., 2].amax(1) < front).all()
    assert ((-position[..., 1]).amax(1) < high).all()
    assert ((-position[..., 1]).amin(1) > 0.2).all()


def test_only_the_first_object_moves_and_only_in_dynamic_scenes() -> None:
    still, moving = scenes.sample(20, seed=1, dynamic=False), scenes.sample(20, seed=1, dynamic=True)
    assert torch.equal(still.tensors.centre, still.tensors.centre[:, :1].expand_as(still.tensors.centre))
    travelled = (moving.tensors.centre - moving.tensors.centre[:, :1]).norm(dim=-1).amax(1)
    assert (travelled[:, 0] > 0.5).all()
    assert travelled[:, 1:].max() == 0


def test_captions_name_objects_from_left_to_right_and_parse_back() -> None:
    many = scenes.sample(150, seed=23)
    texts = captions.captions(many, 9)
    for text, fact in zip(texts, captions.attributes(many), strict=True):
        parsed = camera.parse(text)
        assert parsed is not None, text
        assert parsed.text == fact["command"], text
        colours = [fact["objects"][k]["colour"] for k in fact["order"]]
        positions = [text.lower().find(f"{colour} ") for colour in colours]
        assert min(positions) >= 0, text
    assert len(set(texts)) > 140


def test_dominant_object_is_the_one_with_most_pixels(batch: scenes.Scenes, rendered: raycast.Render) -> None:
    facts = captions.attributes(batch, dominant=True)
    for index, fact in enumerate(facts):
        areas = [(rendered.surface[index, [0, 8, 16]] == raycast.OBJECTS + k).sum().item() for k in range(scenes.MAX_OBJECTS)]
        assert areas[fact["dominant"]] >= 0.8 * max(areas)


def test_tokenizer_knows_every_caption_word() -> None:
    tokenizer = model.build_tokenizer()
    drawn = data.draw(64, 31)
    ids = tokenizer(drawn.texts, padding="max_length", max_length=model.TEXT_LENGTH, truncation=True)["input_ids"]
    unknown = tokenizer.unk_token_id
    assert all(unknown not in row for row in ids)
    assert max(sum(token != 0 for token in row) for row in ids) < model.TEXT_LENGTH


def test_stream_batches_follow_from_their_seed() -> None:
    one = data.draw(3, 8)
    assert data.draw(3, 8).texts == one.texts
    assert next(data.stream(3, 8, workers=0)).texts == one.texts
    assert captions.caption(one.facts[0], random.Random(0)) == captions.caption(one.facts[0], random.Random(0))


@pytest.mark.gpu
def test_gpu_and_cpu_draw_the_same_picture(batch: scenes.Scenes, rendered: raycast.Render) -> None:
    there = scenes.render(batch.to("cuda"), 24, 40, supersample=1)
    close = ((there.rgb.cpu() - rendered.rgb).abs() < 0.02).float().mean()
    assert close > 0.99
