"""Every source of an SD1.5 gives the same model, old files too.

Broken and malicious files end in an error of one line that names them.
"""

import os
import shutil
import sys

import pytest
import torch
from conftest import relative
from safetensors.torch import load_file, save_file

import lida
from lida.checkpoints import load_text_encoder, load_unet, load_vae
from tests.checkpoints.conftest import LOADERS


def mapped_file(tensor: torch.Tensor) -> str:
    """Return the file that the tensor's memory maps, by Linux's table; empty if it maps none."""
    for line in open("/proc/self/maps"):
        fields = line.split(maxsplit=5)
        low, high = (int(address, 16) for address in fields[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return fields[5].strip() if len(fields) > 5 else ""
    return ""


def test_no_random_number_is_drawn_at_load(small):
    """No weight is initialised before it is loaded, and none stays on the meta device."""
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
    assert {mapped_file(tensor) for tensor in half.parameters()} != {str(small.file)}  # or this finds a file everywhere


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
        with pytest.raises(lida.InputError, match=message) as error:
            lida.StableDiffusion.load(tmp_path / f"{name}.safetensors")
        assert f"{name}.safetensors" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(lida.InputError, match="is a pickle"):
        lida.StableDiffusion.load(tmp_path / "model.ckpt")
    with pytest.raises(lida.InputError, match="no part of SD1.5: unet.down_blocks"):
        lida.StableDiffusion.load(tmp_path / "lora.safetensors")


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


def test_old_clip_keys_load(sd, folder, tmp_path):
    """Files from before transformers 5.6 spell `text_model.` and carry position_ids."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder" / "model.safetensors"
    old = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, path)
    again, before = load_text_encoder(tmp_path), sd.text_encoder.state_dict()
    assert again.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert relative(again("a boy"), sd.text_encoder("a boy")) <= 1e-5


def test_old_vae_attention_names_load(sd, folder, tmp_path):
    """SD1.5's own VAE file is from before diffusers renamed them."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = load_file(path)
    for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): tensor for key, tensor in old.items()}
    save_file(old, path)
    assert sum(".query." in key for key in old) == 4
    again = load_vae(tmp_path)
    assert all(torch.equal(tensor, sd.vae.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_half_precision_is_chosen_at_load(folder):
    for load in (load_unet, load_vae, load_text_encoder):
        assert {p.dtype for p in load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e6])
def test_weights_that_are_not_finite_are_named(folder, tmp_path, part, dtype, value):
    """1e6 is finite in the file, and infinite in float16."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = next((tmp_path / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    if value == 1e6 and dtype == torch.float32:
        assert LOADERS[part](tmp_path, dtype)
        return
    with pytest.raises(lida.InputError, match=f"is not finite in {dtype}") as error:
        LOADERS[part](tmp_path, dtype)
    assert f"{path}: {name} " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["pipe", "dangling link", "folder"])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "config.json"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "config.json"),
        ("text_encoder", "model.safetensors"),
        ("tokenizer", "vocab.json"),
        ("tokenizer", "tokenizer_config.json"),
        ("scheduler", "scheduler_config.json"),
    ],
)
def test_what_is_no_regular_file_is_not_waited_for(folder, tmp_path, part, name, fault):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / part / name
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "dangling link": lambda path: path.symlink_to("nowhere"), "folder": os.mkdir}[fault](path)
    with pytest.raises(lida.InputError) as error:
        lida.StableDiffusion.load(tmp_path)
    assert str(path.parent) in str(error.value) and "\n" not in str(error.value)
