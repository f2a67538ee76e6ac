"""LoRA-based identity-preserving diffusion aging on Stable Diffusion 1.5."""

from importlib import import_module

__version__ = "0.1.0"
# Which module has which name. They are imported when first asked for: `import lida` is quick, and `python -m lida.adapters`
# runs a module that is not there twice.
HOMES = {
    "adapters": ("Adapter", "combine", "compare", "load_adapter", "save_adapter"),
    "diffusion": ("NoiseSchedule", "noise_prediction_loss"),
    "errors": ("InputError",),
    "lora": ("LoRALinear", "inject_lora"),
    "model": ("StableDiffusion",),
    "pipeline": ("age_face", "age_to", "generate"),
    "sampling": ("ddim_step", "guided", "sample"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str):
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
