"""More latent channels for a model that is trained already: it keeps what it knows.

The first channels stay as they are, so that the UNet's knowledge of them holds. The new ones learn what the first ones leave out:
small things, such as eyes, teeth and wrinkles. `vae.py --latent_channels` and `base.py --init` use this module.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lida.nn.unet import UNet
from lida.nn.vae import VAE

LOG_VARIANCE = -8.0  # of the new channels before training: the posterior is all but a point


@torch.no_grad()
def more_channels(vae: VAE, count: int) -> VAE:
    """Return a VAE with `count` latent channels. The first ones are those of `vae`; the decoder does not look at the others yet."""
    old, grown = vae.config.latent_channels, VAE(replace(vae.config, latent_channels=count))
    for name, weight in grown.state_dict().items():
        if weight.shape == (was := vae.state_dict()[name]).shape:
            weight.copy_(was)
    new, first = torch.arange(old, count), torch.cat([torch.arange(old), count + torch.arange(old)])  # means, log-variances
    conv, quant, back, into = grown.encoder.conv_out, grown.quant_conv, grown.post_quant_conv, grown.decoder.conv_in
    conv.weight[first], conv.bias[first] = vae.encoder.conv_out.weight, vae.encoder.conv_out.bias
    conv.bias[new] = 0.0
    for layer in (quant, back):
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[new, new] = 1.0
    quant.weight[first[:, None], first], quant.bias[first] = vae.quant_conv.weight, vae.quant_conv.bias
    quant.bias[count + new] = LOG_VARIANCE
    back.weight[:old, :old], back.bias[:old] = vae.post_quant_conv.weight, vae.post_quant_conv.bias
    into.weight[:, :old], into.weight[:, old:] = vae.decoder.conv_in.weight, 0.0
    return grown


def growth_loss(latents: Tensor, first: Tensor) -> Tensor:
    """Return how far scaled latents (B, C, h, w) are from what grown ones are to be, given the old VAE's of the same pictures.

    The first channels equal the old ones. The others have mean 0 and deviation 1, and no correlation with any channel.
    """
    old, channels = first.shape[1], latents.shape[1]
    flat = latents.transpose(0, 1).flatten(1)
    means = flat.mean(1, keepdim=True)
    flat = flat - means
    kept = flat[:old] / flat[:old].std(1, keepdim=True)
    correlation = flat[old:] @ torch.cat([kept.detach(), flat[old:]]).T / flat.shape[1]
    correlated = ((correlation - torch.eye(channels)[old:]) ** 2).sum() / (channels - old)
    return 2 * ((latents[:, :old] - first) ** 2).mean() + 0.05 * (correlated + (means[old:] ** 2).mean())


@torch.no_grad()
def whiten(vae: VAE, latents: Tensor, old: int) -> None:
    """Give the channels after the first `old` mean 0, deviation 1 and no correlation, on scaled latents (N, C, h, w) of squares.

    The VAE makes the same pictures: the two 1 x 1 convolutions beside the latents take up the change and its inverse.
    """
    flat = latents.transpose(0, 1).flatten(1).double()
    known = torch.cat([flat[:old], torch.ones_like(flat[:1])])
    by_known = torch.linalg.lstsq(known.T, flat[old:].T).solution.T  # (new, old + 1): what the first ones say of the others
    rest = flat[old:] - by_known @ known
    variances, directions = torch.linalg.eigh(rest @ rest.T / rest.shape[1])
    scale = (directions * variances.rsqrt()) @ directions.T
    change, shift = torch.eye(len(flat), dtype=torch.float64), torch.zeros(len(flat), dtype=torch.float64)
    change[old:, :old], change[old:, old:] = -scale @ by_known[:, :old], scale
    shift[old:] = -scale @ by_known[:, old] / vae.config.scaling_factor  # the convolutions see unscaled latents
    quant, back, count = vae.quant_conv, vae.post_quant_conv, len(flat)
    undo = back.weight[:, :, 0, 0].double() @ torch.linalg.inv(change)
    quant.weight[:count, :, 0, 0] = (change @ quant.weight[:count, :, 0, 0].double()).float()
    quant.bias[:count] = (change @ quant.bias[:count].double() + shift).float()
    back.bias -= (undo @ shift).float()
    back.weight[:, :, 0, 0] = undo.float()


@torch.no_grad()
def widened(unet: UNet, channels: int) -> UNet:
    """Return a UNet of so many latent channels, which predicts as `unet` does for the first ones, and 0 for the others."""
    old, grown = unet.config.in_channels, UNet(replace(unet.config, in_channels=channels, out_channels=channels))
    for name, weight in grown.state_dict().items():
        was = unet.state_dict()[name]
        weight.zero_()
        weight[: len(was), :old].copy_(was) if name == "conv_in.weight" else weight[: len(was)].copy_(was)
    return grown
