"""Adapters in every dialect: what diffusers and peft make of our files, what we make of theirs, and sums of adapters."""

import json
import math
import sys

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lida
from lida.adapters import check_fits, combine, compare, load_adapter, main, save_adapter
from lida.dialects import TEXT
from lida.errors import run
from lida.lora import CROSS_ATTENTION, SELF_ATTENTION, LowRank

ATTENTION = CROSS_ATTENTION + SELF_ATTENTION
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def modules_of(sd) -> dict[str, nn.Module]:
    """Every module that an adapter can change, by our path."""
    inner = getattr(sd.text_encoder.model, "text_model", sd.text_encoder.model)
    return dict(sd.unet.named_modules()) | {TEXT + path: module for path, module in inner.named_modules()}


def adapter_for(sd, targets, ranks=(4,), alphas=(None,), seed: int = 0) -> lida.Adapter:
    """Random factors for the modules whose path ends in a target; ranks and alphas go round."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for path, module in modules_of(sd).items():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path.endswith(tuple(targets)):
            rank, alpha = ranks[len(layers) % len(ranks)], alphas[len(layers) % len(alphas)]
            out, *rest = module.weight.shape
            down = torch.randn(rank, *rest, generator=generator) / rank
            up = 0.1 * torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
            layers[path] = LowRank(down, up, float(rank if alpha is None else alpha))
    return lida.Adapter(layers, {"role": "test"})


def theirs(pipe, path: str) -> torch.Tensor:
    """The change that diffusers and peft make to the module of our path."""
    if path.startswith(TEXT):
        inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
        module = inner.get_submodule(path.removeprefix(TEXT))
    else:
        module = pipe.unet.get_submodule(path)
    return module.get_delta_weight("x")


def agree(adapter: lida.Adapter, delta_of) -> None:
    """Each layer's change is what `delta_of(path)` says, to float32's rounding."""
    for path, layer in adapter.layers.items():
        expected = delta_of(path).reshape(layer.delta.shape)
        assert (layer.delta - expected).norm() <= 1e-6 * expected.norm() and expected.norm() > 0, path


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
    "text encoder too": (("attn2.to_k", *TEXT_TARGETS), (4,), (2.0,)),
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
    adapter = adapter_for(sd, ("attn2.to_k", *TEXT_TARGETS), (4, 2), (2.0,))
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
    "Tucker": ({f"{K}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "has a Tucker core"),
    "SDXL's text encoder": ({"lora_te2_text_model_final_layer_norm.lora_down.weight": torch.ones(2, 2)}, "SDXL's second"),
    "SDXL's names": ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.ones(2, 2)}, "latent diffusion's names"),
    "Flux": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}, "a transformer's"),
    "a bias": ({**ONE, f"unet.{STEM}.bias": torch.ones(2)}, "has biases"),
    "nothing": ({}, "holds no tensors"),
    "a model": ({"conv_in.weight": torch.ones(2, 2)}, "1 tensors are no part of an SD1.5 adapter: conv_in.weight"),
    "an unknown word": ({"lora_unet_down_blocks_0_BANANA.lora_down.weight": torch.ones(2, 2)}, "no part of an SD1.5 adapter"),
    "the same layer twice": ({**ONE, f"{STEM}.lora_A.weight": torch.ones(2, 32)}, "no part of an SD1.5 adapter"),
    "half a pair": ({f"unet.{STEM}.lora.down.weight": torch.ones(2, 32)}, "has no up"),
    "NaN": ({**ONE, f"unet.{STEM}.lora.up.weight": NAN}, "up: is not made of finite numbers"),
    "eight bits": ({n: t.to(torch.float8_e4m3fn) for n, t in ONE.items()} | {f"{STEM}.alpha": torch.ones(2)}, "not one alpha"),
    "no rank": (factors((0, 32), (32, 0)), "rank 0"),
    "transposed": (factors((32, 2), (2, 32)), "32"),
    "swapped": (factors((32, 2), (2, 31)), "one rank"),
    "SDXL's width": (factors((2, 640), (640, 2)), "another"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(sd, tmp_path, case):
    file, message = REFUSED[case]
    save_file(file, tmp_path / "x.safetensors")
    with pytest.raises(lida.InputError, match="x.safetensors: ") as error:
        load_adapter(tmp_path / "x.safetensors", sd)
    assert message in str(error.value) and "\n" not in str(error.value)


FLAGS = {"use_dora": True, "fan_in_fan_out": True, "modules_to_save": ["conv_in"], "init_lora_weights": "pissa"}


@pytest.mark.parametrize(("flag", "value"), FLAGS.items())
def test_configs_that_lida_does_not_compute_are_refused(tmp_path, flag, value):
    save_file(ONE, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps({f"unet.{flag}": value})})
    with pytest.raises(lida.InputError, match="pissa" if flag.startswith("init") else flag):
        load_adapter(tmp_path / "x.safetensors")


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


def test_the_text_encoder_is_changed_too(sd, pipe, tmp_path):
    """A prompt means something else then, and the same as in diffusers."""
    adapter = adapter_for(sd, ("attn2.to_k", *TEXT_TARGETS), (4,), (8.0,))
    path, before = save_adapter(tmp_path / "x.safetensors", adapter, "kohya"), sd.text_encoder("a man")
    sd.load_adapter("x", path)
    sd.set_adapters(["x"], [0.5])
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    pipe.set_adapters(["x"], [0.5])
    with torch.no_grad():
        expected = pipe.encode_prompt("a man", "cpu", 1, False)[0]
    assert (sd.text_encoder("a man") - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-2 * expected.abs().max()
    sd.set_adapters([], [])
    assert torch.equal(sd.text_encoder("a man"), before)


def pair(sd):
    return (
        (adapter_for(sd, CROSS_ATTENTION, (4,), seed=1), 0.7),
        (adapter_for(sd, ATTENTION, (2, 8), (1.0, 3.0), seed=2), 0.5),
        (adapter_for(sd, ("attn1.to_q", "resnets.0.conv1"), (3,), (6.0,), seed=3), -1.2),
    )


def sum_of_deltas(pairs) -> dict[str, torch.Tensor]:
    """sum_i w_i (alpha_i / r_i) B_i A_i in float64."""
    deltas = {}
    for adapter, weight in pairs:
        for path, layer in adapter.layers.items():
            delta = weight * layer.alpha / layer.down.shape[0] * (layer.up.flatten(1).double() @ layer.down.flatten(1).double())
            deltas[path] = deltas.get(path, 0) + delta
    return deltas


def test_combining_is_exact(sd):
    """Against the sum of deltas in float64; the error that it reports is the true one."""
    pairs = pair(sd)
    merged, exact = combine(pairs), sum_of_deltas(pairs)
    assert merged.layers.keys() == exact.keys()
    for path, delta in exact.items():
        up, down = merged.layers[path].factors(torch.float64)
        error = float((up @ down - delta).norm() / delta.norm())
        assert error <= 1e-6 and merged.metadata["combination"]["relative_error"][path] == pytest.approx(error)
    sd.load_adapter("merged", merged)
    sd.set_adapters(["merged"], [1.0])
    together = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    for k, (adapter, _) in enumerate(pairs):
        sd.load_adapter(f"{k}", adapter)
    sd.set_adapters(["0", "1", "2"], [weight for _, weight in pairs])
    assert all(torch.allclose(tensor, together[name], rtol=0, atol=1e-6) for name, tensor in sd.unet.state_dict().items())


@pytest.mark.parametrize("rank", [1, 4, 100])
def test_cutting_to_a_rank_is_the_best_that_it_can_be(sd, rank):
    pairs = pair(sd)
    merged = combine(pairs, rank)
    for path, delta in sum_of_deltas(pairs).items():
        singular = torch.linalg.svdvals(delta)
        up, down = merged.layers[path].factors(torch.float64)
        left = float((up @ down - delta).norm())
        assert left == pytest.approx(float(singular[rank:].square().sum().sqrt()), rel=1e-4, abs=1e-5)
        retained = merged.metadata["combination"]["retained_energy"]
        if path in retained:
            assert retained[path] == pytest.approx(float(singular[:rank].square().sum() / singular.square().sum()), rel=1e-9)
            assert merged.layers[path].rank == rank
        else:
            assert merged.layers[path].rank <= rank


def test_a_combination_tells_what_its_parts_agree_on(sd):
    (a, _), (b, _), _ = pair(sd)
    age = lida.Adapter(a.layers, {"base": {"unet": "1"}, "template": "{age}", "ages": [2, 80]})
    person, other = (lida.Adapter(b.layers, {"base": {"unet": unet}}) for unet in "12")
    known = combine([(person, 1.0), (age, 0.2)]).metadata
    assert known["base"] == {"unet": "1"} and known["template"] == "{age}" and known["ages"] == [2, 80]
    assert "base" not in combine([(other, 1.0), (age, 0.2)]).metadata


def test_combining_needs_adapters_that_fit_and_a_rank(sd):
    path, layer = next(iter(pair(sd)[0][0].layers.items()))
    other = lida.Adapter({path: LowRank(torch.ones(2, 7), torch.ones(9, 2), 2.0)})
    bad = (
        (([],), "no adapters"),
        ((pair(sd), 0), "rank must be at least 1, not 0"),
        (([*pair(sd), (other, 1.0)],), "of other bases"),
    )
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            combine(*arguments)


def test_a_thousand_changes_leave_the_base_as_it_was(sd):
    base = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    for k, (adapter, _) in enumerate(pair(sd)):
        sd.load_adapter(f"{k}", adapter)
    generator = torch.Generator().manual_seed(0)
    for number in range(1000):
        names = [f"{k}" for k in range(3) if (number >> k) & 1]
        sd.set_adapters(names, torch.randn(len(names), generator=generator).tolist())
    assert not all(torch.equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())
    sd.set_adapters([], [])
    assert all(torch.equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())


def test_adapters_are_listed_and_removed(sd):
    for k, (adapter, _) in enumerate(pair(sd)):
        sd.load_adapter(f"{k}", adapter)
    sd.set_adapters(["0"], [1.0])
    alone = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    sd.set_adapters(["0", "1"], [1.0, 0.5])
    assert sorted(sd.adapters) == ["0", "1", "2"] and sd.weights == {"0": 1.0, "1": 0.5}
    with pytest.raises(ValueError, match="'1' is merged"):
        sd.load_adapter("1", pair(sd)[0][0])
    sd.remove_adapter("1")
    assert sorted(sd.adapters) == ["0", "2"] and sd.weights == {"0": 1.0}
    assert all(torch.equal(tensor, alone[name]) for name, tensor in sd.unet.state_dict().items())
    with pytest.raises(ValueError, match="'1' is not loaded"):
        sd.remove_adapter("1")


def bases(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases of a matrix's column space and row space."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], vh[:rank].T


def test_a_report_on_two_adapters_says_what_whole_matrices_say(sd):
    a, b = pair(sd)[0][0], pair(sd)[1][0]
    report = compare(a, b)
    assert report["layers"].keys() == a.layers.keys() | b.layers.keys()
    total = {"aa": 0.0, "bb": 0.0, "ab": 0.0}
    for path, row in report["layers"].items():
        x, y = (
            layers[path].delta.double() if path in layers else torch.zeros(1, 1).double() for layers in (a.layers, b.layers)
        )
        assert row["norm_a"] == pytest.approx(float(x.norm()), rel=1e-5) and row["norm_b"] == pytest.approx(
            float(y.norm()), rel=1e-5
        )
        total = {"aa": total["aa"] + float(x.norm()) ** 2, "bb": total["bb"] + float(y.norm()) ** 2, "ab": total["ab"]}
        if path not in a.layers:
            assert row["cosine"] == row["columns"] == row["b_inside_a"] == 0.0
            continue
        total["ab"] += float((x * y).sum())
        assert row["cosine"] == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())), abs=1e-5)
        (ua, va), (ub, vb) = (bases(delta, layers[path].rank) for delta, layers in ((x, a.layers), (y, b.layers)))
        smaller = min(ua.shape[1], ub.shape[1])
        assert row["columns"] == pytest.approx(float((ua.T @ ub).square().sum()) / smaller, abs=1e-5)
        assert row["rows"] == pytest.approx(float((va.T @ vb).square().sum()) / smaller, abs=1e-5)
        inside = ua @ ua.T @ y @ va @ va.T
        assert row["b_inside_a"] == pytest.approx(float(inside.square().sum() / y.square().sum()), abs=1e-5)
    cosine = total["ab"] / math.sqrt(total["aa"] * total["bb"])
    assert report["all"]["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert {"down self", "down cross", "mid cross", "up self", "up cross"} <= report["parts"].keys()


def test_an_adapter_beside_itself_is_alike_in_all(sd):
    a = pair(sd)[0][0]
    doubled = lida.Adapter({path: LowRank(layer.down, -2 * layer.up, layer.alpha) for path, layer in a.layers.items()})
    report = compare(a, doubled)
    for row in (*report["layers"].values(), *report["parts"].values(), report["all"]):
        assert [round(row[name], 6) for name in ("cosine", "columns", "rows", "b_inside_a", "a_inside_b")] == [-1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="changes a weight"):
        path, layer = next(iter(a.layers.items()))
        compare(a, lida.Adapter({path: LowRank(torch.ones(1, 7), torch.ones(9, 1), 1.0)}))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `python -m lida.adapters` in this process; returns its exit code and what it prints."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lida.adapters", *map(str, arguments)])
        capsys.readouterr()  # what diffusers printed before
        code = 0
        try:
            run(main)
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def test_the_command_line(sd, folder, tmp_path, command):
    files = [save_adapter(tmp_path / f"{k}.safetensors", adapter, "kohya") for k, (adapter, _) in enumerate(pair(sd)[:2])]
    code, out, _ = command("info", files[0])
    shown = json.loads(out)
    assert (
        code == 0 and shown["ranks"] == [4] and shown["metadata"] == {"role": "test"} and shown["layers"]["text_encoder"] == 0
    )
    assert command("convert", files[1], "-o", tmp_path / "peft", "--format", "peft")[0] == 0
    agree(load_adapter(tmp_path / "peft", sd), lambda name: pair(sd)[1][0].layers[name].delta)
    code, out, _ = command("combine", f"{files[0]}=0.7", f"{files[1]}=-0.5", "-o", tmp_path / "sum", "--rank", "4")
    assert code == 0 and "largest relative error" in out and "least energy retained" in out
    assert {layer.rank for layer in load_adapter(tmp_path / "sum").layers.values()} <= {2, 4}
    code, out, _ = command("compare", *files, "-o", tmp_path / "report")
    assert code == 0 and out.splitlines()[0].split()[:2] == ["layer", "norm"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "table.txt", "heat-map.png"}
    code, _, err = command("fuse", folder, f"{files[0]}=0.7", "-o", tmp_path / "fused")
    assert code == 0, err
    sd.load_adapter("0", pair(sd)[0][0])
    sd.set_adapters(["0"], [0.7])
    fused = lida.StableDiffusion.load(tmp_path / "fused")
    for name, tensor in fused.unet.state_dict().items():  # factors mapped from a file: one step of float16
        assert torch.allclose(tensor, sd.unet.state_dict()[name].half().float(), rtol=2**-10, atol=1e-7), name
    assert torch.equal(fused.schedule.alphas_cumprod, sd.schedule.alphas_cumprod)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "fused")
    assert torch.equal(theirs.scheduler.alphas_cumprod, sd.schedule.alphas_cumprod)
    assert torch.equal(theirs.unet.conv_in.weight, fused.unet.conv_in.weight)
    for arguments, message in (
        (("info", "none"), "no such adapter"),
        (("combine", f"{files[0]}=x", "-o", "y"), "not a number"),
        (("convert", files[0], "-o", files[0] / "x"), "cannot be written"),
        (("compare", *files, "-o", files[0]), "File exists"),
        (("combine", f"{files[0]}=1@600-0", "-o", "y"), "one weight for all blocks and timesteps"),
    ):
        code, out, err = command(*arguments)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_adapters_fit_or_are_refused_before_anything_changes(sd):
    layer = LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    for path in ("down_blocks.9.attn2.to_q", TEXT + "encoder.layers.9.self_attn.q_proj"):
        with pytest.raises(lida.InputError, match="no such layer"):
            check_fits(lida.Adapter({path: layer}), sd.module, "x")
