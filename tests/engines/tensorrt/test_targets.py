"""What is refused before anything expensive starts, and what the refusal says to do."""

from __future__ import annotations

from typing import Any

import pytest

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt import flavours, targets
from paddock.engines.tensorrt.bounds import CONTEXT, GENERATION, Bounds
from paddock.engines.tensorrt.flavours import FEATURES, Flavour
from paddock.graph import DType

RTX = Flavour("tensorrt_rtx", "1.7.1", FEATURES["tensorrt_rtx", (1, 7)], None)
FULL = Flavour("tensorrt", "11.1.0", FEATURES["tensorrt", (11, 0)], None)


def choose(
    *asked: str, dtype: DType = DType.F16, here: str | None = None, flavour: Flavour = RTX
) -> tuple[str, ...]:
    return targets.choose(asked, flavour, [dtype], here)


def test_without_a_gpu_a_plan_is_for_all_that_run_it() -> None:
    assert choose("auto") == ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
    assert choose("auto", dtype=DType.F8E4M3) == ("sm89", "sm120", "sm121")
    assert choose("auto", dtype=DType.BF16) == ("sm80", "sm86", "sm89", "sm120", "sm121")


def test_targets_are_in_order_and_once() -> None:
    assert choose("sm120", "sm80", "sm120") == ("sm80", "sm120")


def test_auto_is_this_machines_own() -> None:
    assert choose("auto", here="sm89") == ("sm89",)
    assert choose("auto", here="sm90", flavour=FULL) == ("sm90",)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (["sm75"], {"dtype": DType.BF16}, r"sm75 \(Turing.* no arithmetic for bf16.* dtype=f16"),
        (["sm80", "sm75"], {"dtype": DType.F32}, r"sm75 .* for f32, which begins with sm80"),
        (["sm75"], {"dtype": DType.F8E4M3}, r"sm75 .* no arithmetic for f8e4m3, which begins with"),
        (
            ["sm80", "sm89"],
            {"dtype": DType.F8E4M3},
            r"sm80 .* with sm89; use quant=int8 or ",
        ),
        (["sm75"], {"dtype": DType.I4}, r"sm75 .* for i4.* use quant=int8"),
        (["sm90"], {}, r"has no 'sm90'; nearest .*; it compiles for sm75"),
        (["auto"], {"here": "sm90"}, r"GPU is sm90, which .* does not compile for.*engine=cuda"),
        (["sm80"], {"flavour": FULL, "here": "sm90"}, r"own GPU alone, which is sm90"),
        (["auto"], {"flavour": FULL}, r"here is none .*engine\.flavour=tensorrt_rtx"),
    ],
)
def test_a_refusal_names_the_way_out(
    asked: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        choose(*asked, **options)


def test_releases_have_the_features_of_the_last_row_that_they_reach() -> None:
    assert flavours.features("tensorrt", "11.4.0") == FEATURES["tensorrt", (11, 0)]
    assert flavours.features("tensorrt", "10.17.3") == FEATURES["tensorrt", (10, 16)]
    with pytest.raises(BuildError, match=r"tensorrt 10\.9\.1 .* install tensorrt 10\.16 or newer"):
        flavours.features("tensorrt", "10.9.1")


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [
        ([], "auto", r"needs the package tensorrt_rtx.*pip install 'paddock\[rtx\]'$"),
        (["tensorrt_rtx"], "tensorrt", r"paddock\[tensorrt\]', or choose engine\.flavour=tensorrt"),
        (["tensorrt_rtx"], "tensort", r"there is no 'tensort'; there are auto, tensorrt, tensorrt"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, there: list[str], wanted: str, message: str
) -> None:
    monkeypatch.setattr(flavours, "installed", lambda: there)
    with pytest.raises(BuildError, match=message):
        flavours.find(wanted)


def test_the_table_of_features_is_true_of_what_is_installed() -> None:
    for package in flavours.installed():
        found = flavours.find(package)
        trt = found.module
        network, config = trt.INetworkDefinition, trt.IBuilderConfig
        assert found.features.ragged_attention == hasattr(network, "add_attention_v2")
        assert found.features.plugins == hasattr(network, "add_plugin_v3")
        assert found.features.ahead_of_time == hasattr(config, "set_compute_capability")
        assert found.features.runtime_config == hasattr(trt, "IRuntimeConfig")
        preview = hasattr(trt.PreviewFeature, "MULTIDEVICE_RUNTIME_10_16")
        assert found.features.multi_device_preview == preview
        for target in targets.NAMES if found.features.ahead_of_time else ():
            assert hasattr(trt.ComputeCapability, target.upper())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequences": 8, "max_tokens_per_step": 7}, r"per_step is 7, limits.max_sequences 8"),
        ({"max_context": 0}, r"limits\.max_context is 0, expected 1 at least"),
        ({"max_sequences": -1}, r"limits\.max_sequences is -1, expected 1 at least"),
    ],
)
def test_limits_that_contradict_each_other(options: dict[str, int], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        Bounds.of({"max_context": 64, **options})


def test_profiles_bound_what_a_step_may_be() -> None:
    bounds = Bounds.of({"max_context": 100, "max_sequences": 4, "max_tokens_per_step": 64})
    assert bounds.capacity == 112  # 101 in whole sixteens
    dims = ("sequences", "tokens")
    assert bounds.shapes(CONTEXT, dims) == [(1, 1), (1, 64), (4, 64)]
    assert bounds.shapes(GENERATION, dims) == [(1, 1), (4, 1), (4, 1)]
    with pytest.raises(BuildError, match=r"max_tokens_per_step is 3, limits\.max_sequences 4"):
        Bounds.of({"max_context": 100, "max_sequences": 4, "max_tokens_per_step": 3})
