"""Logits and greedy answers of models that see equal those of transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from paddock.engines.protocol import Session
from paddock.graph import Array
from paddock.layers import trace
from paddock.models import registry
from paddock.runtime.engine_loop import EngineLoop
from paddock.runtime.errors import RequestError, RequestTooLarge
from paddock.runtime.images.grid_positions import GridPositions
from paddock.runtime.images.prepared import ImagePrompt, PlacedImage, prepare
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from tests.models.bound_checkpoint import BoundCheckpoint
from tests.models.opened import ENGINES, OPTIONS, TOLERANCE, engine_kind
from tests.models.play import Plan, chunks, decode, relative_error, step_inputs, together, whole
from tests.models.threads_as_ranks import MeshSession
from tests.models.vision_cases import CONTEXT, NAMES, VisionCase, image_inputs

LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.skipif(
    not LIVE, reason="torch and transformers are not installed (`make parity` installs them)"
)


@cache
def made(name: str) -> tuple[Path, Any, list[Array]]:
    """The case's checkpoint, transformers' model of it, and its logits."""
    from tests.models.transformers_vision import logits, reference, save

    case = VisionCase(name)
    model = reference(case)
    folder = Path(mkdtemp(prefix="vision-"))
    save(model, folder)
    return folder, model, logits(case, model)


def opened(name: str, engine: str) -> Session:
    folder = made(name)[0]
    architecture = registry.read(json.loads((folder / "config.json").read_text()))
    model = architecture.build()
    weights = BoundCheckpoint(architecture, model, folder)
    graph = trace(model, max_context=CONTEXT)
    return engine_kind(engine).build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])


def play(session: Session, case: VisionCase, plan: Plan) -> list[Array]:
    """Logits of each prompt, [tokens, vocab], in blocks that are scattered and were used before.

    A step comes with the images of which it has a token, whole.
    """
    size, prompts, form = session.block_size, case.prompts, case.form
    needed = [-(-len(prompt.token_ids) // size) for prompt in prompts]
    free = [int(b) for b in case.random("blocks").permutation(sum(needed))]
    session.allocate_cache(len(free), len(free))
    blocks = [[free.pop() for _ in range(count)] for count in needed]
    image = prompts[1].placed[0].image
    soil = step_inputs(session, [(np.full(size, 5), 0, [blocks[0][0]])], np.arange(1))
    soil = replace(soil, **image_inputs([image], [np.full(size, -1)], form.row_size))
    session.run(replace(soil, **grid([np.tile(soil.positions, (3, 1))])))
    done = [0] * len(prompts)
    found: list[list[Array]] = [[] for _ in prompts]
    for step in _uncut(plan, case):
        batch, images, rows, places = [], [], [], []
        before = 0
        for s, count in step:
            begin, end = done[s], done[s] + count
            batch.append((prompts[s].token_ids[begin:end], begin, blocks[s]))
            own = np.full(len(prompts[s].token_ids), -1)
            for placed in prompts[s].placed:
                if placed.start < end and begin < placed.stop:
                    own[placed.start : placed.stop] = before + placed.image.rows
                    images.append(placed.image)
                    before += placed.image.made
            rows.append(own[begin:end])
            seen = prompts[s].placed if form.grid else []
            of_all = GridPositions.of(len(prompts[s].token_ids), seen)
            places.append(of_all.between(begin, end))
            done[s] = end
        inputs = step_inputs(session, batch, np.arange(sum(n for _, n in step)))
        inputs = replace(inputs, **image_inputs(images, rows, form.row_size), **grid(places))
        logits = np.array(session.run(inputs))
        ends = np.cumsum([n for _, n in step])[:-1]
        for (s, _), part in zip(step, np.split(logits, ends), strict=True):
            found[s].append(part)
    return [np.concatenate(parts) for parts in found]


def grid(places: list[Array]) -> dict[str, Array]:
    """A step's arrays of where its sequences' new tokens are, [3, tokens] of each."""
    axes = ("time_positions", "row_positions", "column_positions")
    return dict(zip(axes, np.concatenate(places, axis=1), strict=True))


def _uncut(plan: Plan, case: VisionCase) -> Plan:
    """The plan, but an image whose tokens see each other is whole in the step that begins it."""
    if not case.form.whole:
        return plan
    done = [0] * len(case.prompts)
    steps = []
    asked = [0] * len(case.prompts)
    for step in plan:
        taken = []
        for s, count in step:
            asked[s] += count
            end = asked[s]
            for placed in case.prompts[s].placed:
                if done[s] <= placed.start < end < placed.stop:
                    end = placed.stop
            if end > done[s]:
                taken.append((s, end - done[s]))
                done[s] = end
        if taken:
            steps.append(taken)
    return steps


def lengths(case: VisionCase) -> Sequence[int]:
    return [len(prompt.token_ids) for prompt in case.prompts]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, engine: str) -> None:
    """Whole, together, token by token, and in chunks that cut images anywhere."""
    case = VisionCase(name)
    *_, expected = made(name)
    session = opened(name, engine)
    try:
        for plan in (
            whole(lengths(case)),
            together(lengths(case)),
            decode(lengths(case), 2),
            chunks(lengths(case), np.random.default_rng(len(name))),
        ):
            assert relative_error(play(session, case, plan), expected) < TOLERANCE[engine]
    finally:
        session.close()


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree_with_transformers(name: str) -> None:
    """The tower is whole on every rank; the text model is divided by heads and by layers."""
    case = VisionCase(name)
    folder, _, expected = made(name)
    architecture = registry.read(case.config)
    text = case.config["text_config"]
    for tp, pp in ((text["num_attention_heads"], 1), (1, text["num_hidden_layers"])):
        session = MeshSession(
            architecture,
            {},
            tp=tp,
            pp=pp,
            max_context=CONTEXT,
            bind=lambda model, rank: BoundCheckpoint(architecture, model, folder, rank),
        )
        try:
            found = play(session, case, decode(lengths(case), 4))
        finally:
            session.close()
        assert relative_error(found, expected) < 2e-5


@pytest.mark.parametrize(
    ("name", "engine", "limits"),
    [(name, "openvino", {}) for name in NAMES]
    + [("llava/1", "reference", {"cache_blocks": 20})]
    + [("llava/1", "reference", {"max_tokens_per_step": 5, "max_sequences": 2})]
    + [("qwen2_vl/1", "reference", {"cache_blocks": 20})]
    + [("qwen2_5_vl/2", "reference", {"max_tokens_per_step": 5, "max_sequences": 2})]
    + [("gemma3/1", "reference", {"max_tokens_per_step": 12, "prefill_chunk": 2})],
)
def test_greedy_answers_are_those_of_generate(
    name: str, engine: str, limits: dict[str, int]
) -> None:
    """Requests of different lengths and ages in one loop: with few blocks some of them are
    preempted, and with small steps images are cut."""
    from tests.models.transformers_vision import greedy

    case, model = VisionCase(name), made(name)[1]
    counts = [24, 24, 14, 8]
    expected = [greedy(case, model, p, n) for p, n in zip(case.prompts, counts, strict=True)]
    with EngineLoop(opened(name, engine), _limits(**limits), image_form=case.form) as loop:
        handles = [
            loop.submit(
                ImagePrompt(prompt.token_ids.tolist(), prompt.placed),
                SamplingParams(
                    max_tokens=n,
                    temperature=0.0,
                    prompt_logprobs=1 if n == 14 and not case.form.whole else None,
                ),
            )
            for prompt, n in zip(case.prompts, counts, strict=True)
        ]
        results = [handle.result() for handle in handles]
        stats = loop.stats()
    assert [list(result.token_ids) for result in results] == expected
    assert stats.blocks_held == 0
    assert (stats.preemptions > 0) == ("cache_blocks" in limits)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["llava/1", "gemma3/1", "qwen2_vl/1"])
def test_a_prefix_is_its_images_too(name: str, engine: str) -> None:
    """The same tokens with another image share what comes before it, and nothing after.

    Where the end of what is found is within an image, the rest of it sees all of it.
    """
    from tests.models.transformers_vision import greedy

    case = VisionCase(name)
    random = case.random("prefix")
    first, second = (case.pixels(random) for _ in range(2))
    third = np.flip(second, (1, 2)).copy()  # another, of the same size
    ours = case.prompt(random, [first, second], [3, 2, 9])
    other = replace(
        ours,
        pixels=[first, third],
        placed=[ours.placed[0], PlacedImage(prepare(third, case.form), ours.placed[1].start)],
    )
    params = SamplingParams(max_tokens=6, temperature=0.0, logprobs=4)
    session = opened(case.name, engine)
    with EngineLoop(session, _limits(), image_form=case.form) as loop:
        found = [
            loop.submit(ImagePrompt(prompt.token_ids.tolist(), prompt.placed), params).result()
            for prompt in (ours, other, ours)
        ]
    size = session.block_size
    shared = [result.prompt_tokens_cached for result in found]
    assert shared == [
        0,
        ours.placed[1].start // size * size,
        (len(ours.token_ids) - 1) // size * size,
    ]
    model = made(case.name)[1]
    expected = [greedy(case, model, prompt, 6) for prompt in (ours, other, ours)]
    assert [list(result.token_ids) for result in found] == expected
    one, two, three = map(_first_logprobs, found)
    assert one == pytest.approx(three, abs=1e-3)
    assert one != pytest.approx(two, abs=1e-2)


def _first_logprobs(result: RequestResult) -> dict[int, float]:
    """Of the first token: the likeliest and what they would cost."""
    logprobs = result.sequences[0].logprobs
    assert logprobs is not None
    return dict(logprobs[0].top_logprobs)


def test_images_and_their_tokens_belong_together() -> None:
    case = VisionCase(NAMES[0])
    image, form = case.prompts[1].placed[0], case.form
    ids = case.prompts[1].token_ids.tolist()
    with EngineLoop(opened(case.name, "reference"), _limits(), image_form=form) as loop:
        with pytest.raises(RequestError, match=r"stand for images .* its 0 images have 0"):
            loop.submit(ids)
        with pytest.raises(RequestError, match=r"its 1 images have"):
            loop.submit(ImagePrompt(ids, [PlacedImage(image.image, image.start + 1)]))
        with pytest.raises(RequestError, match="not in the order of their tokens"):
            loop.submit(ImagePrompt(ids[: image.stop - 1], [image]))
        wrong = replace(image.image, patches=image.image.patches * np.float32(np.nan))
        with pytest.raises(RequestError, match=r"no finite rows of"):
            loop.submit(ImagePrompt(ids, [PlacedImage(wrong, image.start)]))
    with (
        EngineLoop(opened(case.name, "reference"), _limits()) as loop,
        pytest.raises(RequestError, match="this model sees none"),
    ):
        loop.submit(ImagePrompt(ids, [image]))


def test_an_image_that_no_step_has_room_for_is_refused() -> None:
    case = VisionCase("gemma3/1")
    prompt = case.prompts[1]
    asked = ImagePrompt(prompt.token_ids.tolist(), prompt.placed)
    small = _limits(max_tokens_per_step=11)
    with EngineLoop(opened(case.name, "reference"), small, image_form=case.form) as loop:
        with pytest.raises(RequestTooLarge, match=r"has 9 tokens, .* has room for 8"):
            loop.submit(asked)
        with pytest.raises(RequestError, match="prompt_logprobs"):
            loop.submit(asked, SamplingParams(prompt_logprobs=1))


def _limits(**given: int) -> Limits:
    return Limits(
        **{
            "max_sequences": 4,
            "max_tokens_per_step": 32,
            "max_context": CONTEXT,
            "cache_blocks": 200,
            "max_queued_requests": 100,
            "max_queued_tokens": 10_000,
            **given,
        }
    )
