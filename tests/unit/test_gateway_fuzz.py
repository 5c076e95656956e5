"""Requests drawn from the gateway's own OpenAPI description, and from beside it: every answer is one that the description names.

What schemathesis checks, without it: no server error, only documented status codes, documented content types, and conforming requests are
not refused for their parameters. `tests/unit/test_gateway.py` fuzzes the bodies.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from world_r1.config import RewardConfig, RewardsConfig
from world_r1.reward import Rubric
from world_r1.serving.bodies import MEDIA, NPZ, SAFETENSORS, Limits
from world_r1.types import Clip, Verdict

TOKEN = "correct horse battery staple"
VIDEO = np.full((2, 16, 16, 3), 9, np.uint8)


class Local:
    """What the gateway needs of a pool, on a rubric of this process."""

    name = "local"

    def __init__(self) -> None:
        self.rubric = Rubric(RewardsConfig(rewards=(RewardConfig(name="constant", options={"value": 0.25}),)))

    def score(self, clips: Sequence[Clip]) -> list[Verdict]:
        return self.rubric.judge(clips)


@pytest.fixture(scope="module")
def http() -> Any:
    pytest.importorskip("fastapi", reason="needs the extra gateway")
    pytest.importorskip("httpx", reason="needs httpx")
    from fastapi.testclient import TestClient

    from world_r1.serving.gateway_app import make_app

    limits = Limits(body=1 << 16, frames=20, pixels=64 * 64, unpacked=1 << 18)
    return TestClient(make_app([Local()], token=TOKEN, limits=limits), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def operations(http: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of everything that the description has."""
    return [(m, p, o) for p, item in http.get("/openapi.json").json()["paths"].items() for m, o in item.items()]


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, video=VIDEO)
    return file.getvalue()


GOOD = {NPZ: npz(), SAFETENSORS: save({"video": VIDEO})}


def conforming(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Values of a string parameter that its schema allows."""
    longest = schema.get("maxLength")
    if pattern := schema.get("pattern"):
        return st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True).filter(lambda x: longest is None or len(x) <= longest)
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=min(longest or 200, 200))


def breaking(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Values that it may not allow, very long ones among them."""
    return st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.sampled_from(
            ["", "\x00", "../..", "%00", "x" * (schema.get("maxLength", 100) + 1), "🎥" * 50, "{{7*7}}", "' or 1=1 --"]
        ),
    )


@st.composite
def requests(draw: st.DrawFn, operations: list[tuple[str, str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """(what to send, the operation, whether all of it conforms)."""
    method, path, operation = draw(st.sampled_from(operations))
    good = draw(st.booleans())
    query, headers = {}, {"Authorization": f"Bearer {TOKEN}"}
    for parameter in operation.get("parameters", ()):
        if draw(st.booleans()):
            query[parameter["name"]] = draw((conforming if good else breaking)(parameter["schema"]))
    sent: dict[str, Any] = {"method": method, "url": path, "params": query, "headers": headers}
    if not good and draw(st.booleans()):
        headers["Authorization"] = draw(st.sampled_from(["", "Bearer", "Bearer x", "Basic eDp5", "Bearer \xe9\xff"]))
    if "requestBody" in operation:
        kinds = list(operation["requestBody"]["content"])
        media = draw(
            st.sampled_from([kind for kind in kinds if kind in GOOD] if good else [*kinds, "", "text/html", "video/mp4; x=1"])
        )
        headers["Content-Type"] = media
        sent["content"] = GOOD[media] if good else draw(st.one_of(st.binary(max_size=300), st.just(npz())))
        if not good and draw(st.booleans()):
            sent["content"] = bytes((1 << 16) + 1)
    if not good and draw(st.integers(0, 9)) == 0:
        sent["method"] = draw(st.sampled_from(["put", "delete", "patch", "options"]))
    sent["headers"] = {name: value.encode("latin-1") for name, value in headers.items()}
    return sent, operation, good


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_every_answer_is_one_that_the_description_names(data: st.DataObject, http: Any, operations: Any) -> None:
    sent, operation, good = data.draw(requests(operations))
    answer = http.request(**sent)
    known = {405} if sent["method"] in ("put", "delete", "patch", "options") else {int(code) for code in operation["responses"]}
    assert answer.status_code in known, (sent, answer.text)
    assert answer.status_code != 500
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    answer.json()
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if good:
        camera = answer.status_code == 422 and "camera command" in answer.text  # a prompt may hold half a command
        assert answer.status_code == 200 or camera, (sent, answer.text)


def test_the_description_leaves_nothing_to_guess(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    assert {(method, path) for method, path, _ in operations} == {("get", "/v1/health"), ("post", "/v1/score")}
    for _, path, operation in operations:
        assert operation["summary"], path
        assert "401" in operation["responses"]
        for parameter in operation.get("parameters", ()):
            assert {"maxLength", "pattern"} & parameter["schema"].keys(), "every string that a stranger sends is bounded"


def test_schemathesis_finds_nothing(http: Any) -> None:
    """Where that package is installed (it is no dependency): its own checks, on requests of its own making."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # a schema cannot say which bytes are a video

    for media in MEDIA:
        schemathesis.serializer(media)(lambda _, value: value if isinstance(value, bytes) else str(value).encode())
    for media, body in GOOD.items():  # everything is imported before requests have a time-out
        assert http.post("/v1/score", content=body, headers={"Content-Type": media, "Authorization": f"Bearer {TOKEN}"}).is_success
    for operation in schemathesis.openapi.from_asgi("/openapi.json", http.app).get_all_operations():

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def holds(case: Any) -> None:
            case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=[positive_data_acceptance])

        holds()
