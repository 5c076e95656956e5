"""S_meta with a vision-language judge: reconstruction, new view, question over HTTP, score, from end to end."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import contract_worlds as worlds
import cv2
import numpy as np
import pytest

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import Rubric


class Server(ThreadingHTTPServer):
    """Answers every question with digit 8, or refuses; keeps pictures and texts."""

    daemon_threads = True

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []
        self.texts: list[str] = []
        self.refuses = False
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *_, picture, text = body["messages"][1]["content"]
        data = np.frombuffer(base64.b64decode(picture["image_url"]["url"].partition(",")[2]), np.uint8)
        self.server.pictures.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
        self.server.texts.append(text["text"])
        message = {"content": "8", "refusal": "I cannot" if self.server.refuses else None}
        token = {"token": "8", "logprob": math.log(0.9)}
        reply = {"choices": [{"message": message, "logprobs": {"content": [{"top_logprobs": [token]}]}}]}
        payload = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_judge_sees_the_new_view_and_its_rubrics_go_into_the_score(server: Server) -> None:
    judge = {"base_url": f"http://127.0.0.1:{server.server_address[1]}/v1", "model": "some-vlm", "cache": 0}
    probes = {"flow_ba": {}, "novel_view": {}, "judge.view": {"transport": "openai", "judge": judge, "min_pixels": 1}}
    rubric = Rubric(RewardsConfig(rewards=(RewardConfig(name="meta_view"),), probes=probes))
    clip = worlds.world(2, "move right", supersample=1).clip()
    (score,) = rubric.judge([clip])[0].scores
    assert score.value == pytest.approx(score.parts["motion"] * 8 / 9)
    assert score.parts["quality"] == score.parts["fidelity"] == pytest.approx(8 / 9)
    assert score.versions["quality"].startswith("view_quality@1 sha256:")
    assert score.versions["fidelity"].startswith("view_fidelity@1 sha256:")
    assert score.versions["model"] == "some-vlm"
    first, second = server.pictures
    assert np.array_equal(first, second)
    assert first.shape == clip.video.shape[1:]
    nearest = min(np.abs(first.astype(float) - frame).mean() for frame in clip.video)
    assert nearest > 3, "a new view, not a frame of the clip"
    assert all('"move right"' in text for text in server.texts)

    server.refuses = True
    (score,) = rubric.judge([clip])[0].scores
    assert (score.status, score.value) == ("failed", None)
    assert "refused" in score.reason
