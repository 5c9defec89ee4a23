"""`paddock.LLM`: the same from Python, in its synchronous, streaming and asynchronous forms."""

import asyncio
import doctest
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import paddock.llm
import paddock.recipes.any_checkpoint
from paddock import LLM, Completion, PaddockError, SamplingParams
from paddock.llm import Prompt
from paddock.runtime.errors import LoopClosed, RequestError, RequestTooLarge
from paddock.runtime.scheduling.request import FinishReason

PROMPTS = ["The ls command", "A symbolic link", "To install a package,", "The kernel"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
LONG = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def engines_of_this_run(paddock_home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(paddock_home))
        yield


@pytest.fixture(scope="module")
def llm(engines_of_this_run: None) -> Iterator[LLM]:
    with LLM("demo", "limits.max_sequences=4", "limits.max_queued_requests=3") as started:
        yield started


def wait_until_idle(llm: LLM) -> None:
    end = time.monotonic() + 120
    while llm.stats().running or llm.stats().waiting:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_examples_in_docstrings_run() -> None:
    for module in (paddock.llm, paddock.recipes.any_checkpoint):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


def test_answers_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    alone = [llm.generate(prompt, GREEDY)[0].text for prompt in PROMPTS]
    together = llm.generate(PROMPTS * 5, GREEDY)  # many more than may wait
    assert [completion.text for completion in together] == alone * 5
    assert [completion.prompt for completion in together] == PROMPTS * 5


def test_each_prompt_may_have_its_own_settings(llm: LLM) -> None:
    lengths = [3, 1, 5]
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
    found = llm.generate(PROMPTS[:3], params)
    assert [len(completion.token_ids) for completion in found] == lengths
    with pytest.raises(RequestError, match="expected params for each of 3 prompts, found 2"):
        llm.generate(PROMPTS[:3], params[:2])


def test_a_prompt_is_text_token_ids_or_messages(llm: LLM) -> None:
    token_ids = llm.tokenizer.encode("The ls command")
    chat = [{"role": "user", "content": "What is ls?"}]
    prompts: list[Prompt] = ["The ls command", token_ids, chat]
    by_text, by_ids, by_chat = llm.generate(prompts, GREEDY)
    assert by_text.text == by_ids.text
    assert by_chat.prompt_token_ids == tuple(llm.tokenizer.encode_chat(chat))
    assert llm.generate(token_ids, GREEDY)[0].text == by_text.text
    assert llm.generate(chat, GREEDY)[0].text == by_chat.text == llm.chat(chat, GREEDY).text
    assert llm.generate([], GREEDY) == []


def test_what_a_call_leaves_out_is_the_recipes(llm: LLM) -> None:
    assert llm.default_params == SamplingParams(temperature=0.0, max_tokens=128)
    assert llm.resolve(SamplingParams(max_tokens=5)) == SamplingParams(
        temperature=0.0, max_tokens=5
    )
    # What is given counts, also where it is what an empty SamplingParams has.
    assert llm.resolve(SamplingParams(temperature=1.0)).temperature == 1.0
    assert llm.generate("The ls command", SamplingParams(max_tokens=8))[0].text == (
        llm.generate("The ls command", GREEDY)[0].text
    )


def test_completions_say_what_they_cost(llm: LLM) -> None:
    prompt = "Cost. " * 40
    first = llm.generate(prompt, SamplingParams(max_tokens=4, n=2, seed=0, ignore_eos=True))[0]
    assert [len(sequence.token_ids) for sequence in first.sequences] == [4, 4]
    assert first.usage.completion_tokens == 8
    assert first.usage.prompt_tokens == len(first.prompt_token_ids)
    assert first.finish_reason is FinishReason.LENGTH
    again = llm.generate(prompt, GREEDY)[0]
    assert again.usage.prompt_tokens_cached >= 32
    assert again.timing.to_first_token_s is not None


def test_progress_is_told_in_order(llm: LLM) -> None:
    told: list[int] = []

    def tell(index: int, completion: Completion) -> None:
        assert completion.prompt == PROMPTS[index]
        told.append(index)

    llm.generate(PROMPTS, GREEDY, on_completion=tell)
    assert told == [0, 1, 2, 3]


def test_a_stream_is_the_text_in_pieces(llm: LLM) -> None:
    whole = llm.generate("The ls command", GREEDY)[0]
    pieces = list(llm.stream("The ls command", GREEDY))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum((piece.token_ids for piece in pieces), ()) == whole.token_ids
    assert pieces[-1].finish_reason == whole.finish_reason


def test_leaving_a_stream_cancels_it(llm: LLM) -> None:
    before = llm.stats().generated_tokens
    for _ in llm.stream("The ls command", LONG):
        break
    wait_until_idle(llm)
    assert llm.stats().generated_tokens - before < 500


def test_a_refused_prompt_leaves_nothing_running(llm: LLM) -> None:
    cases: list[tuple[list[Prompt], type[Exception]]] = [
        (["word " * 2000], RequestTooLarge),
        ([[4096]], RequestError),
    ]
    for bad, error in cases:
        with pytest.raises(error):
            llm.generate(["The ls command", *bad], [LONG, LONG])
        wait_until_idle(llm)
    empty_first: list[Prompt] = [[], "The ls command"]
    with pytest.raises(RequestError, match="empty"):
        llm.generate(empty_first)
    with pytest.raises(RequestError, match="expected a prompt or a list of prompts, found int"):
        llm.generate(7)  # type: ignore[arg-type]


def test_threads_share_it(llm: LLM) -> None:
    expected = [llm.generate(prompt, GREEDY)[0].text for prompt in PROMPTS]
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        found[index] = llm.generate(PROMPTS[index % 4], GREEDY)[0].text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(12)] == expected * 3


