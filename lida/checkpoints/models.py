"""Models from a folder in diffusers' layout, a single file in latent diffusion's, or the Hugging Face hub; safetensors only.

A folder has unet/ vae/ text_encoder/ tokenizer/ scheduler/, and is what is written. Weights are mapped from the file and put
into a model that was never initialised; each is converted, where another dtype or device is asked for, by itself.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import single_file as ldm
from ..diffusion.schedule import NoiseSchedule, NoiseScheduleConfig
from ..doors.errors import InputError
from .sources import (
    TEXT_WEIGHTS,
    WEIGHTS,
    is_single_file,
    local,
    open_clip_vocabulary,
    part_of_single_file,
    read_json,
    read_tensors,
    weights_file,
)
from ..nn.text import TextEncoder, read_clip_vocabulary
from ..nn.unet import UNet, UNetConfig
from ..nn.vae import VAE, VAEConfig

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION = re.compile(rf"(?<=mid_block\.attentions\.0\.)({'|'.join(NEW_ATTENTION)})(?=\.)")
MODELS = {"unet": (UNet, UNetConfig, ldm.unet_config), "vae": (VAE, VAEConfig, ldm.vae_config)}
SCHEDULE_FIELDS = {field.name for field in fields(NoiseScheduleConfig)} | {
    "_class_name", "trained_betas", "prediction_type", "rescale_betas_zero_snr",
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.38.0",  # which its inpainting pipeline asks for
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
Config = TypeVar("Config", UNetConfig, VAEConfig, NoiseScheduleConfig)


def read_config(kind: type[Config], path: Path) -> Config:
    """A config from diffusers' JSON. A field that lida does not know, or cannot honour, is refused by name."""
    raw = read_json(path)
    if kind is NoiseScheduleConfig:
        raw = of_the_noise_process(raw)
    values = {name: value for name, value in raw.items() if not name.startswith("_")}
    fixed, known = dict(kind.fixed), {field.name: field for field in fields(kind)}
    if kind is VAEConfig:
        widths = values.get("block_out_channels")
        if not isinstance(widths, list):
            raise InputError(f"{path}: block_out_channels is {widths!r}, not a list of numbers; fetch the file again")
        fixed |= kind.block_types(len(widths))
    taken = {}
    for name, value in values.items():
        if name in known:
            taken[name] = tuple(value) if isinstance(value, list) else value
        elif name in fixed:
            if value != fixed[name] and not (value is None and fixed[name] is False):  # old files say null for false
                raise InputError(f"{path}: {name} is {value!r}; lida runs models of SD1.5's kind, where it is {fixed[name]!r}")
        elif name not in getattr(kind, "advisory", ()):
            raise InputError(f"{path}: {name} ({value!r}) is not a field of SD1.5's config; is this another kind of model?")
    if kind is NoiseScheduleConfig and raw.get("_class_name") == "DDIMScheduler" and "clip_sample" not in raw:
        raise InputError(f"{path}: clip_sample is not given, which means true; SD1.5's is false: write that into the file")
    for name, field in known.items():
        if name not in taken and field.default is MISSING:
            raise InputError(f"{path}: the field {name} is missing; fetch the file again")
    wrong = [n for n, v in taken.items() if isinstance(known[n].default, (int, float)) and not isinstance(v, (int, float))]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} is {taken[wrong[0]]!r}; lida takes one number for all blocks, as in SD1.5")
    with refusing(path):
        return kind(**taken)


