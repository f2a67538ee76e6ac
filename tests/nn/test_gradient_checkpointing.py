"""Activation checkpointing changes no gradient."""

import torch

from lida.nn import inject_lora, lora_parameters


def test_gradients_are_the_same_with_checkpointing(sd):
    parameters = lora_parameters(inject_lora(sd.unet, 4).values())
    for p in parameters:
        p.data.normal_(std=0.1)
    x, t, c = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), sd.text_encoder(["a", "b"])
    gradients = []
    for on in (False, True):
        sd.unet.set_gradient_checkpointing(on)
        sd.unet(x, t, c).square().mean().backward()
        gradients.append([p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
