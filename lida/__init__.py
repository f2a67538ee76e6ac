"""LoRA-based identity-preserving diffusion aging on Stable Diffusion 1.5."""

from importlib import import_module

__version__ = "0.1.0"
# Which module has which name. They are imported when first asked for: `import lida` is quick, and `python -m lida.adapters`
# runs a module that is not there twice.
HOMES = {
    "adapters.adapter": ("Adapter", "combine", "compare", "load_adapter", "save_adapter"),
    "aging.editing": ("age_face", "age_to", "generate"),
    "aging.stable_diffusion": ("StableDiffusion",),
    "diffusion.samplers": ("ddim_step", "guided", "sample"),
    "diffusion.schedule": ("NoiseSchedule", "noise_prediction_loss"),
    "doors.errors": ("InputError",),
    "nn.lora": ("LoRALinear", "inject_lora"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str):
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
