"""The LoRA layer and its training equal peft's; adapters travel to diffusers and back; merging is exact."""

import json

import diffusers
import peft
import pytest
import torch
from conftest import relative
from diffusers.training_utils import compute_snr
from torch import nn

import lida
from lida.adapters import load_adapter
from lida.nn.lora import CROSS_ATTENTION, SELF_ATTENTION, LoRALinear, LowRank, lora_parameters

RANK, ALPHA = 4, 8.0


def with_peft(unet, alpha: float, state: dict) -> nn.Module:
    """diffusers' UNet with peft's LoRA on attn2, holding the factors of our layers."""
    targets = sorted(state)
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets))
    modules = dict(unet.named_modules())
    with torch.no_grad():
        for path, layer in state.items():
            modules[path].lora_A["default"].weight.copy_(layer.lora_down)
            modules[path].lora_B["default"].weight.copy_(layer.lora_up)
    return unet


def random_adapter(sd, seed: int, rank: int = RANK, alpha: float | None = None, targets=CROSS_ATTENTION) -> lida.Adapter:
    """Factors as large as trained ones for every target of the UNet."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, module in sd.unet.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(tuple(targets)):
            down = torch.randn(rank, module.in_features, generator=generator) / rank
            up = 0.1 * torch.randn(module.out_features, rank, generator=generator)
            layers[path] = LowRank(down, up, rank if alpha is None else alpha)
    return lida.Adapter(layers, {"template": "{subject} {age}", "ages": [2, 80]})


def prediction(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 48, generator=generator)
    with torch.no_grad():
        out = unet(latents, torch.tensor([10, 700]), context)
    return getattr(out, "sample", out)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_equals_peft(bias):
    base = nn.Linear(12, 20, bias=bias)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(12, 20, bias=bias)), config)
    layer = LoRALinear(base, RANK, ALPHA)
    wrapped = theirs.base_model.model[0]
    with torch.no_grad():
        layer.lora_up.normal_()
        wrapped.base_layer.load_state_dict(base.state_dict())
        wrapped.lora_A["default"].weight.copy_(layer.lora_down)
        wrapped.lora_B["default"].weight.copy_(layer.lora_up)
    x = torch.randn(5, 7, 12)
    ours, reference = layer(x), theirs(x)
    assert relative(ours, reference) <= 1e-6
    ours.square().mean().backward()
    reference.square().mean().backward()
    assert relative(layer.lora_down.grad, wrapped.lora_A["default"].weight.grad) <= 1e-5
    assert relative(layer.lora_up.grad, wrapped.lora_B["default"].weight.grad) <= 1e-5
    assert layer.weight is base.weight and layer.weight.grad is None


def test_injection_changes_nothing_and_only_lora_trains(sd):
    before, keys = prediction(sd.unet), set(sd.unet.state_dict())
    layers = lida.inject_lora(sd.unet, RANK)
    assert torch.equal(prediction(sd.unet), before)
    assert len(layers) == 4 * sum(path.endswith("attn2") for path, _ in sd.unet.named_modules())
    assert keys < set(sd.unet.state_dict())
    trained = {id(p) for p in lora_parameters(layers.values())}
    assert {id(p) for p in sd.unet.parameters() if p.requires_grad} == trained
    loss = lida.noise_prediction_loss(sd.unet, sd.schedule, torch.randn(2, 4, 8, 8), torch.randn(2, 77, 48))
    loss.backward()
    assert {id(p) for p in sd.unet.parameters() if p.grad is not None} == trained


def test_targets_reach_self_attention(sd):
    layers = lida.inject_lora(sd.unet, RANK, targets=SELF_ATTENTION)
    assert layers and all(".attn1.to_" in path for path in layers)
    with pytest.raises(ValueError, match="has a LoRA already"):
        lida.inject_lora(sd.unet, RANK, targets=CROSS_ATTENTION)
    assert all(layer.lora_up.requires_grad for layer in layers.values())


def test_refused_injections_change_nothing(sd):
    sd.unet.requires_grad_(True)
    with pytest.raises(ValueError, match="'attn3.to_q' matches no"):
        lida.inject_lora(sd.unet, RANK, targets=["attn2.to_q", "attn3.to_q"])
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        lida.inject_lora(sd.unet, 0)
    assert all(p.requires_grad for p in sd.unet.parameters())
    assert not any(isinstance(module, LoRALinear) for module in sd.unet.modules())


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_snr_weights_equal_diffusers(sd, pipe, gamma):
    """As diffusers' training scripts compute --snr_gamma for noise prediction."""
    scheduler, timesteps = diffusers.DDPMScheduler.from_config(pipe.scheduler.config), torch.tensor([5, 300, 600, 990])
    latents, noise, context = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.randn(4, 77, 48)
    snr = compute_snr(scheduler, timesteps)
    with torch.no_grad():
        ours = lida.noise_prediction_loss(sd.unet, sd.schedule, latents, context, noise, timesteps, gamma)
        noise_pred = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
    losses = (noise_pred - noise).square().mean(dim=(1, 2, 3))
    assert float(ours) == pytest.approx(float((snr.clamp(max=gamma) / snr * losses).mean()), rel=1e-5)


