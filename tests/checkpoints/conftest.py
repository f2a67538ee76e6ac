"""A small model whose heads and groups are SD1.5's, as a folder and as a single file; and what loads its parts."""

import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from conftest import SCHEDULE
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import lida
from lida.checkpoints import load_text_encoder, load_unet, load_vae
from lida.checkpoints import single_file as ldm
from lida.checkpoints.configs import TextConfig
from lida.nn.unet import UNetConfig
from lida.nn.vae import VAEConfig

WIDTHS = (32, 64, 96, 96)
LOADERS = {"unet": load_unet, "vae": load_vae, "text_encoder": load_text_encoder}


@pytest.fixture(autouse=True)
def small_single_files(monkeypatch, tokenizer):
    """Single files have SD1.5's config: here, that of the model below."""
    text = TextConfig(len(tokenizer), 64, 96, 64, num_hidden_layers=3, num_attention_heads=1)
    unet = UNetConfig(sample_size=64, block_out_channels=WIDTHS, cross_attention_dim=64)
    vae = VAEConfig(WIDTHS, layers_per_block=2, sample_size=512)
    monkeypatch.setattr(ldm, "CONFIGS", {"unet": unet, "vae": vae, "text_encoder": text})


def write_model(folder, tokenizer, in_channels: int = 4) -> None:
    """A model whose heads and groups are SD1.5's and all else is small, as diffusers writes it."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=WIDTHS, cross_attention_dim=64, sample_size=64, in_channels=in_channels, attention_head_dim=8
    )
    ends = {kind: (f"{kind[0].upper()}{kind[1:]}coderBlock2D",) * 4 for kind in ("downEn", "upDe")}
    vae = diffusers.AutoencoderKL(
        block_out_channels=WIDTHS,
        layers_per_block=2,
        sample_size=512,
        down_block_types=ends["downEn"],
        up_block_types=ends["upDe"],
    )
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1,
        projection_dim=64, max_position_embeddings=77, hidden_act="quick_gelu", **ids,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae,
        CLIPTextModel(text),
        tokenizer,
        unet,
        diffusers.DDIMScheduler(**SCHEDULE),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)


def as_single_file(sd: lida.StableDiffusion) -> dict[str, torch.Tensor]:
    """The model's tensors under latent diffusion's names, with what else such files carry."""
    tensors = {}
    for part in ("unet", "vae"):
        model = getattr(sd, part)
        for ours, theirs in ldm.key_map(model).items():
            tensor = model.state_dict()[ours].contiguous()
            if part == "vae" and "attn_1" in theirs and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]  # q, k, v and proj_out are convolutions there
            tensors[ldm.PREFIXES[part] + theirs] = tensor
    for name, tensor in sd.text_encoder.model.state_dict().items():
        tensors[f"{ldm.PREFIXES['text_encoder']}text_model.{name.removeprefix('text_model.')}"] = tensor
    tensors[f"{ldm.PREFIXES['text_encoder']}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2)}
    tensors |= {f"cond_stage_model.{name}": torch.ones(2) for name in ("logit_scale", "transformer.text_projection.weight")}
    for name in ("betas", "alphas_cumprod_prev", "sqrt_recipm1_alphas_cumprod", "posterior_log_variance_clipped"):
        tensors[name] = torch.ones(1000)
    return tensors


@pytest.fixture(scope="session", params=[4])
def small(request, tmp_path_factory, tokenizer) -> SimpleNamespace:
    """A folder and a single file of the same weights; the file has its tokenizer beside it. `param` is the input channels."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(request.param)
    write_model(folder / "folder", tokenizer, request.param)
    sd = lida.StableDiffusion.load(folder / "folder")
    shutil.copytree(folder / "folder" / "tokenizer", folder / "tokenizer")
    tensors = as_single_file(sd)
    save_file(tensors, folder / "model.safetensors")
    return SimpleNamespace(folder=folder / "folder", file=folder / "model.safetensors", tensors=tensors, sd=sd)
