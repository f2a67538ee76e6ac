"""Write models to a folder in diffusers' layout."""

import copy
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from ..doors.files import folder_written_whole, output_folder, sync, write_json
from ..doors.tensors import FLOATS, check_finite, write_tensors
from ..nn.text import TextEncoder
from ..nn.unet import UNet
from ..nn.vae import VAE
from .sources import WEIGHTS

INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.38.0",  # which its inpainting pipeline asks for
    "feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


def save_pipeline(
    folder: str | Path, unet: UNet, vae: VAE, text_encoder: TextEncoder, schedule: NoiseSchedule,
    dtype: torch.dtype = torch.float16,
) -> None:  # fmt: skip
    """Write a whole model as diffusers' StableDiffusionPipeline would, its weights in `dtype`, into a new or an empty folder.

    All files are written, or none. Raises InputError for a folder that is not empty.
    """
    with folder_written_whole(folder) as part:
        save_schedule(schedule, part)  # first: a schedule made from betas cannot be saved
        save_model(unet, part / "unet", dtype)
        save_model(vae, part / "vae", dtype)
        save_text_encoder(text_encoder, part, dtype)


def save_model(model: UNet | VAE, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a UNet or a VAE as diffusers would: folder/config.json and the weights in `dtype`.

    This and the other functions for one part replace files of the same names. They raise InputError for weights that are not
    finite in `dtype`.
    """
    config = {"_class_name": "UNet2DConditionModel", **model.config.fixed, **asdict(model.config)}
    if isinstance(model, VAE):
        count = len(model.config.block_out_channels)
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count}
        config |= {"_class_name": "AutoencoderKL", **blocks}
    tensors = converted(model, dtype, Path(folder).name)
    folder = output_folder(folder, "the model's folder")
    write_json(folder / "config.json", config)
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def save_text_encoder(text_encoder: TextEncoder, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write folder/text_encoder and folder/tokenizer as transformers would."""
    converted(text_encoder.model, dtype, "text_encoder")
    folder = output_folder(folder, "the model's folder")
    with tempfile.TemporaryDirectory(prefix=".lida-", suffix=".part", dir=folder) as part:
        model = copy.deepcopy(text_encoder.model).to(dtype)  # type: ignore[arg-type]  # its stub
        model.save_pretrained(Path(part, "text_encoder"))
        text_encoder.tokenizer.save_pretrained(Path(part, "tokenizer"))
        for path in Path(part).glob("*/*"):
            sync(path)
            place = output_folder(folder / path.parent.name) / path.name
            os.replace(path, place)


def save_schedule(schedule: NoiseSchedule, folder: str | Path) -> None:
    """Write folder/scheduler as diffusers' DDIMScheduler would, and folder/model_index.json, which makes it a pipeline.

    Raises ValueError for a schedule made from betas, which this format cannot describe.
    """
    if schedule.config is None:
        raise ValueError("a schedule made from betas has no scheduler_config.json; save the other parts by themselves")
    config = {"_class_name": "DDIMScheduler", **schedule.config.fixed, **asdict(schedule.config)}
    write_json(output_folder(Path(folder, "scheduler")) / "scheduler_config.json", config)
    write_json(Path(folder, "model_index.json"), INDEX)


def converted(model: nn.Module, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """Return the model's tensors in `dtype`. Raises InputError that names the first tensor that is not finite in it."""
    if dtype not in FLOATS:
        raise ValueError(f"{dtype} is not a floating-point dtype; give one such as torch.float16")
    tensors = {key: tensor.detach().to("cpu", dtype) for key, tensor in model.state_dict().items()}
    check_finite(tensors, name, "save the model in float32, or train it again")
    return tensors
