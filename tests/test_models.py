"""The networks equal diffusers' and transformers' on the same weights. 1e-5 is some rounding steps of float32."""

from importlib.util import find_spec

import diffusers
import pytest
import torch
from conftest import ROOT, box_mask, noise_image, relative

import lida
from lida.checkpoints import load_vae
from lida.doors.pictures import to_tensor
from lida.nn.layers import Attention, Conv3x3, attention, set_attention_backend
from lida.nn.unet import UNet, UNetConfig
from lida.nn.vae import VAE, VAEConfig


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_unet_equals_diffusers(sd, pipe, size):
    latents, timesteps, context = torch.randn(2, 4, *size), torch.tensor([3, 981]), torch.randn(2, 77, 48)
    with torch.no_grad():
        ours, theirs = sd.unet(latents, timesteps, context), pipe.unet(latents, timesteps, context).sample
    assert relative(ours, theirs) <= 1e-5


def test_bf16_attention_that_trains_equals_the_fused_kernel():
    """It is written out there (in bf16 on the CPU), so each of its tensors may be off by some of bf16's steps of 2^-8."""
    inputs = [torch.randn(2, 4, n, 28).bfloat16().requires_grad_() for n in (36, 77, 77)]
    ours = attention(*inputs)
    assert "ScaledDotProduct" not in type(ours.grad_fn).__name__  # or this compares the kernel with itself
    gradients = torch.autograd.grad(ours.float().square().sum(), inputs)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    fused = torch.nn.functional.scaled_dot_product_attention(*exact)
    for a, b in zip((ours, *gradients), (fused, *torch.autograd.grad(fused.square().sum(), exact))):
        assert relative(a.float(), b) <= 4 * 2**-8


def test_attention_backends_agree(sd):
    """einsum against torch's kernel, in the layer and through the whole UNet. xformers runs on a GPU only."""
    q, k, v = (torch.randn(2, 4, n, 24) for n in (50, 77, 77))
    assert relative(attention(q, k, v, "einsum"), attention(q, k, v)) <= 1e-5
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 981]), torch.randn(2, 77, 48)
    with torch.no_grad():
        expected = sd.unet(*inputs)
        set_attention_backend(sd.unet, "einsum")
        assert {m.backend for m in sd.unet.modules() if isinstance(m, Attention)} == {"einsum"}
        assert relative(sd.unet(*inputs), expected) <= 1e-5


def test_a_frozen_convolution_has_the_gradient_of_torchs():
    """In bf16 on the CPU its way back is a product of ours where pixels are few; its values are rounded once, by 2^-9."""
    conv = Conv3x3(64, 40).bfloat16().requires_grad_(False).to(memory_format=torch.channels_last)
    x = torch.randn(2, 64, 5, 6).bfloat16().requires_grad_()
    ours = conv(x)
    assert "FrozenConvolution" in type(ours.grad_fn).__name__  # or this compares torch with itself
    dy, exact = torch.randn_like(ours), x.detach().float().requires_grad_()
    theirs = torch.nn.functional.conv2d(exact, conv.weight.float(), conv.bias.float(), padding=1)
    assert relative(ours.float(), theirs) <= 2**-8
    assert relative(*(torch.autograd.grad(y, at, dy.to(y.dtype))[0].float() for y, at in ((ours, x), (theirs, exact)))) <= 2**-8
    assert "FrozenConvolution" not in type(conv.requires_grad_(True)(x).grad_fn).__name__  # weights that train have torch's


@pytest.mark.skipif(not (torch.cuda.is_available() and find_spec("xformers")), reason="needs a GPU and xformers")
def test_xformers_agrees():
    q, k, v = (torch.randn(2, 4, n, 40, device="cuda").half() for n in (64, 77, 77))
    assert relative(attention(q, k, v, "xformers"), attention(q, k, v, "einsum")) <= 4 * 2**-10


@pytest.mark.parametrize(
    ("name", "message"), [("xformers", r"pip install lida-aging\[xformers\]"), ("flash", "not one of sdpa")]
)
def test_attention_that_is_not_there_is_refused(sd, name, message, monkeypatch):
    monkeypatch.setattr("lida.nn.layers.find_spec", lambda package: None)
    with pytest.raises(lida.InputError, match=message):
        set_attention_backend(sd.unet, name)
    assert {m.backend for m in sd.unet.modules() if isinstance(m, Attention)} == {"sdpa"}


