"""The HTTP judge against a real server on loopback that speaks the protocol and misbehaves when told to."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from world_r1_rewards.judges.answers import DIGITS, YES_NO, Answer, JudgeError, Question
from world_r1_rewards.judges.openai import NoLogprobs, OpenAIJudge, Refused
from world_r1_rewards.judges.wire import HTTPStatus, OverBudget, Pace

from tests.unit.judge_server import (
    QUICK,
    Endpoint,
    Handler,
    Misdeed,
    completion,
    cut,
    judge,
    question,
    running,
    says,
    sleep,
    status,
    trickle,
)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with running() as server:
        yield server


def test_the_answer_is_the_expectation_over_the_digits(endpoint: Endpoint) -> None:
    (found,) = judge(endpoint).ask([question()])
    assert isinstance(found, Answer)
    mass = 0.9
    expected = (7 * 0.6 + 8 * 0.2 + 3 * 0.1) / mass
    assert 9 * found.level == pytest.approx(expected)
    assert found.mass == pytest.approx(mass)
    shares = np.array([0.6, 0.2, 0.1]) / mass
    assert found.entropy == pytest.approx(float(-(shares * np.log(shares)).sum()))
    assert found.details["input_tokens"] == 1000
    assert (found.details["frames"], found.details["height"], found.details["width"]) == (2, 6, 10)
    assert found.model == "some-vlm"


def test_the_request_is_what_the_protocol_says(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-7")
    shown = question(frames=2)
    shown.frames[1] = np.arange(180, dtype=np.uint8).reshape(6, 10, 3)
    judge(endpoint, api_key_env="SOME_KEY").ask([shown])
    ((path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-7"
    assert body["model"] == "some-vlm"
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 0, True, 20)
    assert body["structured_outputs"] == {"choice": list(DIGITS)}
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You grade."}
    assert [part.get("text") for part in user["content"]] == ["Second 0.00:", None, "Second 0.50:", None, "Your digit:"]
    url = user["content"][3]["image_url"]["url"]
    data = np.frombuffer(base64.b64decode(url.removeprefix("data:image/png;base64,")), np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], shown.frames[1]), "PNG is lossless, channels in order"


@pytest.mark.parametrize(
    ("dialect", "field", "value"),
    [
        ("sglang", "regex", "(no|yes)"),
        ("openai", "max_completion_tokens", 1),
        ("vllm", "structured_outputs", {"choice": ["no", "yes"]}),
    ],
)
def test_dialects_constrain_the_answer_in_their_own_way(endpoint: Endpoint, dialect: str, field: str, value: Any) -> None:
    endpoint.always = says(completion({"Yes": 0.7, "yes": 0.1, "no": 0.2}))
    (found,) = judge(endpoint, dialect=dialect).ask([question(choices=YES_NO)])
    assert isinstance(found, Answer)
    assert found.probabilities["yes"] == pytest.approx(0.8)
    body = endpoint.requests[0][2]
    assert body[field] == value
    assert ("max_tokens" in body) == (dialect != "openai")


@pytest.mark.parametrize(
    "misdeeds",
    [
        [status(500)],
        [status(429, Retry_After="0.01"), status(503)],
        [cut],
        [says(b"<html>oops</html>")],
        [says(b'{"choices": [{"mess')],
        [says([1, 2])],
        [status(408), cut, status(529)],
    ],
    ids=["500", "429 and 503", "cut", "html", "half a body", "a list", "three in a row"],
)
def test_what_may_pass_is_tried_again(endpoint: Endpoint, misdeeds: list[Misdeed]) -> None:
    endpoint.misdeeds = list(misdeeds)
    asked = judge(endpoint)
    (found,) = asked.ask([question()])
    assert isinstance(found, Answer)
    assert len(endpoint.requests) == len(misdeeds) + 1
    assert asked.totals["attempts"] == len(misdeeds) + 1
    assert asked.totals["requests"] == 1


@pytest.mark.parametrize(
    ("misdeed", "kind", "text", "tries"),
    [
        (status(500), JudgeError, "after 4 tries .* HTTP 500 .*told to say 500", 4),
        (cut, JudgeError, "after 4 tries", 4),
        (says(b"garbage"), JudgeError, "not JSON", 4),
        (status(400), HTTPStatus, "HTTP 400", 1),
        (status(401), HTTPStatus, "HTTP 401", 1),
        (status(307, Location="http://127.0.0.1:9/"), HTTPStatus, "HTTP 307", 1),
        (says({"choices": []}), JudgeError, "no chat completion", 1),
        (says({"choices": [{"message": "7"}]}), JudgeError, "no chat completion", 1),
        (says(completion({"7": 1.0}, refusal="I cannot rate this.")), Refused, "refused: I cannot", 1),
        (says(completion({"I": 0.9, "7": 0.05}, text="I")), JudgeError, "0.05 of the probability .* 'I'", 1),
        (says(completion({"7": 0.9, "8": 0.8})), JudgeError, "add up to 1.7", 1),
        (says(completion({"7": 2.0})), JudgeError, "no probability has", 1),
        (says(completion(None)), NoLogprobs, "no log-probs", 1),
        (says(b"[" * 100_000), JudgeError, "not JSON", 4),
        (says(b" " * (5 * 2**20)), JudgeError, "longer than", 1),
    ],
    ids=["500", "cut", "garbage", "400", "401", "redirect", "empty", "shape", "refusal", "no digit", "sum", "above 1", "no logprobs",
         "deep", "huge"],
)  # fmt: skip
def test_a_failure_is_an_error_and_never_a_number(endpoint: Endpoint, misdeed: Misdeed, kind: type, text: str, tries: int) -> None:
    endpoint.always = misdeed
    asked = judge(endpoint)
    (found,) = asked.ask([question()])
    assert isinstance(found, kind)
    with pytest.raises(kind, match=text):
        raise found
    assert len(endpoint.requests) == tries
    assert asked.totals["failures"] == 1


@pytest.mark.parametrize("misdeed", [sleep(3.0), trickle], ids=["silent", "trickle"])
def test_slow_servers_are_given_up(endpoint: Endpoint, misdeed: Misdeed) -> None:
    endpoint.always = misdeed
    start = time.monotonic()
    (found,) = judge(endpoint, limits={"timeout": 0.25, "deadline": 0.8, "retries": 9}).ask([question()])
    assert isinstance(found, JudgeError)
    assert time.monotonic() - start < 2.5
    assert len(endpoint.requests) >= 2


def test_a_slow_try_may_be_followed_by_a_quick_one(endpoint: Endpoint) -> None:
    endpoint.misdeeds = [sleep(1.5)]
    (found,) = judge(endpoint, limits={"timeout": 0.3}).ask([question()])
    assert isinstance(found, Answer)


def test_a_long_retry_after_does_not_outlast_the_deadline(endpoint: Endpoint) -> None:
    endpoint.always = status(429, Retry_After="3600")
    start = time.monotonic()
    (found,) = judge(endpoint, limits={"backoff_max": 30.0, "deadline": 0.5}).ask([question()])
    assert isinstance(found, JudgeError)
    assert time.monotonic() - start < 1.0


def test_nobody_at_home(endpoint: Endpoint) -> None:
    asked = OpenAIJudge("http://127.0.0.1:9/v1", "some-vlm", limits=QUICK)
    (found,) = asked.ask([question()])
    assert isinstance(found, JudgeError)


def test_answers_are_cached_by_content(endpoint: Endpoint, tmp_path: Any) -> None:
    options: dict[str, Any] = {"cache_dir": str(tmp_path / "answers"), "prices": [2.0, 10.0]}
    first = judge(endpoint, **options)
    once, other = first.ask([question(10), question(11)])
    assert isinstance(once, Answer)
    assert isinstance(other, Answer)
    (again,) = first.ask([question(10)])
    assert isinstance(again, Answer)
    assert len(endpoint.requests) == 2
    assert (once.details["cached"], again.details["cached"]) == (0.0, 1.0)
    assert once.details["cost"] == pytest.approx((2.0 * 1000 + 10.0) / 1e6)
    assert again.details["cost"] == 0.0
    assert first.totals["cost"] == pytest.approx(2 * once.details["cost"])

    (kept,) = judge(endpoint, **options).ask([question(10)])  # another process, the same folder
    assert isinstance(kept, Answer)
    assert kept.level == once.level
    assert len(endpoint.requests) == 2
    for file in (tmp_path / "answers").iterdir():
        file.write_text("{damaged")
    judge(endpoint, **options).ask([question(10)])
    assert len(endpoint.requests) == 3
    judge(endpoint, **options, top_logprobs=5).ask([question(10)])  # another request body
    assert len(endpoint.requests) == 4


def test_frames_are_encoded_once_for_all_questions_about_them(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from world_r1_rewards.judges import openai

    encoded: list[int] = []
    monkeypatch.setattr(openai, "encode", lambda frame, image, real=openai.encode: (encoded.append(1), real(frame, image))[1])
    asked, frames = judge(endpoint), question(frames=3).frames
    questions = [Question(frames, (0.0, 0.5, 1.0), "You grade.", f"Question {i}", DIGITS) for i in range(5)]
    assert all(isinstance(item, Answer) for item in asked.ask(questions))
    assert len(encoded) == 3
    assert all(isinstance(item, Answer) for item in asked.ask(questions))
    assert len(encoded) == 3, "not at all when the answer is known"
    assert len({body["messages"][1]["content"][-1]["text"] for _, _, body in endpoint.requests}) == 5


def test_failures_are_not_cached(endpoint: Endpoint) -> None:
    endpoint.misdeeds = [status(400)]
    asked = judge(endpoint)
    assert isinstance(asked.ask([question()])[0], HTTPStatus)
    assert isinstance(asked.ask([question()])[0], Answer)


def test_the_same_question_asked_at_once_is_sent_once(endpoint: Endpoint) -> None:
    endpoint.always = sleep(0.1)
    found = judge(endpoint).ask([question()] * 6)
    assert all(isinstance(item, Answer) for item in found)
    assert len(endpoint.requests) == 1


def test_concurrency_and_rate_are_limited(endpoint: Endpoint) -> None:
    endpoint.always = sleep(0.05)
    judge(endpoint, limits={"concurrency": 3}).ask([question(i) for i in range(12)])
    assert 2 <= endpoint.most_busy <= 3
    endpoint.always = None
    start = time.monotonic()
    judge(endpoint, limits={"rate": 20.0}).ask([question(100 + i) for i in range(8)])
    assert time.monotonic() - start >= 7 / 20


def test_pace_spaces_starts_evenly_over_threads() -> None:
    pace = Pace(100.0)
    with ThreadPoolExecutor(8) as pool:
        times = sorted(pool.map(lambda _: (pace.wait(), time.monotonic())[1], range(12)))
    assert times[-1] - times[0] >= 0.95 * 11 / 100


def test_the_budget_ends_the_spending(endpoint: Endpoint) -> None:
    asked = judge(endpoint, prices=[100.0, 0.0], budget=0.25, limits={"concurrency": 1})  # 0.1 a question
    found = asked.ask([question(i) for i in range(6)])
    assert [isinstance(item, Answer) for item in found] == [True, True, True, False, False, False]
    assert isinstance(found[-1], OverBudget)
    assert len(endpoint.requests) == 3


def test_without_logprobs_the_median_of_votes_counts_if_allowed(endpoint: Endpoint) -> None:
    endpoint.misdeeds = [says(completion(None))]
    (found,) = judge(endpoint, without_logprobs="vote", limits={"concurrency": 1}).ask([question()])
    assert isinstance(found, Answer)
    assert 9 * found.level == pytest.approx(8.0), "the median of 4 7 8 8 9"
    assert found.details["votes"] == 5
    schema = endpoint.requests[1][2]["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["answer"]["enum"] == list(DIGITS)
    assert [body["seed"] for _, _, body in endpoint.requests[1:]] == list(range(5))


def test_votes_that_are_none_do_not_count(endpoint: Endpoint) -> None:
    def babble(handler: Handler, body: dict[str, Any]) -> None:
        text = json.dumps({"answer": "7"}) if body.get("seed") == 0 and "response_format" in body else "Seven, I think"
        handler.send(200, completion(None, text))

    endpoint.always = babble
    (found,) = judge(endpoint, without_logprobs="vote").ask([question()])
    with pytest.raises(JudgeError, match="only 1 of 5"):
        raise found  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dialect": "gemini"}, "dialect must be one of"),
        ({"api_key_env": "NO_SUCH_KEY_HERE"}, "NO_SUCH_KEY_HERE"),
        ({"budget": 1.0}, "a budget needs prices"),
        ({"limits": {"timeout": 0}}, "must be positive"),
        ({"cache": -1}, "0 or more"),
    ],
)
def test_options_that_cannot_work_say_so(endpoint: Endpoint, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        judge(endpoint, **options)
    with pytest.raises(ValueError, match="base_url"):
        OpenAIJudge("127.0.0.1:8000/v1", "some-vlm")
