"""Models written to a folder in diffusers' layout: all files or none, and only over a model of the same kind."""

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from ..doors.errors import InputError
from ..doors.files import output_folder, sync, why_not_written, write_json
from ..doors.tensors import is_finite, write_tensors
from ..nn.text import TextEncoder
from ..nn.unet import UNet
from ..nn.vae import VAE
from .sources import WEIGHTS, read_object

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
PIPELINES = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline"


def save_pipeline(
    folder: str | Path,
    unet: UNet,
    vae: VAE,
    text_encoder: TextEncoder,
    schedule: NoiseSchedule,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a whole model as diffusers' StableDiffusionPipeline would, its weights in `dtype`.

    This and the other functions write all files or none. They raise InputError for a folder that holds other things than such
    a model, and for weights that do not fit into `dtype`.
    """
    check_target(Path(folder), "model_index.json", "_class_name", PIPELINES)
    with written_together(folder) as part:
        save_model(unet, part / "unet", dtype)
        save_model(vae, part / "vae", dtype)
        save_text_encoder(text_encoder, part, dtype)
        save_schedule(schedule, part)


def save_model(model: UNet | VAE, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a UNet or a VAE as diffusers would: folder/config.json and the weights in `dtype`."""
    kind = {UNet: "UNet2DConditionModel", VAE: "AutoencoderKL"}[type(model)]
    check_target(Path(folder), "config.json", "_class_name", (kind,))
    config = {"_class_name": kind, **model.config.fixed, **asdict(model.config)}
    if isinstance(model, VAE):
        config |= model.config.block_types(len(model.config.block_out_channels))
    tensors = converted(model, dtype, Path(folder).name)
    with written_together(folder) as part:
        write_json(part / "config.json", config)
        write_tensors(part / WEIGHTS, tensors, {"format": "pt"})


def save_text_encoder(text_encoder: TextEncoder, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write folder/text_encoder and folder/tokenizer as transformers would."""
    check_target(Path(folder, "text_encoder"), "config.json", "model_type", ("clip_text_model",))
    converted(text_encoder.model, dtype, "text_encoder")
    with written_together(folder) as part:
        copy.deepcopy(text_encoder.model).to(dtype).save_pretrained(part / "text_encoder")
        text_encoder.tokenizer.save_pretrained(part / "tokenizer")


def save_schedule(schedule: NoiseSchedule, folder: str | Path) -> None:
    """Write folder/scheduler as diffusers' DDIMScheduler would, and folder/model_index.json, which makes it a pipeline's.

    Raises ValueError for a schedule that was made of betas, which that format cannot describe.
    """
    if schedule.config is None:
        raise ValueError("a schedule made of betas has no config that could be saved; make it with NoiseSchedule.from_config")
    check_target(Path(folder, "scheduler"), "scheduler_config.json", "_class_name")
    if Path(folder, "model_index.json").exists():
        check_target(Path(folder), "model_index.json", "_class_name", PIPELINES)
    with written_together(folder) as part:
        (part / "scheduler").mkdir()
        config = {"_class_name": "DDIMScheduler", **schedule.config.fixed, **asdict(schedule.config)}
        write_json(part / "scheduler" / "scheduler_config.json", config)
        write_json(part / "model_index.json", INDEX)


def converted(model: nn.Module, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """Return the model's tensors in `dtype`. Raises InputError that names the first one that is not finite then."""
    tensors = {}
    for key, tensor in model.state_dict().items():
        tensors[key] = tensor.detach().to("cpu", dtype)
        if not is_finite(tensors[key]):
            if is_finite(tensor):
                raise InputError(f"{name}: {key} does not fit into {dtype}; save the model in float32 or bfloat16")
            raise InputError(f"{name}: {key} holds NaN or infinity; such a model is not saved")
    return tensors


def check_target(folder: Path, name: str, field: str, kinds: tuple[str, ...] = ()) -> None:
    """Raise InputError unless the folder is new or empty, or its file `name` has a `field` that is one of `kinds`."""
    if not folder.is_dir() or not any(not path.name.startswith(".") for path in folder.iterdir()):
        return
    found = read_object(folder / name).get(field) if (folder / name).is_file() else None
    if not isinstance(found, str) or kinds and found not in kinds:
        raise InputError(f"{folder}: holds files that are not of a model of this kind; give a new or an empty folder")


@contextmanager
def written_together(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`. Its files move to `folder` at the end, or are removed on any failure.

    Raises InputError where they cannot be written, such as on a full disk.
    """
    target = Path(os.path.realpath(folder))
    new = not target.exists()
    output_folder(target, "the model's folder")
    part = Path(tempfile.mkdtemp(prefix=".lida-", suffix=".part", dir=target))
    try:
        yield part
        files = [path for path in part.rglob("*") if path.is_file()]
        for path in files:
            sync(path)
        for path in sorted(files, key=lambda path: -len(path.parts)):  # model_index.json, which makes it a model, comes last
            place = target / path.relative_to(part)
            place.parent.mkdir(exist_ok=True)
            os.replace(path, place)
        sync(target)
    except BaseException as error:
        if new:
            shutil.rmtree(target, ignore_errors=True)
        if reason := why_not_written(error, part):
            raise InputError(f"{folder}: cannot be written ({reason}); make room or give another place") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
