"""Read models of Stable Diffusion 1.5's kind from a folder, a single file or the Hugging Face hub; write them to a folder.

`models` loads, `saving` writes, `configs` checks the JSON, `sources` finds and opens files, `single_file` has latent
diffusion's names, `tokenizers` reads CLIP's tokenizer. Weights are read from safetensors only, so nothing is unpickled.
"""

from .models import load_schedule, load_text_encoder, load_unet, load_vae
from .saving import save_model, save_pipeline, save_schedule, save_text_encoder

__all__ = [
    "load_schedule", "load_text_encoder", "load_unet", "load_vae", "save_model", "save_pipeline", "save_schedule",
    "save_text_encoder",
]  # fmt: skip
