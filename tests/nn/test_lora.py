"""The LoRA layer and its training equal peft's; all its derivatives are exact; it can be injected and ejected."""

import math

import diffusers
import peft
import pytest
import torch
import torch.nn.functional as F
from conftest import prediction, random_adapter, relative
from torch import nn
from torch.func import functional_call, grad, hessian, jvp

import lida
from lida.nn.lora import (
    CROSS_ATTENTION,
    SELF_ATTENTION,
    HalfLoRALinear,
    LoRALinear,
    LowRank,
    eject_lora,
    inject_lora,
    lora_parameters,
)

RANK, ALPHA = 4, 8.0


def with_peft(unet, alpha: float, layers: dict[str, LoRALinear]) -> nn.Module:
    """diffusers' UNet with peft's LoRA, holding the factors of our layers."""
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=sorted(layers)))
    modules = dict(unet.named_modules())
    with torch.no_grad():
        for path, layer in layers.items():
            modules[path].lora_A["default"].weight.copy_(layer.lora_down)
            modules[path].lora_B["default"].weight.copy_(layer.lora_up)
    return unet


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_equals_pefts(bias):
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


def test_every_derivative_is_that_of_the_dense_layer():
    """Gradient, forward mode, Hessian and double backward of a loss, beside W + s B A: in float64, so to 1e-12."""
    layer = LoRALinear(nn.Linear(5, 3), 2, ALPHA).double()
    with torch.no_grad():
        layer.lora_up.normal_()
    x, factors = torch.randn(4, 5, dtype=torch.float64), (layer.lora_down.detach(), layer.lora_up.detach())
    directions = tuple(torch.randn_like(factor) for factor in factors)

    def lora(down, up):
        return functional_call(layer, {"lora_down": down, "lora_up": up}, (x,)).sin().sum()

    def dense(down, up):
        return F.linear(x, layer.weight.detach() + ALPHA / 2 * up @ down, layer.bias.detach()).sin().sum()

    def double_backward(loss):
        leaves = tuple(factor.clone().requires_grad_() for factor in factors)
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    ways = (
        lambda loss: [loss(*factors)],
        lambda loss: grad(loss, (0, 1))(*factors),
        lambda loss: jvp(loss, factors, directions),
        lambda loss: jvp(grad(loss, (0, 1)), factors, directions)[1],  # a Hessian-vector product
        lambda loss: [block for row in hessian(loss, (0, 1))(*factors) for block in row],
        double_backward,
    )
    for way in ways:
        assert all(relative(a, b) <= 1e-12 for a, b in zip(way(lora), way(dense), strict=True))


def test_a_half_precision_base_keeps_the_adapter_in_float32():
    """Without autocast the adapter's products are computed in float32 and rounded once; with autocast, in bfloat16."""
    layer = HalfLoRALinear(nn.Linear(64, 48).bfloat16(), RANK, ALPHA)
    nn.init.normal_(layer.lora_up)
    x = torch.randn(3, 64).bfloat16()
    change = layer.scale * x.double() @ layer.lora_down.double().T @ layer.lora_up.double().T
    without = layer(x) - F.linear(x, layer.weight, layer.bias)
    assert layer(x).dtype == torch.bfloat16 and layer.lora_up.dtype == torch.float32
    assert relative(without.double(), change) <= 2**-7  # two roundings of bfloat16, of the change and of the sum
    with torch.autocast("cpu", torch.bfloat16):
        change = layer.scale * F.linear(F.linear(x, layer.lora_down), layer.lora_up)
        assert change.dtype == torch.bfloat16 and torch.equal(layer(x), F.linear(x, layer.weight, layer.bias) + change)
    layer(x).float().sum().backward()
    assert layer.lora_down.grad.dtype == torch.float32


def test_a_half_precision_unet_keeps_its_dtype_with_an_adapter(sd):
    layers = inject_lora(sd.unet.bfloat16(), RANK)
    x, t, context = torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([500]), torch.randn(1, 77, 48).bfloat16()
    assert sd.unet(x, t, context).dtype == torch.bfloat16
    assert all(layer.lora_up.dtype == torch.float32 for layer in layers.values())


def test_a_layer_of_ones_own_is_injected(sd):
    """Here the scale alpha / sqrt(rank) of rank-stabilised LoRA (Kalajdzievski 2023): alpha' = alpha sqrt(rank) in plain LoRA."""

    class RankStabilised(LoRALinear):
        @property
        def scale(self) -> float:
            return self.alpha / self.rank**0.5

    found = []
    for layer, alpha in ((RankStabilised, ALPHA), (None, ALPHA * RANK**0.5)):
        torch.manual_seed(0)
        layers = inject_lora(sd.unet, RANK, alpha, layer=layer)
        for injected in layers.values():
            nn.init.normal_(injected.lora_up, std=0.1)
        found.append(prediction(sd.unet))
        assert {type(injected) for injected in layers.values()} == {layer or LoRALinear}
        eject_lora(sd.unet)
    assert relative(*found) <= 1e-5


