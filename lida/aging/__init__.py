"""Use a model: load a Stable Diffusion, merge adapters into it, paint, and age a face in a photograph.

`StableDiffusion` holds the networks and the merged adapters. `generate` paints from prompts, `age_face` repaints a face towards
prompts, `age_to` towards ages; `Edit` and `Sampling` say how. A `Plan` is what follows from them for one face.
"""

from .edit import Edit, Plan, Target, plan_ages, plan_prompt
from .editing import Prepared, age_face, age_to, prepare, repaint, repaint_all
from .generation import generate
from .stable_diffusion import StableDiffusion

__all__ = [
    "Edit", "Plan", "Prepared", "StableDiffusion", "Target", "age_face", "age_to", "generate", "plan_ages",
    "plan_prompt", "prepare", "repaint", "repaint_all",
]  # fmt: skip
