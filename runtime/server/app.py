"""The application: routes, what stands before them, and its OpenAPI document."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from paddock.graph.errors import PaddockError
from paddock.runtime.server import (
    audio_routes,
    chat,
    completions,
    encoder_routes,
    health,
    models_route,
    page,
    responses,
    tracing,
)
from paddock.runtime.server.api_errors import ApiError, as_api_error, of_validation
from paddock.runtime.server.body_limit import BodyLimit
from paddock.runtime.server.documented import failures
from paddock.runtime.server.event_stream import ClientGone
from paddock.runtime.server.guard import Guard
from paddock.runtime.server.metrics import CONTENT_TYPE, EncoderMetrics, Metrics
from paddock.runtime.server.request_context import RequestContexts
from paddock.runtime.server.served import ServedEncoder
from paddock.runtime.server.served_model import ServedModel
from paddock.runtime.server.strict_body import StrictRoute

logger = logging.getLogger(__name__)


FORM_BYTES = 1 << 20
"""Of a form with a sound, for all but the sound."""


def create_app(
    served: ServedModel | ServedEncoder, *, keys: Sequence[str], version: str
) -> FastAPI:
    """The ASGI application over a started model."""
    settings = served.settings
    app = FastAPI(
        title="Paddock",
        summary="An OpenAI-compatible server of language models",
        version=version,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False, description="An API key"))]
        if keys
        else [],
    )
    app.router.route_class = StrictRoute
    routers = [models_route.routes(served, version), health.routes(served)]
    if isinstance(served, ServedEncoder):
        encoder_metrics = EncoderMetrics(served.encoder, served.name)
        routers += [
            encoder_routes.routes(served),
            health.encoder_stats_routes(served),
            _metrics_route(encoder_metrics.text),
        ]
    else:
        metrics = Metrics(served.loop, served.name, served.block_size)
        served.loop.add_listener(metrics)
        routers += [health.stats_routes(served), _metrics_route(metrics.text)]
        if served.hearing is not None:
            routers.append(audio_routes.routes(served, served.hearing))
        else:
            routers += [
                chat.routes(served),
                completions.routes(served),
                responses.routes(served),
                *([page.routes()] if settings.page else []),
            ]
    for router in routers:
        app.include_router(router)
    _answer_errors(app)
    app.openapi = lambda: _document(app, served.names)  # type: ignore[method-assign]

    # The last that is added is the first that is asked.
    app.add_middleware(
        BodyLimit,
        max_bytes=int(settings.max_body_mib * 2**20),
        max_audio_bytes=int(settings.max_audio_mib * 2**20) + FORM_BYTES,
        max_total=int(settings.max_bodies_mib * 2**20),
        seconds=settings.read_timeout_s,
    )
    app.add_middleware(Guard, settings=settings, keys=keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    if settings.otlp_endpoint is not None:
        traces = tracing.provider(settings.otlp_endpoint, version)
        app.add_middleware(tracing.Traces, provider=traces, model=served.name)
        served.on_close(traces.shutdown)
    app.add_middleware(RequestContexts, log=settings.log_requests)
    return app


def _metrics_route(text: Callable[[], bytes]) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=failures(401, 403, 500),
    )
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _answer_errors(app: FastAPI) -> None:
    def answer(error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = of_validation(list(error.errors()))
        kind = request.headers.get("content-type", "")
        if found.detail.param is None and "json" not in kind and "multipart" not in kind:
            # curl's usual one is that of forms.
            found = ApiError(400, f"Content-Type has to be application/json, found {kind[:64]!r}")
        return answer(found)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
        found = ApiError(error.status_code, str(error.detail), type=kind, headers=error.headers)
        return answer(found)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def ours(_: Request, error: Exception) -> Response:
        found = as_api_error(error)
        if found.status == 500:
            logger.error("a request failed: %s", error, exc_info=error)
        return answer(found)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(PaddockError, ours)


def _document(app: FastAPI, names: Sequence[str]) -> dict[str, Any]:
    """FastAPI's document, made true: invalid requests are answered with 400 here, not 422."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for path in document["paths"].values():
            for operation in path.values():
                responses = operation["responses"]
                responses.pop("422", None)
                for status, response in responses.items():
                    if status >= "400":  # always JSON, whatever the route's own answers are
                        [schema] = response["content"].values()
                        response["content"] = {"application/json": schema}
        schemas = document["components"]["schemas"]
        for schema in schemas.values():
            if "model" in schema["properties"] and schema.get("additionalProperties") is False:
                _name_models(schema["properties"]["model"], names)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema


def _name_models(described: dict[str, Any], names: Sequence[str]) -> None:
    """Say which names a request's `model` may be."""
    for kind in described.get("anyOf", [described]):
        if kind.get("type") == "string":
            kind["enum"] = list(names)