def test_coroutines_share_it(llm: LLM) -> None:
    expected = [llm.generate(prompt, GREEDY)[0].text for prompt in PROMPTS]

    async def streamed(prompt: str) -> str:
        return "".join([chunk.text async for chunk in llm.astream(prompt, GREEDY)])

    async def everything() -> None:
        tasks = [streamed(prompt) for prompt in PROMPTS * 3]
        assert await asyncio.gather(*tasks) == expected * 3
        batch = await llm.agenerate(PROMPTS * 3, GREEDY)
        assert [completion.text for completion in batch] == expected * 3

    asyncio.run(everything())


def test_cancelling_a_task_cancels_its_requests(llm: LLM) -> None:
    async def cancelled() -> None:
        tasks = [
            asyncio.create_task(llm.agenerate(PROMPTS * 4, LONG)),  # some wait for room
            asyncio.create_task(_drain(llm)),
        ]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in done)

    asyncio.run(cancelled())
    before = llm.stats().generated_tokens
    wait_until_idle(llm)
    assert llm.stats().generated_tokens - before < 500


async def _drain(llm: LLM) -> None:
    async for _ in llm.astream("The ls command", LONG):
        pass


def test_a_closed_one_says_so() -> None:
    with LLM("demo") as llm:
        stream = llm.stream("The ls command", LONG)
        next(stream)
    # What was running was cancelled.
    assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
    with pytest.raises(LoopClosed):
        llm.generate("The ls command")
    llm.close()


def test_overrides_and_recipes_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(
        "defaults: [demo, _self_]\nsampling: {max_tokens: 3, temperature: 0.5}\n"
    )
    with LLM("short", "engine=reference", "limits.max_context=64", config_dir=tmp_path) as llm:
        assert (llm.recipe.name, llm.recipe.engine.name) == ("short", "reference")
        assert llm.default_params.max_tokens == 3
        assert len(llm.generate("The ls command")[0].token_ids) <= 3
        with pytest.raises(RequestTooLarge, match="64"):
            llm.generate("word " * 70)


def test_mistakes_are_paddock_errors() -> None:
    for name, *overrides in (("dmo",), ("demo", "quant=int9"), ("./nowhere",)):
        with pytest.raises(PaddockError):
            LLM(name, *overrides)


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "raise ValueError('x')"])
def test_a_program_ends_without_closing_it(environment: dict[str, str], ending: str) -> None:
    program = (
        "from paddock import LLM, SamplingParams\n"
        "llm = LLM('demo')\n"
        "for piece in llm.stream('The', SamplingParams(max_tokens=900, ignore_eos=True)): break\n"
        "handle = llm.submit('The', SamplingParams(max_tokens=900, ignore_eos=True))\n"
        f"{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == {"": 0, "raise SystemExit(3)": 3}.get(ending, 1)
    assert done.stderr.strip().endswith("ValueError: x" if "Value" in ending else "")
    assert "Traceback" not in done.stderr or "Value" in ending


def test_importing_paddock_costs_nothing(environment: dict[str, str]) -> None:
    program = (
        "import sys; before = set(sys.modules); import paddock;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - {'__future__'}));"
        "print(sorted(set(paddock.__all__) - set(dir(paddock))));"
        "from paddock import SamplingParams;"
        "print('openvino' in sys.modules, 'hydra' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["['paddock']", "[]", "False False"]


def test_the_package_exports_what_it_says() -> None:
    import paddock as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert package.__version__
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        package.LLMs  # noqa: B018
