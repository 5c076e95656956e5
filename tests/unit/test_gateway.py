"""The HTTP gateway in front of a rubric in this process: what it answers, and everything that it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from world_r1 import cli
from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import Rubric
from world_r1.serving import bodies, gateway
from world_r1.serving.bodies import MEDIA, MP4, NPZ, SAFETENSORS, Limits, Refused, video_of
from world_r1.types import Clip, Verdict
from world_r1.video import write_mp4

LIMITS = Limits(body=1 << 20, frames=20, pixels=64 * 64, unpacked=1 << 18)
TOKEN = "correct horse battery staple"


class Local:
    """What the gateway needs of a pool, on a rubric of this process."""

    name = "local"

    def __init__(self) -> None:
        self.rubric = Rubric(RewardsConfig(rewards=(RewardConfig(name="constant", options={"value": 0.25}),)))
        self.seen: list[Clip] = []

    def score(self, clips: Sequence[Clip]) -> list[Verdict]:
        self.seen += clips
        return self.rubric.judge(clips)


def npz(video: Any = None, **arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **({"video": frames()} if video is None else {"video": video}), **arrays)
    return file.getvalue()


def frames(count: int = 3, height: int = 18, width: int = 22) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture
def pool() -> Local:
    return Local()


@pytest.fixture
def http(pool: Local) -> Any:
    pytest.importorskip("fastapi", reason="needs the extra gateway")
    pytest.importorskip("httpx", reason="needs httpx")
    from fastapi.testclient import TestClient

    from world_r1.serving.gateway_app import make_app

    return TestClient(make_app([pool], token=TOKEN, limits=LIMITS), headers={"Authorization": f"Bearer {TOKEN}"})


def test_an_npz_is_scored_and_comes_to_the_worker_as_it_was_sent(http: Any, pool: Local) -> None:
    query = {"prompt": "Camera push in. A red box.", "kind": "rigid", "id": "mine"}
    answer = http.post("/v1/score", params=query, content=npz(fps=12.0), headers={"Content-Type": NPZ})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["id"], said["total"]) == ("mine", 0.25)
    assert said["scores"] == [{"reward": "constant", "status": "ok", "value": 0.25, "parts": {}, "reason": ""}]
    (clip,) = pool.seen
    assert np.array_equal(clip.video, frames())
    assert (clip.fps, clip.prompt.text) == (12.0, query["prompt"])
    assert clip.trajectory is not None
    assert clip.trajectory.command == "push in"


def test_a_safetensors_body_is_scored(http: Any, pool: Local) -> None:
    body = save({"video": frames(), "fps": np.array(12.5)})
    answer = http.post("/v1/score", content=body, headers={"Content-Type": SAFETENSORS})
    assert answer.json()["total"] == 0.25, answer.text
    assert np.array_equal(pool.seen[0].video, frames())
    assert pool.seen[0].fps == 12.5
    assert http.post("/v1/score", content=save({"video": frames()}), headers={"Content-Type": SAFETENSORS}).status_code == 200
    assert pool.seen[1].fps == 8.0


def test_an_mp4_is_scored(http: Any, pool: Local, tmp_path: Path) -> None:
    body = write_mp4(tmp_path / "a.mp4", np.full((5, 32, 48, 3), 77, np.uint8), fps=6.0).read_bytes()
    assert http.post("/v1/score", content=body, headers={"Content-Type": MP4}).json()["total"] == 0.25
    assert pool.seen[0].video.shape == (5, 32, 48, 3)
    assert abs(int(pool.seen[0].video.mean()) - 77) < 5
    assert pool.seen[0].fps == 6.0


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_without_the_token_nothing_is_read(given: str, http: Any, pool: Local) -> None:
    answer = http.post(
        "/v1/score", content=npz(), headers={"Content-Type": NPZ, "Authorization": given.strip() + "x" * given.endswith(" ")}
    )
    assert answer.status_code == 401
    assert http.get("/v1/health", headers={"Authorization": given}).status_code == 401
    assert pool.seen == []
    assert http.get("/v1/health").json() == {"pools": ["local"]}


def _archive(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return file.getvalue()


def _header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _tensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file whose header may promise anything."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: Sequence[int], end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}


BAD = {
    "safetensors: empty": (b"", SAFETENSORS, 422),
    "safetensors: a header of the whole memory": (struct.pack("<Q", 1 << 60) + b"{}", SAFETENSORS, 422),
    "safetensors: no video": (save({"other": frames()}), SAFETENSORS, 422),
    "safetensors: floats": (save({"video": np.zeros((3, 18, 22, 3), np.float32)}), SAFETENSORS, 422),
    "safetensors: too many frames": (save({"video": np.zeros((21, 18, 22, 3), np.uint8)}), SAFETENSORS, 413),
    "safetensors: a terabyte": (_tensors({"video": _entry((20, 1 << 20, 1 << 20, 3), 60 << 40)}), SAFETENSORS, 413),
    "safetensors: without its data": (_tensors({"video": _entry((3, 18, 22, 3), 3564)}), SAFETENSORS, 422),
    "safetensors: no shape": (_tensors({"video": [1]}), SAFETENSORS, 422),
    "safetensors: a list": (struct.pack("<Q", 9) + b'["video"]', SAFETENSORS, 422),
    "safetensors: fps of two": (save({"video": frames(), "fps": np.ones(2)}), SAFETENSORS, 422),
    "safetensors: a nest": (struct.pack("<Q", 60_000) + b"[" * 60_000, SAFETENSORS, 422),
    "empty": (b"", NPZ, 422),
    "garbage": (b"PK\x03\x04 nothing", NPZ, 422),
    "no video": (_archive(other_npy=b"x"), NPZ, 422),
    "a pickled array": (npz(np.array([{"a": 1}], dtype=object)), NPZ, 422),
    "floats": (npz(np.zeros((3, 18, 22, 3), np.float32)), NPZ, 422),
    "grey": (npz(np.zeros((3, 18, 22), np.uint8)), NPZ, 422),
    "no frames": (npz(np.zeros((0, 18, 22, 3), np.uint8)), NPZ, 422),
    "too many frames": (npz(np.zeros((21, 18, 22, 3), np.uint8)), NPZ, 413),
    "too large frames": (npz(np.zeros((1, 65, 64, 3), np.uint8)), NPZ, 413),
    "a header that promises a terabyte": (_archive(video_npy=_header((20, 1 << 20, 1 << 20, 3))), NPZ, 413),
    "a header without its data": (_archive(video_npy=_header((3, 18, 22, 3))), NPZ, 422),
    "a bomb beside a small video": (_archive(video_npy=b"", bomb_npy=bytes(4 << 20)), NPZ, 422),
    "fps zero": (npz(fps=0.0), NPZ, 422),
    "fps nan": (npz(fps=np.nan), NPZ, 422),
    "fps of two": (npz(fps=np.ones(2)), NPZ, 422),
    "too small": (npz(np.zeros((3, 8, 22, 3), np.uint8)), NPZ, 422),
    "a playlist": (b"#EXTM3U\nfile:///etc/passwd\n", MP4, 422),
    "an mp4 that is none": (b"\0\0\0\x18ftypisom" + bytes(100), MP4, 422),
    "another type": (npz(), "application/octet-stream", 415),
    "no type": (npz(), "", 415),
    "too long": (bytes(LIMITS.body + 1), NPZ, 413),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_a_reason(name: str, http: Any, pool: Local) -> None:
    body, media, status = BAD[name]
    answer = http.post("/v1/score", content=body, headers={"Content-Type": media} if media else {})
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["detail"], str)
    assert pool.seen == []


def test_an_mp4_is_bounded_while_it_is_decoded(tmp_path: Path) -> None:
    long = write_mp4(tmp_path / "long.mp4", np.zeros((40, 32, 32, 3), np.uint8)).read_bytes()
    large = write_mp4(tmp_path / "large.mp4", np.zeros((2, 128, 128, 3), np.uint8)).read_bytes()
    for body in (long, large):
        with pytest.raises(Refused, match="at most 20 frames") as refused:
            video_of(body, MP4, LIMITS)
        assert refused.value.status == 413


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    body = _archive(video_npy=_header((3, 18, 22, 3)) + bytes(3 * 18 * 22 * 3), bomb_npy=bytes(4 << 20))
    monkeypatch.setattr(bodies.np, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(Refused, match="unpacked it has more than"):
        video_of(body, NPZ, LIMITS)


def test_a_body_of_unknown_length_is_given_up_at_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    with pytest.raises(Refused, match="at most 5000 bytes"):
        asyncio.run(gateway.bounded(endless(), None, 5000))
    assert sent == 6000


def _npy(shape: Sequence[int], descr: str, data: bytes) -> bytes:
    """An array file whose header may promise anything."""
    head = repr({"descr": descr, "fortran_order": False, "shape": tuple(shape)}).encode() + b"        \n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Archives that are nearly right: odd shapes and types, too little data, a flipped byte."""
    shape = draw(st.lists(st.one_of(st.integers(0, 24), st.integers(-3, 1 << 40)), min_size=3, max_size=5))
    count = int(np.prod([max(0, min(side, 64)) for side in shape], dtype=object))
    data = bytes(min(count, 1 << 17)) if draw(st.booleans()) else b"x" * 7
    files = {"video_npy": _npy(shape, draw(st.sampled_from(["|u1", "|u1", "<f4", "|O", "junk"])), data)}
    if draw(st.booleans()):
        shape, descr = draw(st.sampled_from([(), (2,)])), draw(st.sampled_from(["<f8", "|O", "|S4"]))
        files["fps_npy"] = _npy(shape, descr, draw(st.binary(min_size=8, max_size=8)))
    return _flipped(draw, _archive(**files))


