"""Every source that people have of an SD1.5 gives the same model: folders and their variants, single files, the hub's cache.

The single-file names are held to diffusers' own conversion of them.
"""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch
from conftest import ROOT, SCHEDULE, noise_image, relative
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import lida
from lida.checkpoints import single_file as ldm
from lida.checkpoints.models import load_unet

WIDTHS = (32, 64, 96, 96)


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


@pytest.fixture(scope="module", params=[4, 9], ids=["4 channels", "9 channels"])
def small(request, tmp_path_factory, tokenizer) -> SimpleNamespace:
    """A folder and a single file of the same weights; the file has its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(request.param)
    write_model(folder / "folder", tokenizer, request.param)
    sd = lida.StableDiffusion.load(folder / "folder")
    shutil.copytree(folder / "folder" / "tokenizer", folder / "tokenizer")
    tensors = as_single_file(sd)
    save_file(tensors, folder / "model.safetensors")
    return SimpleNamespace(folder=folder / "folder", file=folder / "model.safetensors", tensors=tensors, sd=sd)


def same_weights(a: lida.StableDiffusion, b: lida.StableDiffusion) -> bool:
    pairs = zip((a.unet, a.vae, a.text_encoder), (b.unet, b.vae, b.text_encoder))
    return all(
        x.state_dict().keys() == y.state_dict().keys()
        and all(torch.equal(tensor, y.state_dict()[name]) for name, tensor in x.state_dict().items())
        for x, y in pairs
    )


def test_single_file_is_the_folders_model(small):
    again = lida.StableDiffusion.load(small.file)
    assert same_weights(again, small.sd)
    assert again.unet.config == small.sd.unet.config and again.schedule.config == small.sd.schedule.config
    assert again.vae.config == small.sd.vae.config and again.resolution == 512
    latents, t, prompt = torch.randn(1, again.unet.config.in_channels, 8, 8), torch.tensor([500]), "an old man, age 70s"
    with torch.no_grad():  # near and not equal: weights mapped from two files may be summed in two orders
        context = again.text_encoder(prompt)
        assert relative(context, small.sd.text_encoder(prompt)) <= 1e-5
        assert relative(again.unet(latents, t, context), small.sd.unet(latents, t, context)) <= 1e-5


def test_single_file_names_are_what_diffusers_converts(small):
    file = {name: tensor.clone() for name, tensor in small.tensors.items()}
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(file), config)
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(file), {"down_block_types": [0] * 4, "up_block_types": [0] * 4})
    for theirs, ours in ((unet, small.sd.unet), (vae, small.sd.vae)):
        assert theirs.keys() == ours.state_dict().keys()
        assert all(torch.equal(tensor.reshape(theirs[name].shape), theirs[name]) for name, tensor in ours.state_dict().items())


def test_keys_of_clip_without_text_model_load(small, tmp_path):
    file = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in small.tensors.items()}
    save_file(file, tmp_path / "model.safetensors")
    shutil.copytree(small.folder / "tokenizer", tmp_path / "tokenizer")
    assert same_weights(lida.StableDiffusion.load(tmp_path / "model.safetensors"), small.sd)


def mapped_file(tensor: torch.Tensor) -> str:
    """The file that the tensor's memory is a mapping of, by Linux's table; empty where it is no file's."""
    for line in open("/proc/self/maps"):
        fields = line.split(maxsplit=5)
        low, high = (int(address, 16) for address in fields[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return fields[5].strip() if len(fields) > 5 else ""
    return ""


def test_no_random_number_is_drawn_at_load(small):
    """Nothing is initialised that a file is then put over, and nothing stays on the meta device."""
    before = torch.get_rng_state()
    sd = lida.StableDiffusion.load(small.file)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(t.is_meta for model in (sd.unet, sd.vae, sd.text_encoder) for t in [*model.parameters(), *model.buffers()])


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's table of mappings")
def test_weights_are_mapped_from_the_file(small):
    sd = lida.StableDiffusion.load(small.file)
    tensors = [*sd.unet.parameters(), *sd.vae.parameters(), *sd.text_encoder.parameters()]
    assert {mapped_file(tensor) for tensor in tensors[::20]} == {str(small.file)}
    half = load_unet(small.file, torch.bfloat16)
    assert {mapped_file(tensor) for tensor in half.parameters()} != {str(small.file)}  # or this would see a file anywhere


TENSORS = (
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "model.diffusion_model.output_blocks.5.2.conv.bias",
    "first_stage_model.encoder.down.0.block.0.conv1.weight", "first_stage_model.decoder.mid.attn_1.q.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
)  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("fault", ["missing", "misshapen", "integer"])
def test_a_broken_tensor_is_named(small, tmp_path, name, fault):
    file, path = dict(small.tensors), tmp_path / "model.safetensors"
    shutil.copytree(small.folder / "tokenizer", tmp_path / "tokenizer")
    if fault == "missing":
        del file[name]
    else:
        file[name] = file[name][..., :-1].contiguous() if fault == "misshapen" else file[name].int()
    save_file(file, path)
    with pytest.raises(lida.InputError) as error:
        lida.StableDiffusion.load(path)
    assert str(path) in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.input_blocks.1.0.extra", "first_stage_model.loss.logvar", "control_model.x"]
)
def test_an_extra_tensor_is_named(small, tmp_path, name):
    path = tmp_path / "model.safetensors"
    shutil.copytree(small.folder / "tokenizer", tmp_path / "tokenizer")
    save_file({**small.tensors, name: torch.ones(1)}, path)
    with pytest.raises(lida.InputError, match=name.replace(".", r"\.")):
        lida.StableDiffusion.load(path)


def test_files_that_are_no_safetensors_are_refused(small, tmp_path):
    whole = small.file.read_bytes()
    torch.save({"a": torch.ones(2)}, tmp_path / "renamed.safetensors")
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.safetensors").write_bytes((10**8).to_bytes(8, "little") + b"{" * 100)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "model.ckpt").write_bytes(b"")
    adapter = lida.Adapter.of(lida.inject_lora(lida.StableDiffusion.load(small.folder).unet, 2))
    lida.save_adapter(tmp_path / "lora.safetensors", adapter)
    cases = {"renamed": "is a pickle", "short": "not a readable", "header": "not a readable", "empty": "not a readable"}
    for name, message in cases.items():
        with pytest.raises(lida.InputError, match=message):
            lida.StableDiffusion.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(lida.InputError, match="is a pickle"):
        lida.StableDiffusion.load(tmp_path / "model.ckpt")
    with pytest.raises(lida.InputError, match="no part of SD1.5: unet.down_blocks"):
        lida.StableDiffusion.load(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_variants_of_a_folder_load(small, tmp_path, variant):
    folder = tmp_path / "variant"
    shutil.copytree(small.folder, folder)
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        path.unlink()
        tensors = {name: tensor.half() if variant == "fp16" else tensor for name, tensor in tensors.items()}
        save_file(tensors, path.with_name(f"{path.stem}.{variant}.safetensors"))
    again = lida.StableDiffusion.load(folder)
    for a, b in zip(again.unet.parameters(), small.sd.unet.parameters()):
        assert torch.equal(a, b.half().float() if variant == "fp16" else b)


def test_fingerprints_name_the_model_and_not_its_file(small, tmp_path):
    """Folder, single file, half precision: one model. A fine-tune is another."""
    half = tmp_path / "half.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in small.tensors.items()}, half)
    shutil.copytree(small.folder / "tokenizer", tmp_path / "tokenizer")
    bases = [lida.StableDiffusion.load(source).base for source in (small.folder, small.file, half)]
    bases.append(lida.StableDiffusion.load(small.folder, torch.bfloat16).base)
    assert [base.pop("name") for base in bases] == ["folder", "model.safetensors", "half.safetensors", "folder"]
    assert all(base == bases[0] and len(set(base.values())) == 3 for base in bases)
    name = "model.diffusion_model.middle_block.0.in_layers.0.weight"
    tuned = {**small.tensors, name: small.tensors[name] + 0.01}
    save_file(tuned, tmp_path / "tuned.safetensors")
    assert load_unet(tmp_path / "tuned.safetensors").fingerprint != bases[0]["unet"]


def test_pickled_weights_of_a_folder_are_refused_with_the_cure(small, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(small.folder, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(
        lida.InputError, match=r"unet: has no .* diffusion_pytorch_model.bin is a pickle.*take its .safetensors"
    ):
        lida.StableDiffusion.load(folder)


def test_the_removed_hub_id_comes_from_the_cache_of_its_successor(small, tmp_path):
    """Offline, from files laid out as huggingface_hub's cache has them."""
    snapshot = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5" / "snapshots" / ("0" * 40)
    shutil.copytree(small.folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    noise_image(64, 64).save(tmp_path / "photo.png")
    command = [sys.executable, ROOT / "infer.py", tmp_path / "photo.png", "--ages", "70", "--num_inference_steps", "2"]
    command += ["--mask", "0,0,64,64"]
    command += ["--strength", "0.6", "--output_dir", tmp_path / "out", "--pretrained_model_name_or_path"]
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "runwayml/stable-diffusion-v1-5"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "is gone from the hub; taking stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stderr
    assert json.loads((tmp_path / "out" / "photo-age70.json").read_text())["arguments"]["ages"] == [70]
    with pytest.raises(lida.InputError, match="nobody/nothing: no such folder, and not to be had from the hub") as error:
        lida.StableDiffusion.load("nobody/nothing")
    assert "\n" not in str(error.value)
