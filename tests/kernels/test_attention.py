"""Every kernel equals the equation, in the layer and through the whole UNet."""

from importlib.util import find_spec

import pytest
import torch
from conftest import prediction, relative

import lida
from lida.kernels import ATTENTION, fastest_attention, flash_cpu, use_attention, use_fastest
from lida.kernels.convolution import FewPixelsConv2d
from lida.kernels.feed_forward import BlockedFeedForward
from lida.kernels.linear import ConvolutionLinear
from lida.nn.layers import Attention, attention


def kernels_of(model) -> set:
    """The kernels of a model's attention layers."""
    return {module.kernel for module in model.modules() if isinstance(module, Attention)}


@pytest.mark.parametrize("name", ["einsum", "sdpa"])
def test_a_kernel_equals_the_equation(sd, name):
    q, k, v = (torch.randn(2, 4, n, 24, requires_grad=True) for n in (50, 77, 77))
    ours, theirs = ATTENTION[name](q, k, v), attention(q, k, v)
    assert relative(ours, theirs) <= 1e-5
    gradients = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (ours, theirs)]
    assert all(relative(a, b) <= 1e-5 for a, b in zip(*gradients))
    expected = prediction(sd.unet)
    use_attention(sd.unet, name)
    assert kernels_of(sd.unet) == {ATTENTION[name]} and relative(prediction(sd.unet), expected) <= 1e-5


def test_the_equation_in_bf16_is_exact_up_to_bf16():
    """Scores, weights and the result are rounded, so each value may be off by some of bf16's steps of 2^-8."""
    inputs = [torch.randn(2, 4, n, 28).bfloat16().requires_grad_() for n in (36, 77, 77)]
    ours = ATTENTION["einsum"](*inputs)
    gradients = torch.autograd.grad(ours.float().square().sum(), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    equation = attention(*exact)
    for a, b in zip((ours, *gradients), (equation, *torch.autograd.grad(equation.square().sum(), exact))):
        assert relative(a.double(), b) <= 4 * 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_ready_for_sampling_predicts_the_same(sd, dtype):
    sd.unet.to(dtype)
    sd.vae.to(dtype)
    latents, context = torch.randn(2, 4, 8, 8).to(dtype), torch.randn(2, 77, sd.text_encoder.width).to(dtype)
    t = torch.tensor([10, 700])
    expected = sd.unet(latents, t, context)
    decoded = sd.vae.decode(latents)
    for model in (sd.unet, sd.vae):
        use_fastest(model, 4096)
    assert kernels_of(sd.unet) == {ATTENTION[fastest_attention(dtype, "cpu", 4096)]}
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # each of the layers rounds to bf16's steps of 2^-8
    assert relative(sd.unet(latents, t, context).float(), expected.float()) <= tolerance
    assert relative(sd.vae.decode(latents).float(), decoded.float()) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cpu", ["amx_bf16", "AuthenticAMD", "another"])
def test_the_layers_follow_the_cpu(sd, cpu, dtype, monkeypatch):
    monkeypatch.setattr(flash_cpu, "cpu_has", lambda word: word == cpu)
    monkeypatch.setattr(flash_cpu, "available", lambda dtype, device: dtype == torch.bfloat16 and cpu != "another")
    monkeypatch.setattr(flash_cpu, "library", lambda: None)  # it is required, and not called
    for model in (sd.unet.to(dtype), sd.vae.to(dtype)):
        use_fastest(model, 4096)
    kinds = {type(module) for module in sd.unet.modules()}
    convolutions = cpu == "AuthenticAMD" and dtype == torch.float32
    assert (ConvolutionLinear in kinds) == convolutions
    assert (FewPixelsConv2d in kinds) == (BlockedFeedForward in kinds) == (not convolutions)
    flash = dtype == torch.bfloat16 and cpu != "another"
    assert kernels_of(sd.unet) == {ATTENTION["flash_cpu" if flash else "sdpa"]}
    assert kernels_of(sd.vae) == {ATTENTION["flash_cpu" if flash and cpu == "AuthenticAMD" else "sdpa"]}


@pytest.mark.skipif(not (torch.cuda.is_available() and find_spec("xformers")), reason="needs a GPU and xformers")
def test_xformers_equals_the_equation():
    q, k, v = (torch.randn(2, 4, n, 40, device="cuda").half() for n in (64, 77, 77))
    assert relative(ATTENTION["xformers"](q, k, v), attention(q, k, v)) <= 4 * 2**-10


@pytest.mark.parametrize(("name", "message"), [("xformers", r"pip install lida-aging\[xformers\]"), ("flash", "not one of sdpa")])
def test_a_kernel_that_is_not_there_is_refused_and_the_model_keeps_its_own(sd, name, message, monkeypatch):
    monkeypatch.setattr("lida.kernels.attention.find_spec", lambda package: None)
    use_attention(sd.unet, "einsum")
    with pytest.raises(lida.InputError, match=message):
        use_attention(sd.unet, name)
    assert kernels_of(sd.unet) == {ATTENTION["einsum"]}


def test_the_fastest_kernel_follows_dtype_device_and_size(monkeypatch):
    monkeypatch.setattr(flash_cpu, "available", lambda dtype, device: False)
    assert fastest_attention(torch.float32, "cpu", 144) == fastest_attention(torch.bfloat16, "cuda", 144) == "sdpa"
    assert fastest_attention(torch.bfloat16, "cpu", 1024) == "einsum"
    assert fastest_attention(torch.bfloat16, "cpu", 4096) == "sdpa"  # where all scores would be too much memory
    monkeypatch.setattr(flash_cpu, "available", lambda dtype, device: True)
    assert fastest_attention(torch.bfloat16, "cpu", 4096) == "flash_cpu"
