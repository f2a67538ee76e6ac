"""Adapters in every dialect: what diffusers and peft make of our files, what we make of theirs, and what is refused."""

import json
import math
import os
import re
import shutil
import time

import diffusers
import peft
import pytest
import torch
from conftest import ATTENTION, adapter_for, agree
from safetensors.torch import load_file, save_file

import lida
from lida.adapters import load_adapter, parse_pairs, save_adapter
from lida.adapters.dialects import TEXT
from lida.adapters.peft_config import PeftConfig
from lida.nn.lora import CROSS_ATTENTION, TEXT_ATTENTION, LowRank


def theirs(pipe, path: str) -> torch.Tensor:
    """Return the change that diffusers and peft make to the module at our path."""
    if path.startswith(TEXT):
        inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
        module = inner.get_submodule(path.removeprefix(TEXT))
    else:
        module = pipe.unet.get_submodule(path)
    return module.get_delta_weight("x")


CASES = {
    "alpha is the rank": (ATTENTION, (4,), (None,)),
    "alpha is not the rank": (ATTENTION, (4,), (6.0,)),
    "mixed ranks": (CROSS_ATTENTION, (2, 4, 8), (None,)),
    "mixed ranks and alphas": (ATTENTION, (2, 4, 8), (1.0, 3.0)),
    "feed-forward and projections": (
        ("ff.net.0.proj", "ff.net.2", "attentions.0.proj_in", "proj_out", "to_q"),
        (4,),
        (2.0, 4.0),
    ),
    "convolutions": (
        ("resnets.0.conv1", "resnets.1.conv2", "downsamplers.0.conv", "conv_shortcut", "time_emb_proj"),
        (4,),
        (2.0,),
    ),
    "text encoder too": (("attn2.to_k", *TEXT_ATTENTION), (4,), (2.0,)),
    "only some blocks": (("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",), (3,), (2.0,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_diffusers_applies_what_we_write(sd, pipe, tmp_path, case, format):
    targets, ranks, alphas = CASES[case]
    adapter = adapter_for(sd, targets, ranks, alphas)
    path = save_adapter(tmp_path / "x.safetensors", adapter, format)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    agree(adapter, lambda name: theirs(pipe, name))
    again = load_adapter(path, sd)
    assert again.layers.keys() == adapter.layers.keys() and again.metadata == adapter.metadata
    agree(again, lambda name: adapter.layers[name].delta)


@pytest.mark.parametrize("case", [case for case in CASES if "text" not in case])
def test_peft_applies_what_we_write(sd, pipe, tmp_path, case):
    targets, ranks, alphas = CASES[case]
    adapter = adapter_for(sd, targets, ranks, alphas)
    save_adapter(tmp_path / "x", adapter, "peft")
    model = peft.PeftModel.from_pretrained(pipe.unet, tmp_path / "x", adapter_name="x")
    agree(adapter, lambda name: model.base_model.model.get_submodule(name).get_delta_weight("x"))
    again = load_adapter(tmp_path / "x", sd)
    assert again.layers.keys() == adapter.layers.keys() and again.metadata == adapter.metadata
    agree(again, lambda name: adapter.layers[name].delta)


def test_pefts_folders_of_both_models(sd, pipe, tmp_path):
    adapter = adapter_for(sd, ("attn2.to_k", *TEXT_ATTENTION), (4, 2), (2.0,))
    save_adapter(tmp_path, adapter, "peft")
    unet = peft.PeftModel.from_pretrained(pipe.unet, tmp_path / "unet", adapter_name="x").base_model.model
    text = peft.PeftModel.from_pretrained(pipe.text_encoder, tmp_path / "text_encoder", adapter_name="x").base_model.model

    def delta(path: str) -> torch.Tensor:
        model = text if path.startswith(TEXT) else unet
        return model.get_submodule(path.removeprefix(TEXT)).get_delta_weight("x")

    agree(adapter, delta)
    again = load_adapter(tmp_path, sd)
    assert again.layers.keys() == adapter.layers.keys()
    agree(again, lambda name: adapter.layers[name].delta)


@pytest.mark.parametrize("case", CASES)
def test_kohyas_rule_gives_what_we_wrote(sd, tmp_path, case):
    """multiplier * alpha / dim * up down, under names made forward from the model's, as kohya's and ComfyUI's loaders do."""
    targets, ranks, alphas = CASES[case]
    adapter = adapter_for(sd, targets, ranks, alphas)
    file = load_file(save_adapter(tmp_path / "x.safetensors", adapter, "kohya"))

    def delta(path: str) -> torch.Tensor:
        name = f"lora_te_text_model_{path.removeprefix(TEXT)}" if path.startswith(TEXT) else f"lora_unet_{path}"
        down, up, alpha = (
            file.pop(f"{name.replace('.', '_')}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        return float(alpha) / down.shape[0] * (up.flatten(1) @ down.flatten(1))

    agree(adapter, delta)
    assert not file  # and nothing else is in it


SPELLINGS = {
    "processor": lambda path: (
        path.rpartition(".to_")[0] + ".processor.to_" + path.rpartition(".to_")[2].removesuffix(".0") + "_lora",
        "down",
        "up",
    ),
    "lora": lambda path: (f"{path}.lora", "down", "up"),
    "peft": lambda path: (path, "lora_A", "lora_B"),
}


@pytest.mark.parametrize("prefix", ["", "unet."])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_diffusers_load(sd, tmp_path, spelling, prefix):
    adapter, file = adapter_for(sd, ATTENTION), {}
    for path, layer in adapter.layers.items():
        stem, down, up = SPELLINGS[spelling](path)
        file |= {f"{prefix}{stem}.{down}.weight": layer.down, f"{prefix}{stem}.{up}.weight": layer.up}
    save_file(file, tmp_path / "x.safetensors")
    again = load_adapter(tmp_path / "x.safetensors", sd)
    assert again.layers.keys() == adapter.layers.keys()
    agree(again, lambda name: adapter.layers[name].delta)


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


def test_kohya_files_with_minority_alphas_load(sd, tmp_path):
    """Each layer's own alpha counts: 0-dim, 0 for the rank, or absent; both names of the text encoder; flat 1x1 factors."""
    file, expected = {}, {}
    adapter = adapter_for(
        sd, ("attn2.to_q", "attn2.to_out.0", "ff.net.2", "attentions.0.proj_in", "resnets.0.conv1", "q_proj"), (4,)
    )
    for number, (path, layer) in enumerate(adapter.layers.items()):
        te = ("lora_te_text_model_", "lora_te1_text_model_")[number % 2]
        name = (te + path.removeprefix(TEXT) if path.startswith(TEXT) else f"lora_unet_{path}").replace(".", "_")
        down, up = layer.down, layer.up
        if path.endswith("proj_in") and number % 2:
            down, up = down.flatten(1), up.flatten(1)
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        alpha = (1.0, 8.0, 0.0, None)[number % 4]
        if alpha is not None:
            file[f"{name}.alpha"] = torch.tensor(alpha if number % 8 else int(alpha))  # diffusers' exporter writes integers
        expected[path] = (alpha or 4.0) / 4 * layer.delta
    save_file(file, tmp_path / "x.safetensors", metadata={"ss_network_dim": "4", "ss_network_alpha": "1"})
    again = load_adapter(tmp_path / "x.safetensors", sd)
    assert again.layers.keys() == adapter.layers.keys()
    agree(again, expected.get)


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


def test_a_trainers_checkpoints_are_not_mixed_into_its_result(sd, tmp_path):
    adapter, early = adapter_for(sd, ("attn2.to_k",), seed=1), adapter_for(sd, ATTENTION, seed=2)
    save_adapter(tmp_path, adapter, "peft")
    save_adapter(tmp_path / "checkpoint-500", early, "peft")
    again = load_adapter(tmp_path, sd)
    assert again.layers.keys() == adapter.layers.keys()
    agree(again, lambda name: adapter.layers[name].delta)
    save_adapter(tmp_path / "unet", early, "peft")
    with pytest.raises(lida.InputError, match="in two files"):
        load_adapter(tmp_path, sd)


def test_formats_and_places_are_checked(sd, tmp_path):
    adapter = adapter_for(sd, CROSS_ATTENTION)
    for arguments, message in (
        ((tmp_path, adapter, "ckpt"), "not one of"),
        ((tmp_path / "x.safetensors", adapter, "peft"), "folder"),
    ):
        with pytest.raises(lida.InputError, match=message):
            save_adapter(*arguments)
    with pytest.raises(lida.InputError, match="no layers"):
        save_adapter(tmp_path, lida.Adapter({}))


STEM = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
K = "lora_unet_" + STEM.replace(".", "_")
ONE = {f"unet.{STEM}.lora.down.weight": torch.ones(2, 32), f"unet.{STEM}.lora.up.weight": torch.ones(32, 2)}
NAN = torch.full((32, 2), math.nan)


def factors(down: tuple[int, int], up: tuple[int, int]) -> dict[str, torch.Tensor]:
    return {f"unet.{STEM}.lora.down.weight": torch.ones(down), f"unet.{STEM}.lora.up.weight": torch.ones(up)}


REFUSED = {
    "LoHa": ({f"{K}.hada_w1_a": torch.ones(2, 2), f"{K}.hada_w1_b": torch.ones(2, 2)}, "has LoHa in 2 tensors"),
    "LoKr": ({f"{K}.lokr_w1": torch.ones(2, 2)}, "has LoKr in 1 tensors"),
    "DoRA": ({**ONE, f"unet.{STEM}.lora_magnitude_vector": torch.ones(2)}, "has DoRA in 1"),
    "kohya's DoRA": ({f"{K}.dora_scale": torch.ones(2)}, "has DoRA in 1"),
    "Tucker": ({f"{K}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "has names that are no part of an SD1.5 adapter in 1"),
    "SDXL's text encoder": ({"lora_te2_text_model_final_layer_norm.lora_down.weight": torch.ones(2, 2)}, "SDXL's second"),
    "SDXL's names": ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.ones(2, 2)}, "latent diffusion's names"),
    "Flux": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}, "a transformer's"),
    "a bias": ({**ONE, f"unet.{STEM}.bias": torch.ones(2)}, "has names that are no part"),
    "nothing": ({}, "holds no layers"),
    "cloneofsimo's": ({"unet:0:up": torch.ones(2, 2)}, "has names that are no part"),
    "AdaLoRA": ({f"base_model.model.{STEM}.lora_E": torch.ones(2, 1)}, "adapter_config.json"),
    "IA3": ({f"base_model.model.{STEM}.ia3_l": torch.ones(2, 1)}, "adapter_config.json"),
    "an embedding": ({"emb_params": torch.ones(2, 2)}, "has names that are no part"),
    "infinity": ({**ONE, f"unet.{STEM}.lora.up.weight": NAN.nan_to_num(math.inf)}, "up: is not made of finite numbers"),
    "beyond float32": ({**ONE, f"unet.{STEM}.lora.up.weight": 1e39 * torch.ones(32, 2).double()}, "not made of finite numbers"),
    "alpha is NaN": ({**ONE, f"{STEM}.alpha": torch.tensor(math.nan)}, "alpha: is not made of finite numbers"),
    "alpha beyond float32": ({**ONE, f"{STEM}.alpha": torch.tensor(1e39).double()}, "alpha: is not made of finite numbers"),
    "integers": ({**ONE, f"unet.{STEM}.lora.up.weight": torch.ones(32, 2, dtype=torch.int32)}, "torch.int32"),
    "a weight of a million squared": (factors((1, 10**6), (10**6, 1)), "not a pair of factors"),
    "peft's file without its config": ({f"base_model.model.{STEM}.lora_A.weight": torch.ones(2, 32)}, "adapter_config.json"),
    "a model": ({"conv_in.weight": torch.ones(2, 2)}, "no part of an SD1.5 adapter in 1 tensors (conv_in.weight)"),
    "an unknown word": ({"lora_unet_down_blocks_0_BANANA.lora_down.weight": torch.ones(2, 2)}, "no part of an SD1.5 adapter"),
    "the same layer twice": ({**ONE, f"{STEM}.lora_A.weight": torch.ones(2, 32)}, "no part of an SD1.5 adapter"),
    "half a pair": ({f"unet.{STEM}.lora.down.weight": torch.ones(2, 32)}, "has no up"),
    "NaN": ({**ONE, f"unet.{STEM}.lora.up.weight": NAN}, "up: is not made of finite numbers"),
    "two alphas": ({**ONE, f"{STEM}.alpha": torch.ones(2)}, "alpha (2,)"),
    "no rank": (factors((0, 32), (32, 0)), "not a pair of factors"),
    "transposed": (factors((32, 2), (2, 32)), "32"),
    "swapped": (factors((32, 2), (2, 31)), "the same rank"),
    "SDXL's width": (factors((2, 640), (640, 2)), "another"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(sd, tmp_path, case):
    file, message = REFUSED[case]
    save_file(file, tmp_path / "x.safetensors")
    with pytest.raises(lida.InputError, match="x.safetensors: ") as error:
        load_adapter(tmp_path / "x.safetensors", sd)
    assert message in str(error.value) and "\n" not in str(error.value)


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


@pytest.mark.parametrize("metadata", [
    {"base": "x"}, {"data": None}, {"training": [1]}, {"parts": 5}, {"parts": [5]}, {"parts": [{"base": 5}]}, {"role": ["age"]},
])  # fmt: skip
def test_metadata_of_wrong_types_is_refused_when_read_and_when_written(tmp_path, metadata):
    save_file(ONE, tmp_path / "x.safetensors", metadata={"lida": json.dumps(metadata)})
    with pytest.raises(lida.InputError, match="is .*, not a (str|dict|list); fetch it again|is not an object"):
        load_adapter(tmp_path / "x.safetensors")
    save_file(ONE, tmp_path / "x.safetensors")
    layers = load_adapter(tmp_path / "x.safetensors").layers
    for wrong in (metadata, {"a": object()}, {"a": {1}}, [1]):
        with pytest.raises(lida.InputError, match="metadata"):
            lida.save_adapter(tmp_path / "y.safetensors", lida.Adapter(layers, wrong))
    assert not (tmp_path / "y.safetensors").exists()


def test_a_header_of_another_model_is_refused(tmp_path):
    save_file(ONE, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": '{"transformer.r": 2}'})
    with pytest.raises(lida.InputError, match="transformer.r' belongs to no model that lida changes"):
        load_adapter(tmp_path / "x.safetensors")


def test_an_adapter_given_twice_is_refused_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = lida.Adapter({STEM: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)})
    save_adapter("a.safetensors", adapter)
    save_adapter("folder", adapter)
    os.symlink("a.safetensors", "link.safetensors")
    pairs = parse_pairs(["a.safetensors=0.5", "folder"])
    assert pairs == [("a.safetensors", 0.5), ("folder", 1.0)]
    shutil.copy("a.safetensors", "b=1.safetensors")
    assert parse_pairs(["b=1.safetensors"]) == [("b=1.safetensors", 1.0)]
    assert parse_pairs(["b=1.safetensors=2"]) == [("b=1.safetensors", 2.0)]
    for twice in (
        ["a.safetensors", "./a.safetensors=2"], ["a.safetensors", f"{tmp_path}/a.safetensors"],
        ["a.safetensors", "link.safetensors"], ["folder", "folder/pytorch_lora_weights.safetensors"],
    ):  # fmt: skip
        with pytest.raises(lida.InputError, match="the same adapter"):
            parse_pairs(twice)
    for text, message in (
        ("a.safetensors=1e39", "finite"),
        ("a.safetensors=x", "finite"),
        ("b=1", "no such adapter"),
        ("=1", "names no adapter"),
    ):
        with pytest.raises(lida.InputError, match=message):
            parse_pairs([text])


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_what_is_not_finite_is_not_saved(tmp_path, format):
    """An alpha that goes into `up` may overflow there. The layer is named, and nothing is written."""
    one, huge = (LowRank(torch.ones(2, 32), torch.full((32, 2), value), alpha) for value, alpha in ((1.0, 2.0), (3e38, 1e9)))
    if format == "peft":
        huge = LowRank(huge.down, huge.up * math.inf, 1.0)
    with pytest.raises(lida.InputError, match="up_blocks.*is not finite in torch.float32"):
        save_adapter(tmp_path / "x", lida.Adapter({STEM: one, STEM.replace("down_blocks", "up_blocks"): huge}), format)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_metadata_that_could_not_be_read_again_is_not_saved(tmp_path):
    deep: dict = {}
    for _ in range(100):
        deep = {"parts": [deep]}
    adapter = {STEM: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)}
    for metadata, message in ((deep, "nested deeper"), ({"loss": math.nan}, "NaN")):
        with pytest.raises(lida.InputError, match=message):
            save_adapter(tmp_path / "x.safetensors", lida.Adapter(adapter, metadata))


def test_pefts_folder_is_written_whole_into_a_new_one(tmp_path):
    adapter = lida.Adapter({STEM: LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)})
    save_adapter(tmp_path / "x", adapter, "peft")
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(lida.InputError, match="is not empty"):
        save_adapter(tmp_path / "x", adapter, "peft")