def test_injection_changes_nothing_and_only_lora_trains(sd):
    before, keys = prediction(sd.unet), set(sd.unet.state_dict())
    layers = inject_lora(sd.unet, RANK)
    assert torch.equal(prediction(sd.unet), before)
    assert len(layers) == 4 * sum(path.endswith("attn2") for path, _ in sd.unet.named_modules())
    assert keys < set(sd.unet.state_dict())
    trained = {id(p) for p in lora_parameters(layers.values())}
    assert {id(p) for p in sd.unet.parameters() if p.requires_grad} == trained
    loss = lida.noise_prediction_loss(sd.unet, sd.schedule, torch.randn(2, 4, 8, 8), torch.randn(2, 77, 48))
    loss.backward()
    assert {id(p) for p in sd.unet.parameters() if p.grad is not None} == trained


def test_ejection_gives_the_model_back_and_another_lora_can_be_injected(sd):
    before, base = prediction(sd.unet), {name: tensor.clone() for name, tensor in sd.unet.state_dict().items()}
    kinds = {path: type(module) for path, module in sd.unet.named_modules()}
    for targets in (CROSS_ATTENTION, SELF_ATTENTION):
        layers = inject_lora(sd.unet, RANK, targets=targets)
        for layer in layers.values():
            nn.init.normal_(layer.lora_up)
        assert relative(prediction(sd.unet), before) > 1e-3
        ejected = eject_lora(sd.unet)
        assert ejected.keys() == layers.keys() and all(ejected[path] is layers[path] for path in layers)
        assert {path: type(module) for path, module in sd.unet.named_modules()} == kinds
        assert sd.unet.state_dict().keys() == base.keys()
        assert all(torch.equal(tensor, base[name]) for name, tensor in sd.unet.state_dict().items())
        assert torch.equal(prediction(sd.unet), before)
    assert eject_lora(sd.unet) == {}


def test_targets_reach_self_attention_and_are_given_at_once(sd):
    layers = inject_lora(sd.unet, RANK, targets=SELF_ATTENTION)
    assert layers and all(".attn1.to_" in path for path in layers)
    with pytest.raises(ValueError, match="has a LoRA already"):
        inject_lora(sd.unet, RANK, targets=CROSS_ATTENTION)
    assert all(layer.lora_up.requires_grad for layer in layers.values())


def test_refused_injections_change_nothing(sd):
    sd.unet.requires_grad_(True)
    with pytest.raises(ValueError, match="'attn3.to_q' matches no"):
        inject_lora(sd.unet, RANK, targets=["attn2.to_q", "attn3.to_q"])
    for rank, alpha, message in (
        (0, None, "rank must be a whole number of at least 1, not 0"), (1.5, None, "not 1.5"), (math.nan, None, "not nan"),
        (2, math.nan, "alpha must be a finite number, not nan"), (2, math.inf, "not inf"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            inject_lora(sd.unet, rank, alpha)
    with pytest.raises(ValueError, match="no targets are given"):
        inject_lora(sd.unet, RANK, targets=[])
    assert all(p.requires_grad for p in sd.unet.parameters())
    assert not any(isinstance(module, LoRALinear) for module in sd.unet.modules())


def test_a_lora_is_not_injected_beside_merged_adapters(sd):
    """The trained and the merged changes of one model would add up silently."""
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [1.0])
    with pytest.raises(ValueError, match=r"adapters are merged into the model.*set_adapters\(\[\], \[\]\)"):
        inject_lora(sd.unet, RANK, targets=SELF_ATTENTION)
    sd.set_adapters([], [])
    assert inject_lora(sd.unet, RANK)


def test_factors_of_two_ranks_are_no_change():
    for down, up in (((2, 9), (12, 3)), ((2,), (12, 2))):
        with pytest.raises(ValueError, match="do not have the same rank"):
            LowRank(torch.zeros(down), torch.zeros(up), 2.0)


def test_five_training_steps_equal_diffusers_and_peft(sd, pipe):
    torch.manual_seed(1)
    layers = inject_lora(sd.unet, RANK, ALPHA)
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
        reference_loss = F.mse_loss(noise_pred.float(), noise.float())
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


def test_training_lowers_the_loss_on_held_out_noise(sd):
    """On a hundred fixed pairs of noise and timestep that training does not see; the latents are one picture's."""
    layers = inject_lora(sd.unet, RANK)
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