def test_five_training_steps_equal_diffusers_and_peft(sd, pipe):
    torch.manual_seed(1)
    layers = lida.inject_lora(sd.unet, RANK, ALPHA)
    theirs = with_peft(pipe.unet, ALPHA, layers)
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    ours = lora_parameters(layers.values())
    reference = [p for p in theirs.parameters() if p.requires_grad]
    optimizers = [torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2) for p in (ours, reference)]
    for _ in range(5):
        latents, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
        timesteps, context = torch.randint(1000, (4,)), torch.randn(4, 77, 48)
        loss = lida.noise_prediction_loss(sd.unet, sd.schedule, latents, context, noise, timesteps)
        noise_pred = theirs(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        reference_loss = nn.functional.mse_loss(noise_pred.float(), noise.float())
        assert float(loss.detach()) == pytest.approx(float(reference_loss.detach()), rel=1e-5)
        for value, parameters, optimizer in zip((loss, reference_loss), (ours, reference), optimizers):
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    modules = dict(theirs.named_modules())
    for path, layer in layers.items():
        assert relative(layer.lora_down, modules[path].lora_A["default"].weight) <= 1e-5
        assert relative(layer.lora_up, modules[path].lora_B["default"].weight) <= 1e-5


@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_adapters_load_in_diffusers(sd, pipe, tmp_path, alpha):
    adapter = random_adapter(sd, 0, alpha=alpha)
    path = lida.save_adapter(tmp_path, adapter)
    assert path.name == "pytorch_lora_weights.safetensors"
    sd.load_adapter("age", path)
    sd.set_adapters(["age"], [1.0])
    base = prediction(pipe.unet)
    pipe.load_lora_weights(tmp_path)
    assert relative(prediction(sd.unet), prediction(pipe.unet)) <= 1e-5
    assert relative(prediction(sd.unet), base) > 1e-3  # the adapter does something


def test_adapters_of_diffusers_load(sd, pipe, tmp_path):
    layers = {path: LoRALinear(sd.unet.get_submodule(path), RANK) for path in random_adapter(sd, 0).layers}
    for layer in layers.values():
        nn.init.normal_(layer.lora_up, std=0.1)
    unet = with_peft(pipe.unet, RANK, layers)
    state = diffusers.utils.convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, state)
    sd.load_adapter("age", tmp_path)
    sd.set_adapters(["age"], [1.0])
    assert relative(prediction(sd.unet), prediction(unet)) <= 1e-5


def test_saved_equals_loaded(sd, tmp_path):
    adapter = random_adapter(sd, 0, alpha=3.0)
    again = load_adapter(lida.save_adapter(tmp_path / "age.safetensors", adapter))
    assert again.metadata == adapter.metadata and again.layers.keys() == adapter.layers.keys()
    for path, layer in adapter.layers.items():
        assert again.layers[path].scale == 1.0  # the rest of it is in the factors, for readers that know of no alpha
        assert torch.equal(again.layers[path].down, layer.down) and torch.equal(again.layers[path].up, layer.up * (3.0 / RANK))


def test_merging_is_the_weighted_sum_of_deltas(sd):
    """Adapters of different rank, alpha and targets, the base restored exactly in between."""
    base = {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    identity = sd.load_adapter("id", random_adapter(sd, 1, rank=6, alpha=3.0, targets=CROSS_ATTENTION + SELF_ATTENTION))
    age = sd.load_adapter("age", random_adapter(sd, 2))
    sd.set_adapters(["id"], [0.7])
    sd.set_adapters(["id", "age"], [1.0, 0.2])
    merged = sd.unet.state_dict()
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        expected, path = weight.clone(), name.removesuffix(".weight")
        for adapter, w in ((identity, 1.0), (age, 0.2)):
            if path in adapter.layers and name.endswith(".weight"):
                layer = adapter.layers[path]
                expected += w * layer.alpha / layer.down.shape[0] * (layer.up @ layer.down)
        assert torch.allclose(merged[name], expected, rtol=0, atol=1e-6)
    for _ in range(3):
        sd.set_adapters(["age"], [-1.3])
        sd.set_adapters([], [])
        assert all(torch.equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())


def test_the_base_is_what_the_unet_holds_now(sd):
    """Weights that change while no adapter is set are the base from then on."""
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [1.0])
    sd.set_adapters([], [])
    changed = {name: tensor + 1 for name, tensor in sd.unet.state_dict().items()}
    sd.unet.load_state_dict(changed)
    sd.set_adapters(["age"], [1.0])
    sd.set_adapters([], [])
    assert all(torch.equal(tensor, changed[name]) for name, tensor in sd.unet.state_dict().items())


