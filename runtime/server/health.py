"""`/health`, `/ready`, `/stats`: whether the server lives, takes requests, and how it does."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from paddock.runtime.server.documented import failures
from paddock.runtime.server.served import Served, ServedEncoder, Watched
from paddock.runtime.server.served_model import ServedModel


class Health(BaseModel):
    status: Literal["ok", "degraded", "stopped", "stalled", "draining"]
    message: str


class ServerStats(BaseModel):
    """A snapshot; totals count from the start."""

    model: str
    running: int
    """Sequences in the batch."""
    waiting: int
    """Sequences in the queue."""
    max_running: int
    queued_requests: int
    queued_tokens: int
    cache_use: float
    """Fraction of the cache's blocks that running sequences hold."""
    cache_blocks: int
    prefix_hit_rate: float
    """Fraction of prompt tokens that were found in the cache."""
    tokens_per_s: float
    """Generated, over the last seconds."""
    generated_tokens: int
    prompt_tokens: int
    requests_finished: int
    preemptions: int
    failed_steps: int
    max_context: int


def health_of(loop: Watched, stall_s: float) -> Health:
    """What the watchdog sees."""
    if not loop.alive:
        return Health(status="stopped", message="the engine has stopped; restart the server")
    stalled = loop.stalled_s
    if stalled > stall_s:
        return Health(
            status="stalled",
            message=f"the engine has not ended a step for {stalled:.0f} s"
            f" (server.stall_s is {stall_s:g})",
        )
    if loop.ailments:
        return Health(status="degraded", message="; ".join(loop.ailments))
    return Health(status="ok", message="the engine takes its steps")


def routes(served: Served) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get(
        "/health",
        response_model=Health,
        responses={**failures(403, 500), 503: {"model": Health, "description": "not alive"}},
    )
    async def health() -> Response:
        """Whether the engine takes its steps; needs no key. While draining it is still alive."""
        found = health_of(served.watched, served.settings.stall_s)
        if found.status == "stopped" and served.draining:
            found = Health(status="draining", message="the server is shutting down")
        alive = found.status in ("ok", "degraded", "draining")
        return JSONResponse(found.model_dump(), 200 if alive else 503)

    @router.get(
        "/ready",
        response_model=Health,
        responses={
            **failures(401, 403, 500),
            503: {"model": Health, "description": "takes no requests"},
        },
    )
    async def ready() -> Response:
        """Whether the server takes requests now."""
        found = health_of(served.watched, served.settings.stall_s)
        if served.draining:
            found = Health(status="draining", message="the server is shutting down")
        return JSONResponse(found.model_dump(), 200 if found.status in ("ok", "degraded") else 503)

    return router


def stats_routes(served: ServedModel) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/stats", responses=failures(401, 403, 500))
    async def stats() -> ServerStats:
        """How the server does, for people; `/metrics` has more, for Prometheus."""
        now, limits = served.loop.stats(), served.loop.limits
        return ServerStats(
            model=served.name,
            running=now.running,
            waiting=now.waiting,
            max_running=limits.max_sequences,
            queued_requests=now.queued_requests,
            queued_tokens=now.queued_tokens,
            cache_use=now.cache_use,
            cache_blocks=now.blocks,
            prefix_hit_rate=now.prefix_hit_rate,
            tokens_per_s=now.tokens_per_s,
            generated_tokens=now.generated_tokens,
            prompt_tokens=now.prompt_tokens,
            requests_finished=now.requests_finished,
            preemptions=now.preemptions,
            failed_steps=now.failed_steps,
            max_context=limits.max_context,
        )

    return router


class EncoderServerStats(BaseModel):
    """A snapshot; totals count from the start."""

    model: str
    waiting: int
    """Sequences in the queue."""
    sequences: int
    tokens: int
    padded_tokens: int
    steps: int
    failed_steps: int
    max_context: int


def encoder_stats_routes(served: ServedEncoder) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/stats", responses=failures(401, 403, 500))
    async def stats() -> EncoderServerStats:
        """How the server does, for people; `/metrics` has the same for Prometheus."""
        now = served.encoder.stats()
        return EncoderServerStats(
            model=served.name,
            waiting=now.waiting,
            sequences=now.sequences,
            tokens=now.tokens,
            padded_tokens=now.padded_tokens,
            steps=now.steps,
            failed_steps=now.failed_steps,
            max_context=served.max_context,
        )

    return router
