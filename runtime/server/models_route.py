"""`/v1/models`, `/tokenize`, `/detokenize`, `/version`: what is served, and its tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from paddock.runtime.server.chat_plan import chat_text
from paddock.runtime.server.chat_schema import ChatMessage, Tool
from paddock.runtime.server.documented import ALWAYS, failures
from paddock.runtime.server.sampling_fields import Body, TokenId
from paddock.runtime.server.served import Served
from paddock.runtime.server.strict_body import StrictRoute


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["paddock"] = "paddock"
    max_model_len: int
    """Tokens of the longest sequence, prompt and answer together."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class TokenizeText(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeChat(Body):
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    return_token_strs: bool | None = None


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    """The tokens as the vocabulary spells them."""


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]


class Detokenized(BaseModel):
    prompt: str


class Version(BaseModel):
    version: str


def routes(served: Served, version: str) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)
    longest = served.max_context

    def described(name: str) -> Model:
        return Model(id=name, created=served.created, max_model_len=longest)

    @router.get("/v1/models", responses=failures(401, 403, 500), tags=["model"])
    async def list_models() -> ModelList:
        """The model, once for each name that it answers to."""
        return ModelList(data=[described(name) for name in served.names])

    @router.get("/v1/models/{model:path}", responses=failures(401, 403, 404, 500), tags=["model"])
    async def retrieve_model(model: str) -> Model:
        """The model under one of its names."""
        served.check_name(model)
        return described(model)

    @router.post("/tokenize", responses=ALWAYS | failures(404, 429), tags=["tokenizer"])
    async def tokenize(body: TokenizeText | TokenizeChat) -> Tokenized:
        """The token ids of a text, or of a chat as the model is given it."""
        if body.model is not None:
            served.check_name(body.model)
        tokens = await served.prepare(lambda: _encode(body, served))
        names = None
        if body.return_token_strs:
            names = [served.tokenizer.token(token) or "" for token in tokens]
        return Tokenized(count=len(tokens), max_model_len=longest, tokens=tokens, token_strs=names)

    @router.post("/detokenize", responses=ALWAYS | failures(404, 429), tags=["tokenizer"])
    async def detokenize(body: DetokenizeRequest) -> Detokenized:
        """The text of token ids, special tokens included."""
        if body.model is not None:
            served.check_name(body.model)
        decode = served.tokenizer.decode
        text = await served.prepare(lambda: decode(body.tokens, skip_special_tokens=False))
        return Detokenized(prompt=text)

    @router.get("/version", responses=failures(401, 403, 500), tags=["server"])
    async def show_version() -> Version:
        """The version of Paddock."""
        return Version(version=version)

    return router


def _encode(body: TokenizeText | TokenizeChat, served: Served) -> list[int]:
    if isinstance(body, TokenizeText):
        return served.tokenizer.encode(body.prompt, body.add_special_tokens)
    return served.tokenizer.encode(
        chat_text(
            served,
            body.messages,
            body.tools or (),
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            variables=body.chat_template_kwargs or {},
        ),
        add_special_tokens=False,
    )