@cache
def _film() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_mp4(Path(folder) / "a.mp4", frames(3, 32, 32)).read_bytes()


@st.composite
def films(draw: st.DrawFn) -> bytes:
    """MP4 files with flipped bytes, or cut short."""
    body = _flipped(draw, _film())
    return body[: draw(st.integers(0, len(body)))]


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """Safetensors files that are nearly right."""
    shape = draw(st.lists(st.one_of(st.integers(0, 24), st.integers(-3, 1 << 40)), min_size=3, max_size=5))
    data = bytes(draw(st.sampled_from([0, 7, 3 * 18 * 22 * 3])))
    entry = _entry(
        draw(st.sampled_from([shape, [3, 18, 22, 3]])), len(data), draw(st.sampled_from(["U8", "U8", "F32", "BOOL", "x"]))
    )
    fps = {"fps": _entry((), 4, "F32")} if draw(st.booleans()) else {}
    return _flipped(draw, _tensors({"video": entry, **fps}, data))


def _flipped(draw: st.DrawFn, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(draw(st.integers(0, 4))):
        changed[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        archives().map(lambda b: (b, NPZ)),
        films().map(lambda b: (b, MP4)),
        tensors().map(lambda b: (b, SAFETENSORS)),
        st.tuples(st.binary(max_size=99), st.sampled_from(MEDIA)),
    )
)
def test_whatever_is_sent_is_a_video_within_the_limits_or_refused(sent: tuple[bytes, str]) -> None:
    with contextlib.suppress(Refused):
        video, fps = video_of(*sent, LIMITS)
        _within_limits(video, fps)