def of_the_noise_process(raw: dict) -> dict:
    """A scheduler's config without what belongs to a sampler that lida does not have: it walks by its own DDIM.

    Folders name the sampler that their maker liked (DEIS, Euler, DPM++); only the noise process is the model's.
    """
    sampler = raw.get("_class_name", "DDIMScheduler")
    if sampler not in ("DDIMScheduler", "PNDMScheduler") and not raw.get("use_flow_sigmas"):
        raw = {name: value for name, value in raw.items() if name in SCHEDULE_FIELDS}
    return raw if sampler == "DDIMScheduler" else {"set_alpha_to_one": False, **raw}  # the others' default


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what a constructor says of its values into an InputError that names the file they came from."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: {error}") from None


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    device: str | torch.device,
    names: dict[str, str],
) -> None:
    """Load tensors strictly into a model on the meta device and freeze it; it gets the `fingerprint` of what the file holds.

    `names` has the file's name for each of the model's. Raises InputError that names the first five missing, unexpected and
    misshapen ones, as the file spells them.
    """
    expected = {names[name]: tensor for name, tensor in model.state_dict().items()}
    for what, keys in (("misses", expected.keys() - tensors.keys()), ("has unexpected", tensors.keys() - expected.keys())):
        if keys:
            raise InputError(
                f"{path}: {what} {len(keys)} tensors: {', '.join(sorted(keys)[:5])}; is it a whole model of SD1.5's kind?"
            )

    def shaped(key: str, tensor: Tensor) -> Tensor:  # a 1x1 convolution over pixels is a linear layer, and files have either
        linear = tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and expected[key].ndim == 2
        return tensor[:, :, 0, 0] if linear else tensor

    wrong = [k for k in expected if expected[k].shape != shaped(k, tensors[k]).shape or not tensors[k].is_floating_point()]
    if wrong:
        shapes = ", ".join(
            f"{k} {tensors[k].dtype} {tuple(tensors[k].shape)} for {tuple(expected[k].shape)}" for k in wrong[:5]
        )
        raise InputError(f"{path}: {len(wrong)} tensors of another shape: {shapes}; is it a whole model of SD1.5's kind?")
    converted = any(tensor.dtype != dtype for tensor in tensors.values())
    state, heads, pairs = {}, {}, list(names.items())
    for part in (pairs[i : i + 64] for i in range(0, len(pairs), 64)):
        # What has been read of a mapped file counts as memory until it is closed: where it is read to be converted, it is
        # opened anew for each part.
        some = read_tensors(path, [key for _, key in part]) if converted else tensors
        for name, key in part:
            state[name] = shaped(key, some[key]).to(device, dtype)
            heads[name.removeprefix("text_model.")] = some[key].reshape(-1)[:256].to("cpu", torch.float16, copy=True)
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    model.fingerprint = fingerprint(heads)