def test_alpha_patterns_are_read_as_peft_reads_them(sd, tmp_path):
    from safetensors.torch import load_file, save_file

    path = lida.save_adapter(tmp_path / "x.safetensors", random_adapter(sd, 0))
    config = {"unet.r": RANK, "unet.lora_alpha": 2.0, "unet.alpha_pattern": {"attn2.to_q": 16.0}}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(config)})
    for name, layer in load_adapter(path).layers.items():
        assert layer.alpha == (16.0 if name.endswith("attn2.to_q") else 2.0)
    for broken in ("[]", "null", "{"):
        save_file(load_file(path), path, metadata={"lora_adapter_metadata": broken})
        with pytest.raises(lida.InputError, match="x.safetensors: its header"):
            load_adapter(path)


def test_merged_equals_unmerged(sd):
    torch.manual_seed(2)
    layers = lida.inject_lora(sd.unet, RANK, ALPHA)
    for layer in layers.values():
        nn.init.normal_(layer.lora_up, std=0.1)
    unmerged, adapter = prediction(sd.unet), lida.Adapter.of(layers)
    for path in layers:  # take the layers out again
        layer, (parent, _, name) = layers[path], path.rpartition(".")
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.load_state_dict({key: t for key, t in layer.state_dict().items() if not key.startswith("lora_")})
        setattr(sd.unet.get_submodule(parent), name, linear)
    sd.load_adapter("age", adapter)
    sd.set_adapters(["age"], [1.0])
    assert relative(prediction(sd.unet), unmerged) <= 1e-5


def test_wrong_names_and_weights_are_refused(sd):
    sd.load_adapter("age", random_adapter(sd, 0))
    with pytest.raises(ValueError, match="'id' is not loaded; loaded are \\['age'\\]"):
        sd.set_adapters(["id"], [1.0])
    with pytest.raises(ValueError, match="one weight for each name"):
        sd.set_adapters(["age"], [])


def test_adapters_that_do_not_fit_are_refused(sd, tmp_path):
    adapter = random_adapter(sd, 0)
    path, layer = next(iter(adapter.layers.items()))
    wider = lida.Adapter({path: LowRank(torch.zeros(RANK, 99), layer.up, 1.0)})
    with pytest.raises(lida.InputError, match="trained on another model"):
        sd.load_adapter("age", lida.save_adapter(tmp_path, wider))
    with pytest.raises(lida.InputError, match="no such layer"):
        sd.load_adapter("age", lida.Adapter({"down_blocks.9.attn2.to_q": layer}))
    assert not sd.adapters


@pytest.mark.parametrize(
    "key", ["lora_unet_down.alpha", "text_encoder.x.lora.up.weight", "unet.a.lora.down.bias", "unet.a.lora.up.weight"]
)
def test_unknown_tensors_are_refused(tmp_path, key):
    from safetensors.torch import save_file

    save_file({key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(lida.InputError, match="x.safetensors: "):
        load_adapter(tmp_path / "x.safetensors")


def test_training_lowers_the_loss_on_held_out_noise(sd):
    """On a hundred fixed pairs of noise and timestep that training does not see; the latents are one picture's."""
    torch.manual_seed(0)
    layers = lida.inject_lora(sd.unet, RANK)
    latents, context = torch.randn(1, 4, 8, 8).repeat(100, 1, 1, 1), sd.text_encoder("a man").repeat(100, 1, 1)
    noise, timesteps = torch.randn_like(latents), torch.randint(1000, (100,))

    @torch.no_grad()
    def held_out() -> float:
        return float(lida.noise_prediction_loss(sd.unet, sd.schedule, latents, context, noise, timesteps))

    before = held_out()
    optimizer = torch.optim.AdamW(lora_parameters(layers.values()), lr=1e-2)
    for _ in range(60):
        lida.noise_prediction_loss(sd.unet, sd.schedule, latents[:8], context[:8]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert held_out() < 0.98 * before
