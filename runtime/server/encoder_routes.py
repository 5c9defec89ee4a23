"""`/v1/embeddings`, `/rerank`, `/classify`: what an encoder, or a pooled decoder, is asked for."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from paddock.runtime.server.api_errors import ApiError
from paddock.runtime.server.documented import GENERATING
from paddock.runtime.server.event_stream import while_connected
from paddock.runtime.server.request_context import context_of
from paddock.runtime.server.sampling_fields import Body, TokenId
from paddock.runtime.server.served import ServedEncoder
from paddock.runtime.server.strict_body import StrictRoute
from paddock.runtime.server.usage import usage_of

Truncate = Literal["end", "start", "never"]
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingRequest(Body):
    """As OpenAI's, with sentence-transformers' prompts."""

    model: str
    input: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """The first so many, for models that were trained for it."""
    prompt_name: str | None = None
    """One of the checkpoint's prompts, put before each text."""
    truncate: Truncate = "never"
    """Where texts that are too long are cut; never: they are refused."""
    user: str | None = None
    """Is taken and does nothing."""


class EncoderUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingObject(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or with `base64` the bytes of little-endian f32."""


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EncoderUsage


class RerankDocument(Body):
    text: Text


class RerankRequest(Body):
    """As Jina's and Cohere's."""

    model: str
    query: Text
    documents: Annotated[list[Text | RerankDocument], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True
    truncate: Truncate = "end"


class RerankResult(BaseModel):
    index: int
    """Of the document in the request."""
    relevance_score: float
    document: RerankDocument | None = None


class Reranked(BaseModel):
    id: str
    model: str
    results: list[RerankResult]
    """Most relevant first."""


class ClassifyRequest(Body):
    model: str
    input: Text | Annotated[list[Text], Field(min_length=1)]
    truncate: Truncate = "end"


class Classified(BaseModel):
    index: int
    label: str
    probs: list[float]
    """In the order of `labels`."""
    labels: list[str]
    num_classes: int


class ClassifiedList(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: EncoderUsage


def routes(served: ServedEncoder) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, responses=GENERATING, tags=["encode"])
    encoder = served.encoder

    @router.post("/v1/embeddings")
    async def create_embedding(body: EmbeddingRequest, request: Request) -> EmbeddingList:
        """A vector of each input."""
        served.check_name(body.model)
        served.check_open()
        inputs = _inputs(body)
        _check_count(served, "input", len(inputs))
        found = await while_connected(
            request,
            encoder.aembed(
                inputs,
                prompt_name=body.prompt_name,
                dimensions=body.dimensions,
                truncate=body.truncate,
                wait=False,
            ),
        )
        packed = body.encoding_format == "base64"
        return EmbeddingList(
            data=[
                EmbeddingObject(
                    index=index,
                    embedding=_base64(one.vector) if packed else one.vector.tolist(),
                )
                for index, one in enumerate(found)
            ],
            model=served.name,
            usage=_usage(request, sum(one.tokens for one in found)),
        )

    @router.post("/v1/rerank")
    @router.post("/rerank")
    async def rerank(body: RerankRequest, request: Request) -> Reranked:
        """The documents by how well they fit the query."""
        served.check_name(body.model)
        served.check_open()
        texts = [one if isinstance(one, str) else one.text for one in body.documents]
        _check_count(served, "documents", len(texts))
        scores = await while_connected(
            request,
            encoder.ascore(
                [(body.query, text) for text in texts], truncate=body.truncate, wait=False
            ),
        )
        order = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n]
        return Reranked(
            id=f"rerank-{context_of(request).request_id}",
            model=served.name,
            results=[
                RerankResult(
                    index=index,
                    relevance_score=scores[index],
                    document=RerankDocument(text=texts[index]) if body.return_documents else None,
                )
                for index in order
            ],
        )

    @router.post("/v1/classify")
    @router.post("/classify")
    async def classify(body: ClassifyRequest, request: Request) -> ClassifiedList:
        """The label of each input."""
        served.check_name(body.model)
        served.check_open()
        texts = [body.input] if isinstance(body.input, str) else body.input
        _check_count(served, "input", len(texts))
        found = await while_connected(
            request, encoder.aclassify(texts, truncate=body.truncate, wait=False)
        )
        labels = list(encoder.classifier.labels) if encoder.classifier else []
        context = context_of(request)
        data = []
        for index, one in enumerate(found):
            score_of = dict(zip(one.labels, one.scores, strict=True))
            data.append(
                Classified(
                    index=index,
                    label=one.label,
                    probs=[score_of[label] for label in labels],
                    labels=labels,
                    num_classes=len(labels),
                )
            )
        return ClassifiedList(
            id=f"classify-{context.request_id}",
            created=context.created,
            model=served.name,
            data=data,
            usage=_usage(request, sum(one.tokens for one in found)),
        )

    return router


def _inputs(body: EmbeddingRequest) -> list[str | list[int]]:
    match body.input:
        case str():
            return [body.input]
        case [int(), *_]:
            return [body.input]  # type: ignore[list-item]
        case _:
            return [one for one in body.input if not isinstance(one, int)]


def _check_count(served: ServedEncoder, field: str, count: int) -> None:
    most = served.settings.max_inputs
    if count > most:
        raise ApiError(
            400, f"{field}: {count} texts; this server takes {most} at once", param=field
        )


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _usage(request: Request, tokens: int) -> EncoderUsage:
    context_of(request).usage = usage_of(tokens, 0, 0)
    return EncoderUsage(prompt_tokens=tokens, total_tokens=tokens)