def fingerprint(heads: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and the first 256 values of each tensor in float16, which are `heads`.

    A folder, a single file and a float16 copy of one model agree; a fine-tune differs, and so does a bfloat16 file.
    """
    digest = hashlib.sha256()
    for name in sorted(heads):
        digest.update(name.encode() + heads[name].numpy().tobytes())
    return digest.hexdigest()


def load_model(part: str, source: str | Path, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """The part "unet" or "vae" of any source."""
    kind, kind_of_config, config_of = MODELS[part]
    if is_single_file(source):
        path = Path(source)
        tensors, prefix = part_of_single_file(path, part), ldm.PREFIXES[part]
        with refusing(path), torch.device("meta"):
            model = kind(config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}))
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
        names = {ours: prefix + theirs for ours, theirs in ldm.key_map(model).items()}
    else:
        path = weights_file(source, part)
        with refusing(path.with_name("config.json")), torch.device("meta"):
            model = kind(read_config(kind_of_config, path.with_name("config.json")))
        tensors = read_tensors(path)
        old = {OLD_ATTENTION.sub(lambda match: NEW_ATTENTION[match[0]], name): name for name in tensors}
        names = {name: old.get(name, name) for name in model.state_dict()}
    fill(model, tensors, path, dtype, device, names)
    return model


def load_unet(source: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> UNet:
    """The UNet of a model, frozen. It has 9 input channels in an inpainting model."""
    return load_model("unet", source, dtype, device)


def load_vae(source: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> VAE:
    """The VAE of a model, frozen. Its attention may have the names of old files, SD1.5's own among them."""
    return load_model("vae", source, dtype, device)


def load_text_encoder(
    source: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> TextEncoder:
    """The text encoder and tokenizer of a model, frozen. Keys may begin with `text_model.` or not."""
    if is_single_file(source):
        path = config_path = Path(source)
        tensors, prefix = part_of_single_file(path, "text_encoder"), ldm.PREFIXES["text_encoder"]
    else:
        path, prefix = weights_file(source, "text_encoder", TEXT_WEIGHTS), ""
        tensors, config_path = read_tensors(path), path.with_name("config.json")
    inner = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    for name in (f"{inner}embeddings.position_ids", "text_projection.weight"):  # 0, 1, 2, ...; what pictures are compared by
        tensors.pop(name, None)
    with refusing(config_path), torch.device("meta"):
        if prefix:
            config = ldm.text_config({name.removeprefix(inner): tuple(tensor.shape) for name, tensor in tensors.items()})
        else:
            config = read_json(config_path)
        model = CLIPTextModel(CLIPTextConfig.from_dict(config))
    ours = "text_model." if hasattr(model, "text_model") else ""  # transformers 5.6 flattened the model
    names = {name: prefix + inner + name.removeprefix(ours) for name in model.state_dict()}
    fill(model, {prefix + name: tensor for name, tensor in tensors.items()}, path, dtype, device, names)
    embeddings = getattr(model, "text_model", model).embeddings
    length = model.config.max_position_embeddings
    embeddings.position_ids = torch.arange(length, device=device)[None]  # no weight, so not in the file
    tokenizer_path, tokenizer = load_tokenizer(source)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(f"{tokenizer_path}: {len(tokenizer)} tokens for an encoder of {model.config.vocab_size}; not a pair")
    return TextEncoder(model, tokenizer)


def load_tokenizer(source: str | Path) -> tuple[Path, CLIPTokenizer]:
    """A model's tokenizer and where it lies. A single file has none: one beside it, open_clip's, or the hub's is taken."""
    if not is_single_file(source):
        path = local(source, "tokenizer/*") / "tokenizer"
    elif (path := Path(source).parent / "tokenizer").is_dir():
        pass
    elif (vocabulary := open_clip_vocabulary()) is not None:
        return vocabulary, read_clip_vocabulary(vocabulary)
    else:
        try:
            path = local(CLIP_HUB_ID, "vocab.json", "merges.txt")
        except InputError as error:
            cure = "put one into a folder tokenizer/ beside it, or pip install open_clip_torch"
            raise InputError(f"{source}: a single file has no tokenizer; {cure} ({error})") from None
    names = [{"vocab.json", "merges.txt"}, {"tokenizer.json"}]  # CLIP's own format, and what transformers 5 writes
    if not any(all((path / name).is_file() for name in spelling) for spelling in names):
        raise InputError(f"{path}: has neither vocab.json and merges.txt nor tokenizer.json; fetch the folder again")
    try:
        return path, CLIPTokenizer.from_pretrained(path)
    except Exception as error:  # the Rust library raises Exception itself
        raise InputError(f"{path}: not readable as a CLIP tokenizer ({error}); fetch the folder again") from None


def load_schedule(source: str | Path) -> NoiseSchedule:
    """The noise schedule of a model; a single file's is SD1.5's."""
    if is_single_file(source):
        return NoiseSchedule.from_config(ldm.SCHEDULE)
    path = local(source, "scheduler/*") / "scheduler" / "scheduler_config.json"
    with refusing(path):
        return NoiseSchedule.from_config(read_config(NoiseScheduleConfig, path))


def save_model(model: UNet | VAE, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a UNet or a VAE as diffusers would: folder/config.json and the weights in `dtype`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {UNet: "UNet2DConditionModel", VAE: "AutoencoderKL"}
    config = {"_class_name": names[type(model)], **model.config.fixed, **asdict(model.config)}
    if isinstance(model, VAE):
        config |= model.config.block_types(len(model.config.block_out_channels))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def save_text_encoder(text_encoder: TextEncoder, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write folder/text_encoder and folder/tokenizer as transformers would."""
    copy.deepcopy(text_encoder.model).to(dtype).save_pretrained(Path(folder, "text_encoder"))
    text_encoder.tokenizer.save_pretrained(Path(folder, "tokenizer"))


def save_schedule(schedule: NoiseSchedule, folder: str | Path) -> None:
    """Write folder/scheduler as diffusers' DDIMScheduler would, and folder/model_index.json, which makes it a pipeline's."""
    path = Path(folder, "scheduler", "scheduler_config.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "DDIMScheduler", **schedule.config.fixed, **asdict(schedule.config)}
    path.write_text(json.dumps(config, indent=2) + "\n")
    Path(folder, "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