def _within_limits(video: np.ndarray, fps: float) -> None:
    assert video.dtype == np.uint8
    assert video.shape[3] == 3
    assert video.shape[0] <= LIMITS.frames
    assert video.nbytes <= LIMITS.unpacked
    assert 0 < fps <= 1000


@pytest.mark.parametrize("query", [{"kind": "other"}, {"id": "../x y"}, {"prompt": "x" * 4001}, {"id": "x" * 129}])
def test_a_parameter_out_of_range_is_refused(query: dict[str, str], http: Any) -> None:
    assert http.post("/v1/score", params=query, content=npz(), headers={"Content-Type": NPZ}).status_code == 422


def test_a_pool_that_is_gone_is_503(http: Any, pool: Local) -> None:
    def gone(clips: Sequence[Clip]) -> list[Verdict]:
        raise RuntimeError("the pool died with a secret path")

    pool.score = gone  # type: ignore[method-assign]
    answer = http.post("/v1/score", content=npz(), headers={"Content-Type": NPZ})
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_the_description_names_all_bodies_and_every_status(http: Any) -> None:
    operation = http.get("/openapi.json").json()["paths"]["/v1/score"]["post"]
    assert operation["requestBody"]["content"].keys() == set(MEDIA)
    assert {"200", "401", "413", "415", "422", "503"} <= operation["responses"].keys()


@pytest.mark.parametrize(
    ("host", "closed"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.1.2.3", False), ("node7", False)],
)
def test_off_loopback_a_token_is_required(host: str, closed: bool) -> None:
    gateway.refuse_open_door(host, TOKEN)
    if closed:
        gateway.refuse_open_door(host, None)
    else:
        with pytest.raises(ValueError, match="give --token-file"):
            gateway.refuse_open_door(host, None)


def test_a_short_token_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text("short\n", encoding="utf-8")
    assert cli.run(["rewards", "serve", "--pool", "a", "--token-file", str(file)]) == 2
    assert "a token has at least 16 characters, got 5" in capsys.readouterr().err
    assert cli.run(["rewards", "serve", "--pool", "a", "--host", "0.0.0.0"]) == 2
    assert "give --token-file" in capsys.readouterr().err
