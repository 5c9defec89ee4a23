"""How many tokens a request took."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from paddock.runtime.outputs import RequestResult


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of all prompts and continuations of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage_of(prompt: int, completion: int, cached: int, reasoning: int = 0) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )


def usage_of_results(results: Iterable[RequestResult], reasoning: int = 0) -> Usage:
    """The usage of finished requests together."""
    prompt = completion = cached = 0
    for result in results:
        prompt += len(result.prompt_token_ids)
        completion += sum(len(sequence.token_ids) for sequence in result.sequences)
        cached += result.prompt_tokens_cached
    return usage_of(prompt, completion, cached, reasoning)
