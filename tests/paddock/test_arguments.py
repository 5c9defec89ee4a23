"""The command line is read as it is meant, and mistakes name what comes near."""

from pathlib import Path

import pytest

from paddock.commands.arguments import (
    CommandParser,
    RecipeChoice,
    UsageError,
    add_recipe_arguments,
    recipe_choice,
)
from paddock.commands.sampling_flags import (
    FIELDS,
    add_sampling_arguments,
    read_setting,
    sampling_settings,
)
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.sampling.structured_outputs import StructuredOutputs


def parser() -> CommandParser:
    made = CommandParser("paddock test", "NAME", "A command.")
    add_recipe_arguments(made)
    made.add_argument("--prompt", action="append", default=[])
    add_sampling_arguments(made)
    return made


def choice(*arguments: str) -> RecipeChoice:
    return recipe_choice(parser().parse(list(arguments)))


def test_overrides_stand_anywhere_among_options() -> None:
    options = parser().parse(
        ["engine=openvino", "demo", "--prompt", "a=b", "quant=int8", "-q", "~plugins", "+a.b=c"]
    )
    assert recipe_choice(options) == RecipeChoice(
        "demo", ("engine=openvino", "quant=int8", "~plugins", "+a.b=c"), ()
    )
    assert options.prompt == ["a=b"]
    assert options.quiet


@pytest.mark.parametrize("flag", ["-cn", "--config-name"])
def test_config_name_is_the_name(flag: str) -> None:
    assert choice(flag, "demo", "quant=int8") == choice("demo", "quant=int8")


def test_values_may_contain_anything() -> None:
    odd = ["sampling.stop=[a, b]", "x='a b'", "a.b={c: 1}", "plugins=[]"]
    assert choice("demo", *odd).overrides == tuple(odd)


def test_two_names_and_no_name_are_refused() -> None:
    with pytest.raises(UsageError, match="found 'demo' and 'hello'"):
        choice("demo", "hello")
    with pytest.raises(UsageError, match="found 'a' and 'b'"):
        choice("-cn", "a", "b")
    with pytest.raises(UsageError, match="which recipe"):
        choice("quant=int8")


def test_config_dir_has_to_be_there(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    found = choice("demo", "--config-dir", str(one), "--config-dir", str(two)).config_dirs
    assert found == (one, two)
    with pytest.raises(UsageError, match="three: no such folder"):
        choice("demo", "--config-dir", str(tmp_path / "three"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [("--promt", "--prompt"), ("--temprature=0.5", "--temperature"), ("--config-dirs", "--config")],
)
def test_a_misspelt_option_names_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"no option {written.partition('=')[0]}; .*'{meant}"):
        parser().parse(["demo", written, "x"])


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(UsageError, match="no option --temp"):
        parser().parse(["demo", "--temp", "1"])


def test_after_two_dashes_everything_is_a_word() -> None:
    assert parser().parse(["demo", "--", "--temperature"]).words == ["demo", "--temperature"]


def test_every_field_of_sampling_params_has_a_flag() -> None:
    assert [field.name for field in FIELDS] == list(SamplingParams.model_fields)


def test_sampling_flags_make_sampling_params() -> None:
    line = (
        "demo --n 2 --max-tokens 9 --min-tokens 1 --temperature 0.5 --top-k 5 --top-p 0.9"
        " --min-p 0.1 --typical-p 0.8 --repetition-penalty 1.1 --presence-penalty 0.2"
        " --frequency-penalty -0.3 --logit-bias 4=-2.5 --logit-bias 7=1 --bad-words foo --seed -3"
        " --logprobs 2 --prompt-logprobs 0 --stop END --stop . --stop-token-ids 1"
        " --stop-token-ids 2 --include-stop --ignore-eos --no-skip-special-tokens"
        ' --structured-outputs {"choice":["a","b"]}'
    )
    settings = sampling_settings(parser().parse(line.split()))
    assert SamplingParams(**settings) == SamplingParams(
        n=2,
        max_tokens=9,
        min_tokens=1,
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={4: -2.5, 7: 1.0},
        bad_words=("foo",),
        seed=-3,
        logprobs=2,
        prompt_logprobs=0,
        stop=("END", "."),
        stop_token_ids=(1, 2),
        include_stop=True,
        ignore_eos=True,
        skip_special_tokens=False,
        structured_outputs=StructuredOutputs(choice=("a", "b")),
    )


def test_what_is_not_given_is_left_to_the_recipe() -> None:
    assert sampling_settings(parser().parse(["demo"])) == {}
    given = sampling_settings(parser().parse(["demo", "--seed", "1", "--no-ignore-eos"]))
    assert given == {"seed": 1, "ignore_eos": False}


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--max-tokens", "many", "--max-tokens: expected N, found 'many'"),
        ("--structured-outputs", "7", "--structured-outputs: expected JSON, found '7'"),
        ("--structured-outputs", "{", "--structured-outputs: expected JSON, found '{'"),
        ("--temperature", "warm", "--temperature: expected X, found 'warm'"),
        ("--logit-bias", "5", "--logit-bias: expected ID=X, found '5'"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(flag: str, value: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        sampling_settings(parser().parse(["demo", flag, value]))


def test_settings_are_read_as_typed() -> None:
    assert read_setting("temperature=0.5") == ("temperature", 0.5)
    assert read_setting("top-k = 5") == ("top_k", 5)
    assert read_setting("ignore_eos=yes") == ("ignore_eos", True)
    assert read_setting("stop=a b") == ("stop", ("a b",))
    assert read_setting("logit_bias=5=1.5") == ("logit_bias", {5: 1.5})
    assert read_setting("seed=none") == ("seed", None)
    with pytest.raises(UsageError, match="nearest is 'temperature'"):
        read_setting("temperatur=1")
    with pytest.raises(UsageError, match="expected setting=value"):
        read_setting("temperature")
