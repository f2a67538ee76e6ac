"""Load models from a folder in diffusers' layout, a single file in latent diffusion's, or the Hugging Face hub.

Weights are memory-mapped from the file and assigned to a model on the meta device, which is never initialised. For another dtype
or device, each tensor is converted on its own.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..diffusion.schedule import NoiseSchedule, NoiseScheduleConfig
from ..doors.errors import InputError, blamed
from ..doors.tensors import check_finite, read_tensors
from ..nn.text import TextEncoder
from ..nn.unet import UNet, UNetConfig
from ..nn.vae import VAE, VAEConfig
from . import single_file as ldm
from .configs import read_config, read_text_config
from .sources import TEXT_WEIGHTS, is_single_file, local, weights_file
from .tokenizers import check_tokenizer, load_tokenizer

NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION = re.compile(rf"(?<=mid_block\.attentions\.0\.)({'|'.join(NEW_ATTENTION)})(?=\.)")
MODELS = {"unet": (UNet, UNetConfig), "vae": (VAE, VAEConfig)}
Tensors = Mapping[str, Tensor]
Device = str | torch.device


def build(kind: Callable[[Any], nn.Module], config: Any, path: Path) -> Any:
    """Return the model of a config on the meta device, where it takes no memory. Raises InputError if it cannot be built."""
    with blamed(f"{path}: ", Exception), torch.device("meta"):  # transformers has its own classes of errors
        return kind(config)


def fill(model: Any, tensors: Tensors, names: dict[str, str], path: Path, dtype: torch.dtype, device: Device) -> None:
    """Load tensors strictly into a model on the meta device, freeze it, and set its `fingerprint`.

    `names` maps the model's names to the file's. Raises InputError that names the tensors that are missing, unexpected, misshapen
    or not finite.
    """
    shapes = {names[name]: tensor.shape for name, tensor in model.state_dict().items()}
    check_shapes(tensors, shapes, path)
    state = {name: tensors[key].reshape(shapes[key]).to(device, dtype) for name, key in names.items()}
    check_finite({names[name]: tensor for name, tensor in state.items()}, path, "load it in float32, or fetch the file again")
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    model.fingerprint = fingerprint({name.removeprefix("text_model."): tensors[key] for name, key in names.items()})


def check_shapes(tensors: Tensors, shapes: dict[str, torch.Size], path: Path) -> None:
    """Raise InputError unless the tensors have exactly these names and shapes, and are floating-point.

    A 1x1 convolution over pixels is a linear layer: where a matrix is wanted, (M, N, 1, 1) passes too.
    """

    def fits(tensor: Tensor, shape: torch.Size) -> bool:
        return tensor.is_floating_point() and (tensor.shape == shape or (len(shape) == 2 and tensor.shape == (*shape, 1, 1)))

    common = shapes.keys() & tensors.keys()
    wrong = {key for key in common if not fits(tensors[key], shapes[key])}
    faults = {"misses": shapes.keys() - common, "has unexpected": tensors.keys() - common, "has misshapen": wrong}
    for what, keys in faults.items():
        if keys:
            shown = {key: f" {tensors[key].dtype} {tuple(tensors[key].shape)}" for key in wrong}
            found = ", ".join(key[:100] + shown.get(key, "") for key in sorted(keys)[:5])
            raise InputError(f"{path}: {what} {len(keys)} tensors: {found}; is it a whole model of SD1.5's kind?")


def fingerprint(tensors: Tensors) -> str:
    """Return SHA-256 over the names and the first 256 values of each tensor in float16.

    A folder, a single file and a float16 copy of one model agree. A fine-tune differs, and so does a bfloat16 file.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].reshape(-1)[:256].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()


def load_part(part: str, source: str | Path, dtype: torch.dtype, device: Device) -> Any:
    """Return the part "unet" or "vae" of a model."""
    kind, kind_of_config = MODELS[part]
    if is_single_file(source):
        path = Path(source)
        tensors, config = ldm.read_part(path, part)
        model = build(kind, config, path)
        names = {ours: ldm.PREFIXES[part] + theirs for ours, theirs in ldm.key_map(model).items()}
    else:
        path = weights_file(source, part)
        config_path = path.with_name("config.json")
        model = build(kind, read_config(kind_of_config, config_path), config_path)
        tensors = read_tensors(path)
        old = {OLD_ATTENTION.sub(lambda match: NEW_ATTENTION[match[0]], name): name for name in tensors}
        names = {name: old.get(name, name) for name in model.state_dict()}
    fill(model, tensors, names, path, dtype, device)
    return model


def load_unet(source: str | Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> UNet:
    """Return the UNet of a model, frozen. That of an inpainting model has 9 input channels.

    This and the other loaders take a folder in diffusers' layout, a single .safetensors file, or a model's id on the hub, and
    raise InputError that names the file and its fault.
    """
    return load_part("unet", source, dtype, device)


def load_vae(source: str | Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> VAE:
    """Return the VAE of a model, frozen. Its attention layers may have the names of old files, as in SD1.5's own."""
    return load_part("vae", source, dtype, device)


def load_text_encoder(source: str | Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> TextEncoder:
    """Return the text encoder of a model, frozen, with its tokenizer. The file's keys may begin with `text_model.` or not."""
    if is_single_file(source):
        path = config_path = Path(source)
        (tensors, config), prefix = ldm.read_part(path, "text_encoder"), ldm.PREFIXES["text_encoder"]
    else:
        path, prefix = weights_file(source, "text_encoder", TEXT_WEIGHTS), ""
        config_path = path.with_name("config.json")
        tensors, config = read_tensors(path), read_text_config(config_path)
    theirs = prefix + "text_model." * any(name.startswith(f"{prefix}text_model.") for name in tensors)
    # position_ids are 0, 1, 2, ...; text_projection is not used for prompts
    for name in (f"{theirs}embeddings.position_ids", f"{prefix}text_projection.weight"):
        tensors.pop(name, None)
    model = build(lambda config: CLIPTextModel(CLIPTextConfig(**asdict(config))), config, config_path)
    ours = "text_model." if hasattr(model, "text_model") else ""  # transformers 5.6 flattened the model
    fill(model, tensors, {name: theirs + name.removeprefix(ours) for name in model.state_dict()}, path, dtype, device)
    length = config.max_position_embeddings
    getattr(model, "text_model", model).embeddings.position_ids = torch.arange(length, device=device)[None]  # not in the file
    tokenizer, tokenizer_path = load_tokenizer(source)
    check_tokenizer(tokenizer, tokenizer_path, config.vocab_size, length)
    return TextEncoder(model, tokenizer)


def load_schedule(source: str | Path) -> NoiseSchedule:
    """Return the noise schedule of a model. That of a single file is SD1.5's."""
    if is_single_file(source):
        return NoiseSchedule.from_config(ldm.SCHEDULE)
    path = local(source, "scheduler/*") / "scheduler" / "scheduler_config.json"
    config = read_config(NoiseScheduleConfig, path)
    with blamed(f"{path}: ", Exception):
        return NoiseSchedule.from_config(config)