def test_vae_equals_diffusers(sd, pipe):
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        posterior, factor = pipe.vae.encode(x).latent_dist, pipe.vae.config.scaling_factor
        assert relative(sd.vae.encode(x, sample=False), posterior.mean * factor) <= 1e-5
        ours = sd.vae.encode(x, torch.Generator().manual_seed(1))
        assert relative(ours, posterior.sample(torch.Generator().manual_seed(1)) * factor) <= 1e-5
        assert relative(sd.vae.decode(ours), pipe.vae.decode(ours / factor).sample) <= 1e-5


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (21, 13), (40, 40)])
def test_tiles_cover_every_pixel_once(sd, size):
    """With a decoder that looks at one latent at a time, tiles must give what the whole gives."""
    sd.vae.decoder = torch.nn.Sequential(torch.nn.Conv2d(4, 3, 1), torch.nn.Upsample(scale_factor=8))
    latents = torch.randn(2, 4, *size)
    with torch.no_grad():
        expected = sd.vae.decode(latents)
        sd.vae.tiling = True
        assert relative(sd.vae.decode(latents), expected) <= 1e-5


def test_tiles_come_nearer_to_the_whole_than_diffusers(pipe):
    """On the VAE that ships: ours are all of one size, theirs end in slivers, each normalised by itself."""
    weights = ROOT / "weights" / "lida-tiny"
    vae, theirs = load_vae(weights), diffusers.AutoencoderKL.from_pretrained(weights, subfolder="vae", dtype=torch.float32)
    latents = vae.encode(to_tensor(noise_image(272, 272)), sample=False)  # 34 x 34, tiles are 12 x 12
    with torch.no_grad():
        whole = vae.decode(latents)
        theirs.enable_tiling()
        vae.tiling = True
        ours, reference = vae.decode(latents), theirs.decode(latents / vae.config.scaling_factor).sample
    assert 0 < (ours - whole).abs().mean() < (reference - whole).abs().mean()


def test_vae_computes_in_its_own_dtype(sd):
    latents = torch.randn(1, 4, 8, 8)
    assert sd.vae.decode(latents.half()).dtype == sd.vae.encode(torch.zeros(1, 3, 64, 64).half()).dtype == torch.float32


def test_vae_refuses_sizes_it_would_crop(sd):
    with pytest.raises(ValueError, match="multiples of 8, not 60x64"):
        sd.vae.encode(torch.zeros(1, 3, 64, 60))


@pytest.mark.parametrize("prompt", ["", "a portrait photo of a man, age 60s", "word " * 200])
def test_text_encoder_equals_transformers(sd, pipe, prompt):
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs = sd.text_encoder(prompt), pipe.text_encoder(ids).last_hidden_state
        skipped = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
        assert relative(ours, theirs) <= 1e-5
        assert relative(sd.text_encoder(prompt, clip_skip=1), norm(skipped)) <= 1e-5


def test_sd15_at_full_size_has_diffusers_keys_and_shapes():
    with torch.device("meta"):
        unet, vae = (
            UNet(UNetConfig(sample_size=64, cross_attention_dim=768)),
            VAE(VAEConfig((128, 256, 512, 512), layers_per_block=2)),
        )
        their_unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        widths = (128, 256, 512, 512)
        their_vae = diffusers.AutoencoderKL(
            block_out_channels=widths, layers_per_block=2, down_block_types=down, up_block_types=up
        )
    for ours, theirs, count, tensors in ((unet, their_unet, 859_520_964, 686), (vae, their_vae, 83_653_863, 248)):
        assert {k: t.shape for k, t in ours.state_dict().items()} == {k: t.shape for k, t in theirs.state_dict().items()}
        assert sum(p.numel() for p in ours.parameters()) == count and len(ours.state_dict()) == tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_from_end_to_end(folder, dtype):
    """float16 leaves the VAE in float32. The pictures are those of float32 within some of the format's steps."""
    sd, exact = lida.StableDiffusion.load(folder, dtype), lida.StableDiffusion.load(folder)
    assert sd.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype) and sd.dtype == dtype
    options = {"strength": 0.6, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    image, mask = noise_image(64, 64), box_mask(64, 64, (16, 8, 56, 48))
    ours, theirs = (
        lida.age_face(model, image, mask, "a boy", generator=torch.Generator().manual_seed(1), **options)
        for model in (sd, exact)
    )
    assert ours.dtype == dtype and relative(ours.float(), theirs) <= 4 * torch.finfo(dtype).eps
    assert lida.age_face(sd, image, mask, "a boy", num_inference_steps=10)[0].size == (64, 64)
