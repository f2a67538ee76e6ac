"""peft's config: its patterns and scales are read as peft reads them, and what lida does not compute is refused."""

import json
import math
import re
import time

import diffusers
import peft
import pytest
from conftest import ATTENTION, adapter_for, agree, random_adapter
from safetensors.torch import load_file, save_file

import lida
from lida.adapters import load_adapter
from lida.adapters.adapter import TEXT
from lida.adapters.peft_config import PeftConfig
from tests.adapters.conftest import ONE, RANK, STEM, theirs


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("patterns", [False, True])
def test_what_peft_and_diffusers_save_loads(sd, pipe, tmp_path, rslora, patterns):
    """Header and folder, with patterns of rank and alpha and rank-stabilised scales."""
    options = {"rank_pattern": {"attn2.to_q": 8}, "alpha_pattern": {"mid_block.*attn2.to_k": 3.0}} if patterns else {}
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=list(ATTENTION), init_lora_weights=False, **options
    )
    pipe.unet.add_adapter(config, "x")
    state = peft.get_peft_model_state_dict(pipe.unet, adapter_name="x")
    metadata = {"unet": pipe.unet.peft_config["x"].to_dict()}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, diffusers.utils.convert_state_dict_to_diffusers(state), unet_lora_adapter_metadata=metadata["unet"]
    )
    adapter = load_adapter(tmp_path, sd)
    assert len(adapter.layers) == len(state) // 2
    agree(adapter, lambda name: theirs(pipe, name))
    assert len({layer.rank for layer in adapter.layers.values()}) == (2 if patterns else 1)
    if rslora:
        assert math.isclose(next(iter(adapter.layers.values())).scale, 6 / math.sqrt(next(iter(adapter.layers.values())).rank))
    other = diffusers.UNet2DConditionModel.from_config(pipe.unet.config)
    other.load_state_dict(
        {name.replace(".base_layer", ""): t for name, t in pipe.unet.state_dict().items() if "lora_" not in name}
    )
    wrapped = peft.get_peft_model(other, config, adapter_name="default")
    wrapped.save_pretrained(tmp_path / "peft")
    agree(
        load_adapter(tmp_path / "peft", sd),
        lambda name: wrapped.base_model.model.get_submodule(name).get_delta_weight("default"),
    )


def test_alpha_patterns_are_read_as_peft_reads_them(sd, tmp_path):
    path = lida.save_adapter(tmp_path / "x.safetensors", random_adapter(sd, 0))
    config = {"unet.r": RANK, "unet.lora_alpha": 2.0, "unet.alpha_pattern": {"attn2.to_q": 16.0}}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(config)})
    for name, layer in load_adapter(path).layers.items():
        assert layer.alpha == (16.0 if name.endswith("attn2.to_q") else 2.0)
    for broken in ("[]", "null", "{"):
        save_file(load_file(path), path, metadata={"lora_adapter_metadata": broken})
        with pytest.raises(lida.InputError, match="x.safetensors: (its header|lora_adapter_metadata)"):
            load_adapter(path)


