"""The model and adapters that lida ships, the weights at which scripts and page merge them, and the photograph of the demo."""

import os
from pathlib import Path

MODEL, AGE_ADAPTER, AGE_ESTIMATOR = "lida-tiny", "age.safetensors", "age-estimator"
DEMO_PHOTO, DEMO_MASK = "demo/person-b.png", "demo/person-b-mask.png"
DEMO_ADAPTER, DEMO_SUBJECT = "person-b.safetensors", "sks woman"
AGE_WEIGHT, IDENTITY_WEIGHT = 1.0, 0.3  # at more identity the age shows less: docs/tradeoff.md


def path_of(name: str) -> str:
    """Return the path of a shipped file, from the current folder: settings in pictures then name no folder of this machine."""
    return os.path.relpath(Path(__file__).parent / "weights" / name)


def age_adapter_of(model: str) -> str | None:
    """Return the path of the shipped Age-LoRA if the model is lida-tiny, for which it was trained, else None."""
    return path_of(AGE_ADAPTER) if Path(model).resolve() == Path(path_of(MODEL)).resolve() else None
