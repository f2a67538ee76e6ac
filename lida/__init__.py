"""LoRA-based identity-preserving diffusion aging on Stable Diffusion 1.5.

    nn           the networks and the LoRA layer             diffusion    schedule, loss, samplers, inversion, guidance
    adapters     adapters as data, merging                   checkpoints  models from folders, files and the hub
    aging        StableDiffusion, generate, age_face         data         training folders, All-Age-Faces, albums
    training     what the training loop needs                study        evaluation
    photos       masks, faces, captions, squares             doors        pictures, JSON, arguments and files, checked
    kernels      faster forms for certain hardware           app          a page in the browser

The names below are imported when they are first used, so that `import lida` is quick.
"""

from importlib import import_module

__version__ = "0.3.0"

# The module of each name
HOMES = {
    "adapters": ("Adapter", "combine", "compare", "load_adapter", "save_adapter"),
    "aging": ("Edit", "Plan", "StableDiffusion", "Target", "age_face", "age_to", "generate", "plan_ages", "prepare", "repaint"),
    "diffusion": ("NoiseSchedule", "Sampling", "ddim_step", "guided", "noise_prediction_loss", "sample"),
    "doors.errors": ("InputError",),
    "nn.attention_maps": ("recorded_attention",),
    "nn.lora": ("LoRALinear", "eject_lora", "inject_lora"),
}  # fmt: skip
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str):
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
