"""LoRA-based identity-preserving diffusion aging on Stable Diffusion 1.5."""

from .adapters import Adapter, load_adapter, save_adapter
from .diffusion import NoiseSchedule, noise_prediction_loss
from .errors import InputError
from .lora import LoRALinear, inject_lora
from .pipeline import StableDiffusion, age_face, generate
from .sampling import ddim_step, guided, sample

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "InputError",
    "LoRALinear",
    "NoiseSchedule",
    "StableDiffusion",
    "age_face",
    "ddim_step",
    "generate",
    "guided",
    "inject_lora",
    "load_adapter",
    "noise_prediction_loss",
    "sample",
    "save_adapter",
]
