"""The camera verdict of the assessment, on exact, scaled, opposite and frozen paths."""

import numpy as np
import pytest

from world_r1 import camera
from world_r1.blockworld import assess, scenes


def paths() -> list[camera.Command]:
    return [command for command in scenes.commands()[0] if command.text != "fixed"]


@pytest.mark.parametrize("command", paths()[::7], ids=lambda command: command.text)
def test_exact_and_scaled_paths_are_right_and_opposite_and_frozen_ones_wrong(command: camera.Command) -> None:
    commanded = camera.trajectory(command, scenes.FRAMES, (96, 160), scenes.PRESET)
    scaled = commanded.c2w.copy()
    scaled[:, :3, 3] *= 0.01
    opposite = np.linalg.inv(commanded.c2w)
    frozen = np.tile(np.eye(4, dtype=np.float32), (scenes.FRAMES, 1, 1))
    assert assess.direction_is_right(commanded, commanded.c2w)
    assert assess.direction_is_right(commanded, scaled)
    assert not assess.direction_is_right(commanded, opposite)
    assert not assess.direction_is_right(commanded, frozen)


def test_rotation_vector_inverts_the_exponential() -> None:
    angle = 0.7
    about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    assert np.allclose(assess.rotation_vector(about_y), [0, angle, 0])
    assert np.allclose(assess.rotation_vector(np.eye(3)), 0)
