"""Header keys that other programs read: those of ModelSpec 1.0.1 (Stability AI) and of kohya's trainer (ss_*)."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

import torch
from torch import Tensor

from .adapter import Adapter

# A training flag and kohya's key for it
FLAGS = {
    "learning_rate": "ss_learning_rate", "max_train_steps": "ss_max_train_steps", "train_batch_size": "ss_batch_size_per_device",
    "lr_scheduler": "ss_lr_scheduler", "lr_warmup_steps": "ss_lr_warmup_steps", "mixed_precision": "ss_mixed_precision",
    "seed": "ss_seed", "snr_gamma": "ss_min_snr_gamma", "noise_offset": "ss_noise_offset",
    "gradient_checkpointing": "ss_gradient_checkpointing", "max_grad_norm": "ss_max_grad_norm",
}  # fmt: skip


def shared_header(adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the header of an adapter that is written as these tensors, with alpha equal to the rank.

    The date is today's, or that of SOURCE_DATE_EPOCH (seconds since 1970), with which equal adapters give equal files.
    """
    about, ranks = adapter.metadata, sorted({layer.rank for layer in adapter.layers.values()})
    training = about.get("training", {})
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "epsilon",
        "modelspec.title": title(about),
        "modelspec.date": today(),
        "modelspec.hash_sha256": f"0x{tensor_hash(tensors)}",
        "modelspec.trigger_phrase": about.get("template"),
        "modelspec.license": about.get("licence"),
        "modelspec.merged_from": ", ".join(title(part) for part in about.get("parts", ())) or None,
        "ss_base_model_version": "sd_v1",
        "ss_v2": False,
        "ss_network_module": "networks.lora",
        "ss_network_dim": ranks[0] if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": float(ranks[-1]),
        "ss_sd_model_name": about.get("base", {}).get("name"),
        "ss_num_train_images": about.get("data", {}).get("count"),
    }
    if side := training.get("resolution"):
        found |= {"modelspec.resolution": f"{side}x{side}", "ss_resolution": f"({side}, {side})"}
    found |= {key: training.get(flag) for flag, key in FLAGS.items()}
    return {key: str(value) for key, value in found.items() if value is not None}


def title(metadata: Mapping) -> str:
    """Return the title of an adapter with this metadata."""
    return {"age": "Age-LoRA", "identity": "Identity-LoRA"}.get(metadata.get("role", ""), "LoRA")


def today() -> str:
    """Return the date of SOURCE_DATE_EPOCH, or today's, as YYYY-MM-DD in UTC."""
    now = datetime.now(UTC)
    with suppress(KeyError, ValueError, OverflowError, OSError):  # an invalid SOURCE_DATE_EPOCH must not stop a run
        now = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    return now.date().isoformat()


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()
