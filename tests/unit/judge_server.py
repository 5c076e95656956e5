"""A real HTTP server on loopback that speaks the protocol of a vision-language judge and misbehaves when told to."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from world_r1_rewards.judges.answers import DIGITS, Question
from world_r1_rewards.judges.openai import OpenAIJudge

#: What the server says by default: mostly 7, in two spellings, and some mass elsewhere.
TOP = {"7": 0.5, " 7": 0.1, "8": 0.2, "3": 0.1, "The": 0.05}
Misdeed = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions. The server's `misdeeds` are played one per request, then it behaves."""

    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            misdeed = self.server.misdeeds.pop(0) if self.server.misdeeds else self.server.always
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        try:
            (misdeed or answer)(self, body)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def send(self, status: int, data: Any, **headers: str) -> None:
        payload = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


class Endpoint(ThreadingHTTPServer):
    """The server with its memory of what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.misdeeds: list[Misdeed] = []
        self.always: Misdeed | None = None
        self.lock, self.busy, self.most_busy = threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is no news."""


def completion(top: dict[str, float] | None, text: str = "7", **message: Any) -> dict[str, Any]:
    logprobs = None
    if top is not None:
        entries = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in top.items()]
        logprobs = {"content": [{**entries[0], "top_logprobs": entries}]}
    choice = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": text, **message},
        "logprobs": logprobs,
    }
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 1}}


def answer(handler: Handler, body: dict[str, Any]) -> None:
    """Behave: `TOP`, or votes where a schema is asked for."""
    if "response_format" in body:
        handler.send(200, completion(None, json.dumps({"answer": str((4, 7, 8, 8, 9)[body["seed"]])})))
        return
    handler.send(200, completion(TOP))


def status(code: int, **headers: str) -> Misdeed:
    return lambda handler, body: handler.send(code, {"error": {"message": f"told to say {code}"}}, **headers)


def says(data: Any) -> Misdeed:
    return lambda handler, body: handler.send(200, data)


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Promise more than is sent, then hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.close_connection = True


def sleep(seconds: float) -> Misdeed:
    def misdeed(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        answer(handler, body)

    return misdeed


def trickle(handler: Handler, body: dict[str, Any]) -> None:
    """One byte now and then: no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    try:
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


@contextmanager
def running() -> Iterator[Endpoint]:
    """A server that answers until the block ends."""
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


QUICK = {"timeout": 2.0, "deadline": 4.0, "backoff": 0.01, "backoff_max": 0.05, "retries": 3}


def judge(endpoint: Endpoint, **options: Any) -> OpenAIJudge:
    limits = QUICK | options.pop("limits", {})
    return OpenAIJudge(endpoint.url, "some-vlm", limits=limits, **options)


def question(shade: int = 100, choices: tuple[str, ...] = DIGITS, frames: int = 2) -> Question:
    pictures = np.full((frames, 6, 10, 3), shade, np.uint8)
    return Question(pictures, tuple(0.5 * i for i in range(frames)), "You grade.", "Your digit:", choices)
