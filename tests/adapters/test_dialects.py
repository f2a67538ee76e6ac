"""Adapters in every dialect: what diffusers, peft and kohya make of our tensors, what we make of theirs, and what is refused."""

import math

import peft
import pytest
import torch
from conftest import ATTENTION, adapter_for, agree
from safetensors.torch import load_file, save_file

import lida
from lida.adapters import load_adapter, save_adapter
from lida.adapters.adapter import TEXT
from lida.nn.lora import CROSS_ATTENTION, TEXT_ATTENTION
from tests.adapters.conftest import ONE, STEM, theirs

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


K = "lora_unet_" + STEM.replace(".", "_")
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


@pytest.mark.parametrize(
    "key", ["lora_unet_down.alpha", "text_encoder.x.lora.up.weight", "unet.a.lora.down.bias", "unet.a.lora.up.weight"]
)
def test_unknown_tensors_are_refused(tmp_path, key):
    save_file({key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(lida.InputError, match="x.safetensors: "):
        load_adapter(tmp_path / "x.safetensors")
