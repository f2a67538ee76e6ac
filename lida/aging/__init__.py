"""Use a model: load a Stable Diffusion, merge adapters into it, paint, and age a face in a photograph.

`StableDiffusion` holds the networks and the merged adapters. `generate` paints from prompts, `age_face` repaints a face towards
prompts, `age_to` towards ages; `Edit` and `Sampling` say how.
"""

from .edit import Edit, Target, age_targets
from .editing import Prepared, age_face, age_to, prepare, repaint, repaint_all
from .generation import generate
from .stable_diffusion import Prompt, StableDiffusion

__all__ = [
    "Edit", "Prepared", "Prompt", "StableDiffusion", "Target", "age_face", "age_targets", "age_to", "generate",
    "prepare", "repaint", "repaint_all",
]  # fmt: skip
