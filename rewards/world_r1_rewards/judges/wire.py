"""One HTTP POST that survives a busy server: bounded retries with jitter, a deadline, rate and concurrency limits, size limits."""

from __future__ import annotations

import email.utils
import json
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from world_r1_rewards.judges.answers import JudgeError

log = logging.getLogger(__name__)

#: Statuses after which the same request may succeed.
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
#: Bytes of a reply that are read at most.
MAX_REPLY = 4 * 2**20


@dataclass(frozen=True)
class Limits:
    """Patience and politeness. All times in seconds.

    `timeout` bounds one try, `deadline` a request with all its tries and waits. Waits are drawn evenly from 0 to
    `backoff * 2**tries` (at most `backoff_max`), or follow Retry-After where the server sends it. `rate` is requests started
    a second, None for no limit.
    """

    timeout: float = 60.0
    deadline: float = 110.0
    retries: int = 4
    backoff: float = 0.5
    backoff_max: float = 15.0
    concurrency: int = 8
    rate: float | None = None

    def __post_init__(self) -> None:
        positive = min(self.timeout, self.deadline, self.backoff, self.backoff_max, self.concurrency, self.rate or 1.0)
        if positive <= 0 or self.retries < 0:
            raise ValueError(f"limits of a judge's endpoint must be positive (retries may be 0), got {self}")


class HTTPStatus(JudgeError):
    """The server refused the request: asking again would not help, or did not."""


class OverBudget(JudgeError):
    """What the judge may spend is spent."""


@dataclass(frozen=True)
class Reply:
    """A parsed JSON object and what it took to get it.

    Example: `Reply({"choices": [...]}, attempts=2, seconds=1.3)`
    """

    data: dict[str, Any]
    attempts: int
    seconds: float


class Pace:
    """At most `rate` starts a second over all threads, evenly spaced; None lets everyone through."""

    def __init__(self, rate: float | None) -> None:
        self.interval = 0.0 if rate is None else 1.0 / rate
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when it is this caller's turn."""
        if not self.interval:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.interval
        time.sleep(max(0.0, turn - now))


class Wire:
    """POSTs JSON to one URL. Safe to use from many threads; holds connections open."""

    def __init__(self, url: str, headers: dict[str, str], limits: Limits) -> None:
        import httpx2

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a judge's base_url starts with http:// or https:// and names a host, got {url!r}")
        self.url, self.limits, self.pace = url, limits, Pace(limits.rate)
        loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if "Authorization" in headers and parts.scheme == "http" and not loopback:
            log.warning("the key for %s travels unencrypted; use https outside a private network", parts.hostname)
        pool = httpx2.Limits(max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency)
        # A proxy of the environment is for the world outside; redirects are not followed: they would carry the key elsewhere.
        self._client = httpx2.Client(headers=headers, limits=pool, trust_env=not loopback, follow_redirects=False)

    def post(self, body: bytes) -> Reply:
        """The JSON object that the server answers. Raises `JudgeError` with the last cause when tries or time run out."""
        start = time.monotonic()
        for attempt in range(self.limits.retries + 1):
            self.pace.wait()
            left = self.limits.deadline - (time.monotonic() - start)
            if left <= 0:
                raise JudgeError(f"no answer within {self.limits.deadline:g} s ({attempt} tries)")
            wait, cause = None, ""
            try:
                return Reply(self._once(body, min(self.limits.timeout, left)), attempt + 1, time.monotonic() - start)
            except _Again as again:
                wait, cause = again.after, str(again)
            left = self.limits.deadline - (time.monotonic() - start)
            pause = self._pause(attempt, wait)
            if attempt == self.limits.retries or pause >= left:
                raise JudgeError(f"no answer after {attempt + 1} tries in {time.monotonic() - start:.1f} s; last: {cause}")
            log.info("judge: %s; trying again in %.2f s", cause, pause)
            time.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def close(self) -> None:
        """Drop the open connections."""
        self._client.close()

    def _pause(self, attempt: int, after: float | None) -> float:
        if after is not None:
            return min(after, self.limits.backoff_max) + random.uniform(0, self.limits.backoff)
        return random.uniform(0, min(self.limits.backoff * 2**attempt, self.limits.backoff_max))

    def _once(self, body: bytes, seconds: float) -> dict[str, Any]:
        """One try within `seconds`; raises `_Again` for what may pass, `JudgeError` for what will not."""
        import httpx2

        end = time.monotonic() + seconds
        try:
            with self._client.stream(
                "POST", self.url, content=body, headers={"Content-Type": "application/json"}, timeout=httpx2.Timeout(seconds)
            ) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > MAX_REPLY:
                        raise JudgeError(f"the reply is longer than {MAX_REPLY} bytes")
                    if time.monotonic() > end:  # time-outs of the client are per read: a trickle would never end
                        raise _Again(f"no complete answer within {seconds:.1f} s")
                return _parse(response.status_code, response.headers.get("Retry-After"), bytes(received))
        except httpx2.TimeoutException as error:
            raise _Again(f"no answer within {seconds:.1f} s ({type(error).__name__})") from error
        except httpx2.TransportError as error:
            raise _Again(f"{type(error).__name__}: {error}") from error
        except httpx2.HTTPError as error:  # a body that does not decompress
            raise _Again(f"{type(error).__name__}: {error}") from error


class _Again(Exception):
    """This try failed in a way that may pass; `after` is how long the server asked to wait."""

    def __init__(self, cause: str, after: float | None = None) -> None:
        super().__init__(cause)
        self.after = after


def _parse(status: int, retry_after: str | None, received: bytes) -> dict[str, Any]:
    if status in AGAIN:
        raise _Again(f"HTTP {status} {_excerpt(received)}".rstrip(), _seconds(retry_after))
    if status != 200:
        raise HTTPStatus(f"HTTP {status} {_excerpt(received)}".rstrip())
    try:
        data = json.loads(received)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _Again(f"the reply is not JSON: {_excerpt(received)!r}") from error
    if not isinstance(data, dict):
        raise _Again(f"the reply is not a JSON object: {_excerpt(received)!r}")
    return data


def _excerpt(received: bytes, length: int = 200) -> str:
    """The start of a reply in one line, for a message."""
    text = " ".join(received[: 4 * length].decode("utf-8", "replace").split())
    return text if len(text) <= length else text[:length] + "…"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After as seconds from now (RFC 9110 10.2.3: a number or a date), or None."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
