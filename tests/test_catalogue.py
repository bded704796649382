"""The catalogue: complete, sourced, consistent, and strict about files of one's own."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_factory_gym import catalogue
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.params import pool_power
from ai_factory_gym.physics.power import POWER_IDLE_W
from ai_factory_gym.sites import load_site

DIRECTORY = Path(catalogue.__file__).parent
RACKS_TOML = (DIRECTORY / "racks.toml").read_text()
MODELS_TOML = (DIRECTORY / "models.toml").read_text()

RACKS = {
    "gb200_nvl72": 72,
    "gb300_nvl72": 72,
    "vera_rubin_nvl144": 72,
    "rubin_cpx_sidecar": 144,
    "vera_rubin_nvl144_cpx": 216,
    "h100_sxm8": 8,
    "h200_sxm8": 8,
    "b200_sxm8": 8,
    "b300_sxm8": 8,
}
# Totals and active counts as published; active counts differ by whether the embedding is counted.
MODELS = {
    "deepseek-r1": (671.0, 37.6),
    "llama-3.1-405b": (405.8, 405.8),
    "llama-3.1-70b": (70.6, 70.6),
    "gpt-oss-120b": (116.8, 5.1),
    "qwen3-235b-a22b": (235.1, 22.2),
    "kimi-k2.5": (1026.0, 32.0),
}


def test_every_named_rack_and_model_is_there() -> None:
    assert {name: sum(group.gpus for group in catalogue.rack(name).groups) for name in catalogue.rack_ids()} == RACKS
    assert set(catalogue.model_ids()) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_follow_from_the_shape(name: str) -> None:
    model = catalogue.model(name)
    total, active = MODELS[name]
    assert model.total_params / 1e9 == pytest.approx(total, rel=0.002)
    assert model.active_params / 1e9 <= active * 1.01
    assert (model.active_params + model.embedding_params) / 1e9 >= active * 0.99


@pytest.mark.parametrize(
    ("name", "bf16_bytes"),
    [
        ("deepseek-r1", 70_272),
        ("llama-3.1-405b", 516_096),
        ("llama-3.1-70b", 327_680),
        ("gpt-oss-120b", 36_864),
        ("qwen3-235b-a22b", 192_512),
        ("kimi-k2.5", 70_272),
    ],
)
def test_kv_bytes_follow_from_the_shape(name: str, bf16_bytes: int) -> None:
    assert catalogue.model(name).kv_elements_per_token * 2 == bf16_bytes


def test_sliding_window_layers_hold_a_constant() -> None:
    assert catalogue.model("gpt-oss-120b").kv_elements_constant * 2 == 4_718_592


@pytest.mark.parametrize("name", RACKS)
def test_every_number_is_sourced(name: str) -> None:
    for group in catalogue.rack(name).groups:
        records = [group, group.architecture, *group.profiles]
        for record in records:
            assert record.provenance
            for key, quantity in record.provenance:
                assert getattr(record, key) == quantity.value
                assert quantity.status in catalogue.STATUSES
                assert quantity.source and quantity.unit


def test_withdrawn_products_are_flagged() -> None:
    flagged = {name for name in catalogue.rack_ids() if catalogue.rack(name).hypothetical}
    assert flagged == {"rubin_cpx_sidecar", "vera_rubin_nvl144_cpx"}


def test_rubin_is_rated_dense() -> None:
    assert catalogue.rack("vera_rubin_nvl144").group().fp4_pflops == 35.0


def test_never_measured_generations_do_not_claim_a_fit() -> None:
    for name in ("vera_rubin_nvl144", "rubin_cpx_sidecar"):
        statuses = {quantity.status for _, quantity in catalogue.rack(name).group().architecture.provenance}
        assert statuses == {"assumed"}


def test_mixed_rack_serves_each_phase_with_its_own_gpus() -> None:
    rack = catalogue.rack("vera_rubin_nvl144_cpx")
    assert rack.group("prefill").gpus == 144
    assert rack.group("decode").gpus == 72
    total_w = sum(group.profile().nameplate_w for group in rack.groups)
    assert total_w == 370_000.0
    with pytest.raises(ConfigError, match="say which phase"):
        rack.group()


def test_records_can_be_pickled_and_hashed() -> None:
    rack = catalogue.rack("gb300_nvl72")
    assert pickle.loads(pickle.dumps(rack)) == rack
    assert hash(catalogue.model("deepseek-r1")) == hash(pickle.loads(pickle.dumps(catalogue.model("deepseek-r1"))))


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: catalogue.rack("gb300"), ["rack", "'gb300'", "allowed", "'gb300_nvl72'"]),
        (lambda: catalogue.model("deepseek"), ["model", "'deepseek'", "'deepseek-r1'"]),
        (lambda: catalogue.rack("vera_rubin_nvl144").group().profile("maxq"), ["profile", "'maxq'", "'max_q'"]),
        (lambda: catalogue.rack("gb300_nvl72").group("decoding"), ["phase", "'decoding'", "'decode'"]),
        (lambda: catalogue.rack("h100_sxm8").group().flops("fp4"), ["hopper", "fp4", "fp8", "bf16"]),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(call: Callable[[], object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_of_ones_own_adds_a_rack(tmp_path: Path) -> None:
    start = RACKS_TOML.index("[racks.b200_sxm8]")
    text = RACKS_TOML[start : RACKS_TOML.index("[racks.b300_sxm8]")].replace("b200_sxm8", "my_system")
    racks = catalogue.load_racks(_write(tmp_path, text))
    assert list(racks) == ["my_system"]
    assert racks["my_system"].group().architecture == catalogue.rack("b200_sxm8").group().architecture
    assert racks["my_system"].group().fp4_pflops == 9.0


def test_a_generation_based_on_another_states_what_differs(tmp_path: Path) -> None:
    start = RACKS_TOML.index("[racks.b200_sxm8]")
    text = RACKS_TOML[start : RACKS_TOML.index("[racks.b300_sxm8]")].replace('"blackwell"', '"mine"')
    own = """[architectures.mine]
