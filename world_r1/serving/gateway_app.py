"""The gateway's application (see `gateway`). This module needs the extra `gateway`; its annotations are read by FastAPI."""

import asyncio
import hmac
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request

from world_r1.serving.bodies import MEDIA, Limits, Refused
from world_r1.serving.gateway import answer_of, bounded, clip_of

log = logging.getLogger(__name__)

#: Characters of a prompt at most, requests whose bodies are read at once, and seconds that a body may take to arrive.
PROMPT, READERS, ARRIVAL = 4000, 8, 120.0
#: What a request may send.
BODIES = {"required": True, "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA}}


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    said = {
        401: "No token, or a wrong one",
        408: "The body did not arrive in time",
        413: "Too large",
        415: "Neither npz nor safetensors nor MP4",
        422: "Not a video, or a parameter out of range",
        503: "The workers do not answer",
    }
    return {code: {"description": said[code]} for code in codes}


def make_app(clients: Sequence[Any], *, token: str | None, limits: Limits) -> FastAPI:
    """The application. `clients` are asked in turn (`PoolClient.score`); their scores are given together."""
    app = FastAPI(title="world-r1 rewards", version="1", description="Scores of videos from pools of reward workers.")
    readers = asyncio.Semaphore(READERS)

    async def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "give the header: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    guard = [Depends(allowed)]

    @app.get("/v1/health", summary="Which pools are asked", dependencies=guard, responses=_errors(401))
    async def health() -> dict[str, list[str]]:
        return {"pools": [client.name for client in clients]}

    @app.post(
        "/v1/score",
        summary="Score a video",
        dependencies=guard,
        responses=_errors(401, 408, 413, 415, 422, 503),
        openapi_extra={"requestBody": BODIES},
    )
    async def score(
        request: Request,
        prompt: str = Query("", max_length=PROMPT, description="What the video was asked to show"),
        kind: str = Query("rigid", pattern="^(rigid|dynamic)$"),
        id: str = Query("", max_length=128, pattern=r"^[\w.-]*$", description="Comes back with the answer"),
    ) -> dict[str, Any]:
        try:
            async with readers:
                async with asyncio.timeout(ARRIVAL):
                    body = await bounded(request.stream(), request.headers.get("content-length"), limits.body)
                clip = await asyncio.to_thread(clip_of, body, request.headers.get("content-type", ""), prompt, kind, id, limits)
            verdicts = [(await asyncio.to_thread(client.score, [clip]))[0] for client in clients]
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {ARRIVAL:g} s") from None
        except Refused as refused:
            raise HTTPException(refused.status, str(refused)) from None
        except RuntimeError as error:  # a pool that is gone or broken
            log.warning("a pool did not answer: %s", error)
            raise HTTPException(503, "the reward workers do not answer") from None
        return answer_of(clip, verdicts)

    return app
