"""Many prompts at once, and their results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from paddock.runtime.errors import RequestError
from paddock.runtime.handle import RequestHandle
from paddock.runtime.images.prepared import ImagePrompt
from paddock.runtime.loop import Loop
from paddock.runtime.outputs import RequestResult
from paddock.runtime.queue_room import when_there_is_room
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.speech.sound_prompt import SoundPrompt

Prompt = str | Sequence[int] | ImagePrompt | SoundPrompt


def generate(
    loop: Loop,
    prompts: Iterable[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    on_result: Callable[[int, RequestResult], None] | None = None,
) -> list[RequestResult]:
    """The result of each prompt, in the prompts' order.

    `params`: one for all, or one for each. `on_result` is told each prompt's number and result,
    in order, as soon as it and all before it are there. However many prompts there are, no more
    wait in the loop's queue than its limits allow. Where one fails, or on Ctrl-C, the others are
    cancelled and the error is raised.
    """
    prompts = list(prompts)
    if isinstance(params, SamplingParams) or params is None:
        params = [params or SamplingParams()] * len(prompts)
    if len(params) != len(prompts):
        raise RequestError(
            f"{len(prompts)} prompts came with {len(params)} sampling parameters; "
            "give one for all, or one for each"
        )
    handles: list[RequestHandle] = []
    results: list[RequestResult] = []

    def take() -> None:
        results.append(handles[len(results)].result())
        if on_result is not None:
            on_result(len(results) - 1, results[-1])

    try:
        for prompt, own in zip(prompts, params, strict=True):
            handles.append(when_there_is_room(loop, partial(loop.submit, prompt, own)))
            while len(results) < len(handles) and handles[len(results)].done:
                take()
        while len(results) < len(handles):
            take()
    except BaseException:
        for handle in handles[len(results) :]:
            handle.cancel()
        raise
    return results
