"""The autoencoder equals diffusers' on the same weights; decoding by tiles comes near to decoding the whole."""

import diffusers
import pytest
import torch
from conftest import ROOT, draws, noise_image, relative

from lida.checkpoints import load_vae
from lida.doors.pictures import to_tensor
from lida.nn.vae import VAE, VAEConfig


def test_the_vae_equals_diffusers(sd, pipe):
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        posterior, factor = pipe.vae.encode(x).latent_dist, pipe.vae.config.scaling_factor
        assert relative(sd.vae.encode(x, sample=False), posterior.mean * factor) <= 1e-5
        ours = sd.vae.encode(x, draws(1))
        assert relative(ours, posterior.sample(draws(1)) * factor) <= 1e-5
        assert relative(sd.vae.decode(ours), pipe.vae.decode(ours / factor).sample) <= 1e-5


def test_the_vae_of_sd15_has_diffusers_keys_and_shapes():
    widths = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        ours = VAE(VAEConfig(widths, layers_per_block=2))
        theirs = diffusers.AutoencoderKL(block_out_channels=widths, layers_per_block=2, **blocks)
    assert {k: t.shape for k, t in ours.state_dict().items()} == {k: t.shape for k, t in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863 and len(ours.state_dict()) == 248


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (21, 13), (40, 40)])
def test_tiles_cover_every_pixel_once(sd, size):
    """With a decoder that looks at one latent at a time, tiles must give what the whole gives."""
    sd.vae.decoder = torch.nn.Sequential(torch.nn.Conv2d(4, 3, 1), torch.nn.Upsample(scale_factor=8))
    latents = torch.randn(2, 4, *size)
    with torch.no_grad():
        expected = sd.vae.decode(latents)
        sd.vae.tiling = True
        assert relative(sd.vae.decode(latents), expected) <= 1e-5


def test_tiles_come_nearer_to_the_whole_than_diffusers():
    """On the VAE that ships: ours are all of one size, theirs end in slivers, each normalised by itself."""
    weights = ROOT / "weights" / "lida-tiny"
    vae, theirs = load_vae(weights), diffusers.AutoencoderKL.from_pretrained(weights, subfolder="vae", dtype=torch.float32)
    latents = vae.encode(to_tensor(noise_image(224, 224)), sample=False)  # 28 x 28, tiles are 12 x 12
    with torch.no_grad():
        whole = vae.decode(latents)
        theirs.enable_tiling()
        vae.tiling = True
        ours, reference = vae.decode(latents), theirs.decode(latents / vae.config.scaling_factor).sample
    assert 0 < (ours - whole).abs().mean() < (reference - whole).abs().mean()


def test_the_vae_computes_in_its_own_dtype(sd):
    latents = torch.randn(1, 4, 8, 8)
    assert sd.vae.decode(latents.half()).dtype == sd.vae.encode(torch.zeros(1, 3, 64, 64).half()).dtype == torch.float32


def test_sizes_that_the_vae_would_crop_are_refused(sd):
    with pytest.raises(ValueError, match="multiples of 8, not 60x64"):
        sd.vae.encode(torch.zeros(1, 3, 64, 60))