def test_patterns_of_old_and_new_transformers_are_read(sd, tmp_path):
    """Paths of the text encoder had `text_model.` in front; null means the rank."""
    path = f"{TEXT}encoder.layers.0.self_attn.q_proj"
    layer = adapter_for(sd, ("q_proj",), (4,)).layers[path]
    file = {
        f"text_encoder.text_model.{path.removeprefix(TEXT)}.lora_linear_layer.{n}.weight": getattr(layer, n)
        for n in ("up", "down")
    }
    for prefix, expected in (("text_model.", 1.0), ("", 1.0), ("elsewhere.", 4.0)):
        config = {"text_encoder.lora_alpha": None, "text_encoder.alpha_pattern": {f"{prefix}{path.removeprefix(TEXT)}": 1.0}}
        save_file(file, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
        assert load_adapter(tmp_path / "x.safetensors", sd).layers[path].alpha == expected


WHAT_CHANGES_THE_RESULT = {
    "use_dora": True, "fan_in_fan_out": True, "modules_to_save": ["conv_in"], "init_lora_weights": "pissa", "bias": "all",
    "layer_replication": [[0, 2]], "lora_bias": True, "trainable_token_indices": [1], "target_parameters": ["x"],
    "a_field_of_tomorrow": 1, "peft_type": "LOHA", "use_rslora": "yes", "lora_alpha": "2", "alpha_pattern": {"to_q": None},
    "r": 3, "rank_pattern": {"to_q": 3},
}  # fmt: skip


WHAT_DOES_NOT = {
    "lora_dropout": 0.5, "bias": "none", "r": 2, "rank_pattern": {"to_q": 2}, "use_dora": False, "a_field_of_tomorrow": None,
}  # fmt: skip


def with_config(folder, config: dict | str, header: bool):
    """An adapter of rank 2 with peft's config in its header, or in a file beside it."""
    text = config if isinstance(config, str) else json.dumps({"lora_alpha": 2, **config})
    if header:
        text = json.dumps({f"unet.{name}": value for name, value in json.loads(text).items()})
        save_file(ONE, folder / "x.safetensors", metadata={"lora_adapter_metadata": text})
        return folder / "x.safetensors"
    names = {"down": "lora_A", "up": "lora_B"}
    tensors = {f"base_model.model.{STEM}.{names[name.split('.')[-2]]}.weight": tensor for name, tensor in ONE.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("name", WHAT_CHANGES_THE_RESULT)
def test_configs_that_lida_does_not_compute_are_refused(tmp_path, name, header):
    with pytest.raises(lida.InputError, match=name if name not in ("r", "rank_pattern") else "config says 3") as error:
        load_adapter(with_config(tmp_path, {name: WHAT_CHANGES_THE_RESULT[name]}, header))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_configs_that_change_nothing_load(tmp_path):
    for header in (False, True):
        (layer,) = load_adapter(with_config(tmp_path, WHAT_DOES_NOT, header)).layers.values()
        assert layer.alpha == layer.rank == 2
    (layer,) = load_adapter(tmp_path / "adapter_model.safetensors").layers.values()
    assert layer.alpha == 2


NO_CONFIGS = ['{"lora_alpha": NaN}', '{"lora_alpha": 1e999}', '{"r": 2, "r": 2}', "[]", "{" * 100, "", "1", '{"r": 2}']


@pytest.mark.parametrize("text", NO_CONFIGS)
def test_what_is_no_config_is_refused(tmp_path, text):
    with pytest.raises(lida.InputError, match="adapter_config.json") as error:
        load_adapter(with_config(tmp_path, text, header=False))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["(", "a" * 300, "(?R)", "((.{1,100}){1,100}){1,100}b", "(a+)+b", "a|b", "^to_q", "[ab]", ""])
def test_patterns_of_more_than_names_and_dots_are_refused(tmp_path, pattern):
    """Matching the fourth would take years."""
    with pytest.raises(lida.InputError, match="alpha_pattern .* is not supported; write the layer's name"):
        load_adapter(with_config(tmp_path, {"alpha_pattern": {pattern: 1.0}}, header=True))


def test_patterns_are_matched_as_peft_does_and_end_soon():
    """Its rule is re.match(rf"(.*\\.)?({key})$", path), and the first pattern that fits counts."""
    patterns = {r"mid\.x": 1.0, "m.d.x": 2.0, "up.*to_q": 3.0, "attn..to_k": 4.0, "to_v": 5.0, "u": 6.0}
    config = PeftConfig(lora_alpha=7.0, alpha_pattern=patterns)
    for path in ("mid.x", "a.mid.x", "mud.x", "amid.x", "up.1.to_q", "cup.to_q", "a.attn2.to_k", "xto_v", "a.to_v", "x.u", "ux"):
        fitting = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", path))
        assert config.alpha(path, 2) == next(fitting, 7.0), path
    start = time.process_time()
    PeftConfig(alpha_pattern={".*a" * 85 + "b": 1.0}).alpha("a" * 100_000, 2)
    assert time.process_time() - start < 5  # some ms
