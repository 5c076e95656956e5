"""A judge behind any OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, hosted ones."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from world_r1_rewards.judges import answers
from world_r1_rewards.judges.answers import MIN_MASS, Answer, Judge, JudgeError, Question
from world_r1_rewards.judges.cache import Cache, key_of
from world_r1_rewards.judges.wire import Limits, OverBudget, Wire

log = logging.getLogger(__name__)

DIALECTS = ("vllm", "sglang", "openai")


class Refused(JudgeError):
    """The model declined to answer."""


class NoLogprobs(JudgeError):
    """The endpoint gave no log-probs."""


class OpenAIJudge(Judge):
    """Chat completions of one token with log-probs; the answer is read from the distribution over the allowed tokens.

    `base_url` ends before /chat/completions ("http://127.0.0.1:8000/v1"). The key is read from the environment variable that
    `api_key_env` names, never from a configuration. `dialect` says how answers are constrained: "vllm" (structured_outputs), "sglang"
    (regex), "openai" (not constrained; the mass on the answers is checked anyway). `without_logprobs`: "fail", or "vote" for the
    median of `votes` sampled answers in JSON. `prices` are per million input and output tokens; beyond `budget` (same currency) every
    question fails. `extra` goes into the request body. ValueError for options that cannot work.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        dialect: str = "vllm",
        limits: Mapping[str, Any] | None = None,
        top_logprobs: int = 20,
        min_mass: float = MIN_MASS,
        without_logprobs: str = "fail",
        votes: int = 5,
        prices: Sequence[float] = (0.0, 0.0),
        budget: float | None = None,
        cache: int = 4096,
        cache_dir: str | None = None,
        image: str = "png",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        _check(dialect=(dialect, DIALECTS), without_logprobs=(without_logprobs, ("fail", "vote")), image=(image, ("png", "jpeg")))
        if len(prices) != 2 or min(prices) < 0 or votes < 1 or (budget is not None and not max(prices)):
            raise ValueError(
                f"judge: prices are two numbers per million tokens (in, out), a budget needs prices, votes are 1 or more; got "
                f"prices={list(prices)}, budget={budget}, votes={votes}"
            )
        self.model, self.base_url, self.dialect = model, base_url.rstrip("/"), dialect
        self.top_logprobs, self.min_mass, self.without_logprobs, self.votes = top_logprobs, min_mass, without_logprobs, votes
        self.prices, self.budget, self.image, self.extra = (prices[0], prices[1]), budget, image, dict(extra or {})
        self.limits = Limits(**(limits or {}))
        self.wire = Wire(f"{self.base_url}/chat/completions", _headers(api_key_env), self.limits)
        self.cache = Cache(cache, cache_dir)
        #: What was spent since the start.
        self.totals = {"requests": 0.0, "attempts": 0.0, "input_tokens": 0.0, "output_tokens": 0.0, "cost": 0.0, "failures": 0.0}
        self._lock = threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """One answer per question, asked side by side."""
        if not questions:
            return []
        pictures = _Pictures(self.image)  # several questions are about the same frames
        with ThreadPoolExecutor(min(self.limits.concurrency, len(questions))) as pool:
            results = list(pool.map(lambda question: self._answer(question, pictures), questions))
        failures = sum(isinstance(result, Exception) for result in results)
        self._add(failures=failures)
        log.info(
            "judge %s: %d questions, %d without an answer, cost so far %.4g",
            self.model,
            len(results),
            failures,
            self.totals["cost"],
        )
        return results

    def _answer(self, question: Question, pictures: _Pictures) -> Answer | Exception:
        try:
            try:
                return self._from_logprobs(question, pictures)
            except NoLogprobs:
                if self.without_logprobs == "fail":
                    raise
                return self._from_votes(question, pictures)
        except JudgeError as error:
            return error

    def _from_logprobs(self, question: Question, pictures: _Pictures) -> Answer:
        reply, known = self._complete(question, pictures, self._one_token(question))
        if not reply["top"]:
            raise NoLogprobs(
                f"{self.model} at {self.base_url} gave no log-probs; serve it with them, or set without_logprobs: vote"
            )
        found = answers.read(reply["top"], question.choices, min_mass=self.min_mass, said=reply["text"])
        return self._made(question, found, [(reply, known)])

    def _from_votes(self, question: Question, pictures: _Pictures) -> Answer:
        replies = [self._complete(question, pictures, self._vote(question, i)) for i in range(self.votes)]
        votes = [_voted(reply["text"], question.choices) for reply, _ in replies]
        return self._made(question, answers.vote(votes, question.choices), replies)

    def _made(
        self, question: Question, found: tuple[dict[str, float], float, float, float], replies: list[tuple[dict[str, Any], bool]]
    ) -> Answer:
        details = {
            "frames": float(len(question.frames)),
            "height": float(question.frames.shape[1]),
            "width": float(question.frames.shape[2]),
            "votes": float(len(replies)) if len(replies) > 1 else 0.0,
            "input_tokens": sum(reply["input_tokens"] for reply, _ in replies),
            "cost": sum(0.0 if known else self._cost(reply) for reply, known in replies),
            "cached": sum(known for _, known in replies) / len(replies),
        }
        return Answer(*found, details, self.model)

    def _complete(self, question: Question, pictures: _Pictures, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """(what is needed of the reply, whether it came from the cache) for a request body without its messages."""
        body = {"model": self.model, **body, **self.extra}

        def send() -> dict[str, Any]:
            if self.budget is not None and self.totals["cost"] >= self.budget:
                raise OverBudget(f"the judge has spent {self.totals['cost']:.4g} of its budget of {self.budget:g}")
            whole = {**body, "messages": self._messages(question, pictures.of(question.frames))}
            reply = self.wire.post(json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode())
            self._add(requests=1, attempts=reply.attempts)
            found = _usage(reply.data)
            self._add(**found, cost=self._cost(found))
            return {**_essence(reply.data), **found}

        texts = json.dumps([self.base_url, self.image, body, question.system, question.text, question.times, question.frames.shape])
        return self.cache.get(key_of(texts, question.frames.tobytes()), send)

    def _one_token(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {"temperature": 0, "seed": 0, "logprobs": True, "top_logprobs": self.top_logprobs}
        body["max_completion_tokens" if self.dialect == "openai" else "max_tokens"] = 1
        if self.dialect == "vllm":
            body["structured_outputs"] = {"choice": list(question.choices)}
        elif self.dialect == "sglang":
            body["regex"] = "(" + "|".join(question.choices) + ")"
        return body

    def _vote(self, question: Question, seed: int) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": list(question.choices)}},
            "required": ["answer"],
            "additionalProperties": False,
        }
        body: dict[str, Any] = {"temperature": 1, "seed": seed}
        body["max_completion_tokens" if self.dialect == "openai" else "max_tokens"] = 24
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        return body

    def _messages(self, question: Question, urls: list[str]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        for i, url in enumerate(urls):
            if question.times:
                content.append({"type": "text", "text": f"Second {question.times[i]:.2f}:"})
            content.append({"type": "image_url", "image_url": {"url": url}})
        content.append({"type": "text", "text": question.text})
        return [{"role": "system", "content": question.system}, {"role": "user", "content": content}]

    def _cost(self, reply: Mapping[str, float]) -> float:
        return (self.prices[0] * reply["input_tokens"] + self.prices[1] * reply["output_tokens"]) / 1e6

    def _add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self.totals[name] += amount


class _Pictures:
    """Data URLs of frames, each array of them encoded once. Lives for one `ask`, whose questions keep the arrays alive."""

    def __init__(self, image: str) -> None:
        self.image, self._lock = image, threading.Lock()
        self._urls: dict[int, Future[list[str]]] = {}

    def of(self, frames: np.ndarray) -> list[str]:
        with self._lock:
            mine = id(frames) not in self._urls
            found = self._urls.setdefault(id(frames), Future())
        if mine:
            try:
                found.set_result([encode(frame, self.image) for frame in frames])
            except Exception as error:
                found.set_exception(error)
        return found.result()


def encode(frame: np.ndarray, image: str) -> str:
    """A [H, W, 3] uint8 sRGB frame as a data URL; "jpeg" is at quality 95."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, 95] if image == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    ok, data = cv2.imencode(".jpg" if image == "jpeg" else ".png", np.ascontiguousarray(frame[..., ::-1]), flags)
    if not ok:
        raise ValueError(f"a frame of shape {frame.shape} and type {frame.dtype} cannot be written as {image}")
    return f"data:image/{image};base64,{base64.b64encode(data.tobytes()).decode()}"


def _headers(api_key_env: str | None) -> dict[str, str]:
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "")
    if not key:
        raise ValueError(f"judge: the environment variable {api_key_env} (api_key_env) holds no key")
    return {"Authorization": f"Bearer {key}"}


def _essence(data: Mapping[str, Any]) -> dict[str, Any]:
    """Text and first-token log-probs of a completion. Raises `Refused`, or `JudgeError` for a reply of another shape."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal")
        content = (choice.get("logprobs") or {}).get("content") or []
        top = [(str(entry["token"]), float(entry["logprob"])) for entry in (content[0]["top_logprobs"] if content else [])]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise JudgeError(f"the reply is no chat completion ({type(error).__name__}: {error})") from error
    if refusal or choice.get("finish_reason") == "content_filter":
        raise Refused(f"the judge refused: {str(refusal or 'content filter')[:200]}")
    if not isinstance(text, str) or any(math.isnan(log_prob) for _, log_prob in top):
        raise JudgeError("the reply is no chat completion (its text is no text, or a log-prob is NaN)")
    return {"text": text[:200], "top": top}


def _usage(data: Mapping[str, Any]) -> dict[str, float]:
    """Tokens that the server says it read and wrote; 0 where it says nothing that makes sense."""
    usage = data.get("usage")
    counts = [usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")]
    read, written = (float(count) if isinstance(count, int | float) and 0 <= count < 1e9 else 0.0 for count in counts)
    return {"input_tokens": read, "output_tokens": written}


def _voted(text: str, choices: Sequence[str]) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = found.get("answer") if isinstance(found, dict) else None
    return answers.choice_of(str(value), choices) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _check(**options: tuple[str, Sequence[str]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"judge: {name} must be one of {', '.join(known)}, got {value!r}")