based_on = "blackwell"
link_efficiency = { value = 0.7, unit = "ratio", status = "assumed", source = "a test" }
"""
    found = catalogue.load_racks(_write(tmp_path, own + text))["b200_sxm8"].group().architecture
    base = catalogue.rack("b200_sxm8").group().architecture
    assert (found.id, found.link_efficiency) == ("mine", 0.7)
    assert found.quantity("link_efficiency").source == "a test"
    assert found.memory_efficiency == base.memory_efficiency
    assert found.quantity("memory_efficiency")[2:4] == ("assumed", "as blackwell")


def test_a_file_of_ones_own_adds_a_model(tmp_path: Path) -> None:
    text = MODELS_TOML[MODELS_TOML.index('[models."llama-3.1-70b"]') : MODELS_TOML.index('[models."gpt-oss-120b"]')]
    models = catalogue.load_models(_write(tmp_path, text.replace("llama-3.1-70b", "my-model")))
    assert models["my-model"].total_params == catalogue.model("llama-3.1-70b").total_params


RACK_MISTAKES = [
    ("memory_gb = {", "memory_gigabytes = {", ["racks.gb200_nvl72.groups.gpu", "memory_gigabytes", "memory_gb"]),
    ("gpus = { value = 72,", "gpus = { value = 0,", ["groups.gpu.gpus.value", "0", "[1, 10000]"]),
    ("gpus = { value = 72,", "gpus = { value = 7.5,", ["groups.gpu.gpus.value", "7.5", "whole"]),
    ("gpus = { value = 72,", 'gpus = { value = "72",', ["groups.gpu.gpus.value", "'72'", "number"]),
    ("gpus = { value = 72,", "gpus = { value = nan,", ["groups.gpu.gpus.value", "nan"]),
    ("gpus = { value = 72,", "gpus = { value = true,", ["groups.gpu.gpus.value", "True"]),
    ('unit = "TB/s"', 'unit = "GB/s"', ["memory_tb_s.unit", "'GB/s'", "'TB/s'"]),
    ('status = "vendor-stated"', 'status = "vendor stated"', ["status", "'vendor stated'", "'vendor-stated'"]),
    ("hypothetical = false", "hypothetical = 0", ["racks.gb200_nvl72.hypothetical", "0", "true or false"]),
    ('architecture = "blackwell"', 'architecture = "blackwel"', ["architecture", "'blackwel'", "'blackwell'"]),
    ('phases = ["prefill", "decode"]', 'phases = ["prefil"]', ["phases", "'prefil'", "'prefill'"]),
    ("tdp_w = { value = 1200.0", "tdp_w = { value = 150.0", ["tdp_w", "150", "idle"]),
    ("nameplate_w = { value = 126000.0", "nameplate_w = { value = 80000.0", ["nameplate_w"]),
    ("sleep_rack_w = { value = 5040.0", "sleep_rack_w = { value = 50400.0", ["sleep_rack_w = 50400"]),
    ("link_domain_gpus = { value = 72", "link_domain_gpus = { value = 144", ["link_domain_gpus", "144", "72"]),
    ('label = "GB200 NVL72"\n', "", ["racks.gb200_nvl72", "missing", "label"]),
    (', source = "InferenceX-app gpu-specs.ts"', "", ["memory_gb", "missing", "source"]),
    ("[racks.gb200_nvl72]", "[racks.gb200_nvl72", ["not valid TOML"]),
    ("[racks.gb200_nvl72]", "[rack.x]\n[racks.gb200_nvl72]", ["key", "'rack'", "'racks'"]),
    ("memory_efficiency = { value = 0.", "memory_efficiency = { value = 1.", ["architectures", "1.", "[0.05, 1]"]),
    ('based_on = "blackwell"', 'based_on = "blackwel"', ["architectures.rubin.based_on", "'blackwel'", "'blackwell'"]),
]


@pytest.mark.parametrize(("old", "new", "parts"), RACK_MISTAKES)
def test_mistakes_in_a_rack_file_are_named(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in RACKS_TOML
    text = RACKS_TOML.replace(old, new, 1)
    with pytest.raises(ConfigError) as caught:
        catalogue.load_racks(_write(tmp_path, text))
    for part in ["mine.toml", *parts]:
        assert part in str(caught.value)


MODEL_MISTAKES = [
    ('attention = "mla"', 'attention = "mha"', ["deepseek-r1.attention", "'mha'", "'mla'"]),
    ("q_lora = {", "q_rank = {", ["deepseek-r1", "q_rank"]),
    ("dense_layers = { value = 3,", "dense_layers = { value = 62,", ["dense_layers", "62", "61"]),
    ("top_k = { value = 8,", "top_k = { value = 300,", ["top_k", "300", "256"]),
    ("layers = { value = 61,", "layers = { value = -1,", ["layers.value", "-1"]),
]


@pytest.mark.parametrize(("old", "new", "parts"), MODEL_MISTAKES)
def test_mistakes_in_a_model_file_are_named(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in MODELS_TOML
    with pytest.raises(ConfigError) as caught:
        catalogue.load_models(_write(tmp_path, MODELS_TOML.replace(old, new, 1)))
    for part in ["mine.toml", *parts]:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        catalogue.load_racks(tmp_path / "nowhere.toml")


def test_a_pool_takes_a_rack_type_of_ones_own() -> None:
    shipped = load_site("edge")
    pool = shipped.pools[0]
    group = pool.rack_type.groups[0]
    changed = dataclasses.replace(
        pool.rack_type, groups=(dataclasses.replace(group, idle_w=0.5 * group.idle_w),) + pool.rack_type.groups[1:]
    )
    own = dataclasses.replace(pool, rack=changed)
    assert own.name == pool.name
    assert own.rack_type is changed
    site = dataclasses.replace(shipped, pools=(own, *shipped.pools[1:]))
    assert site != shipped
    assert pool_power(site.pools[0])[POWER_IDLE_W] == 0.5 * pool_power(pool)[POWER_IDLE_W]
    assert dataclasses.replace(pool, rack=catalogue.rack(pool.rack_type.id)).rack_type == pool.rack_type
