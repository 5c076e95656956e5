"""Videos survive the way to a file and back; contact sheets show what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from world_r1 import video as video_module
from world_r1.video import contact_sheet, read_mp4, write_mp4, write_png


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """A bright square on a smooth ramp, two pixels further right in every frame."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([40 + 100 * x / width, 60 + 80 * y / height, np.full((height, width), 90.0)], -1)
    video = np.repeat(ramp[None], frames, 0)
    for t in range(frames):
        video[t, 8:16, 4 + 2 * t : 12 + 2 * t] = 220
    return video.round().astype(np.uint8)


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (32, 51)])
def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], encoder: str) -> None:
    monkeypatch.setattr(video_module, "ENCODERS", tuple(e for e in video_module.ENCODERS if e[0] == encoder))
    video = moving(17, *size)
    path = write_mp4(tmp_path / "deep" / "clip.mp4", video, fps=8.0)
    again, fps = read_mp4(path)
    assert again.shape == video.shape
    assert again.dtype == np.uint8
    assert fps == 8.0
    error = np.abs(again.astype(int) - video).mean()
    assert error < 4
    assert np.abs(again[5].astype(int) - video[6]).mean() > 1.1 * np.abs(again[5].astype(int) - video[5]).mean()
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("fps", [7.5, 24.0, 30000 / 1001])
def test_frame_rates(tmp_path: Path, fps: float) -> None:
    assert read_mp4(write_mp4(tmp_path / "a.mp4", moving(5, 32, 32), fps))[1] == pytest.approx(fps, rel=1e-6)


def test_the_same_video_gives_the_same_file(tmp_path: Path) -> None:
    first, second = (write_mp4(tmp_path / f"{name}.mp4", moving(9, 48, 64)) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "ENCODERS", (("no_such_encoder", {}),))
    with pytest.raises(ValueError, match="none of the encoders no_such_encoder"):
        write_mp4(tmp_path / "a.mp4", moving(3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got float32"):
        write_mp4(tmp_path / "a.mp4", np.zeros((3, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="frame rate"):
        write_mp4(tmp_path / "a.mp4", moving(3, 32, 32), fps=0)
    with pytest.raises(FileNotFoundError):
        read_mp4(tmp_path / "none.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(ValueError, match=r"bad\.mp4 is not a readable video"):
        read_mp4(tmp_path / "bad.mp4")


def test_contact_sheet_has_a_row_a_video_and_the_right_frames() -> None:
    first, second = np.zeros((9, 20, 30, 3), np.uint8), np.zeros((2, 10, 40, 3), np.uint8)
    first += np.arange(9, dtype=np.uint8)[:, None, None, None] * 10
    second += 200
    sheet = contact_sheet([first, second], frames=3, gap=2)
    assert sheet.shape == (20 + 2 + 10 + 2, max(3 * 32, 2 * 42), 3)
    assert [int(sheet[5, x, 0]) for x in (5, 37, 69)] == [0, 40, 80]
    assert int(sheet[25, 5, 0]) == 200


def test_labels_are_drawn_and_cut_to_the_width() -> None:
    videos = np.zeros((2, 5, 16, 24, 3), np.uint8)
    plain = contact_sheet(videos, frames=2)
    labelled = contact_sheet(videos, frames=2, labels=["word " * 40, ""])
    assert labelled.shape[1] == plain.shape[1]
    assert labelled.shape[0] == plain.shape[0] + 2 * 16
    assert labelled[:16].max() > 200
    assert labelled[34:50].max() < 50
    with pytest.raises(ValueError, match="1 labels for 2 videos"):
        contact_sheet(videos, labels=["one"])
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_png_round_trip(tmp_path: Path) -> None:
    from PIL import Image

    image = moving(1, 17, 23)[0]
    assert np.array_equal(np.asarray(Image.open(write_png(tmp_path / "a" / "x.png", image))), image)
    with pytest.raises(ValueError, match="a picture is uint8"):
        write_png(tmp_path / "y.png", image.astype(np.float32))
