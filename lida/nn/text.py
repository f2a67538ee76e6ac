"""The text encoder: prompts -> encoder_hidden_states, by CLIP (Radford et al. 2021) from the transformers library."""

import warnings
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer


class TextEncoder(nn.Module):
    """A CLIPTextModel with its tokenizer; the encoder of Stable Diffusion 1.5 is CLIP ViT-L/14's."""

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    @property
    def width(self) -> int:
        """Return the number of channels C: the UNet's cross_attention_dim."""
        return self.model.config.hidden_size

    @property
    def layers(self) -> nn.Module:
        """Return the module that holds `embeddings` and `encoder`; before transformers 5.6 it is a part of the model."""
        return getattr(self.model, "text_model", self.model)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (B, 77), truncated or padded. SD1.5's encoder reads the pad tokens too.

        Warns with the words that are cut off a prompt that is too long.
        """
        length, prompts = self.model.config.max_position_embeddings, list(prompts)
        "".join(prompts).encode()  # raises TypeError or UnicodeError unless each prompt is text
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
        whole = self.tokenizer(prompts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for prompt, places in zip(prompts, whole.offset_mapping):
            lost = prompt[places[length - 2][0] :].strip() if len(places) > length - 2 else ""
            if lost:
                what = f"is longer than {length - 2} tokens; these words are lost: {lost[:200]}"
                warnings.warn(f"the prompt {prompt[:40]!r}... {what}")
        return ids.to(next(self.parameters()).device)

    def forward(self, prompts: str | Sequence[str]) -> Tensor:
        """Return the last hidden state (B, 77, C), after the final norm."""
        ids = self.tokenize([prompts] if isinstance(prompts, str) else prompts)
        return self.model(ids).last_hidden_state
