"""Prompts -> encoder_hidden_states, by CLIP's text encoder and tokenizer (Radford et al. 2021) through transformers."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import torch
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
        """Channels of what it returns: the UNet's cross_attention_dim."""
        return self.model.config.hidden_size

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, 77): cut to fit, and filled up with the tokenizer's pad token, which SD1.5's encoder does read."""
        length = self.model.config.max_position_embeddings
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return ids.to(next(self.parameters()).device)

    def forward(self, prompts: str | Sequence[str], clip_skip: int = 0) -> Tensor:
        """The last hidden state (B, 77, C) after the final norm, or the one `clip_skip` layers earlier, normed alike.

        clip_skip counts from 0 as diffusers does; A1111 and kohya count from 1. Raises ValueError beyond the layers.
        """
        layers = self.model.config.num_hidden_layers
        if not 0 <= clip_skip < layers:
            raise ValueError(f"clip_skip must be between 0 and {layers - 1}, not {clip_skip}")
        ids = self.tokenize([prompts] if isinstance(prompts, str) else prompts)
        if not clip_skip:
            return self.model(ids).last_hidden_state
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1 - clip_skip]
        inner = getattr(self.model, "text_model", self.model)  # transformers 5.6 flattened the model
        return inner.final_layer_norm(hidden)


def encode_prompts(text_encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """What text_encoder(prompts) gives, computing each different prompt once: captions of faces repeat themselves."""
    different = sorted(set(prompts))
    rows = torch.tensor([different.index(prompt) for prompt in prompts], device=next(text_encoder.parameters()).device)
    return text_encoder(different)[rows]


def read_clip_vocabulary(path: str | Path) -> CLIPTokenizer:
    """CLIP's tokenizer (49,408 pieces) from the gzipped list of merges that OpenAI published and open_clip carries.

    The vocabulary follows from the list: 256 bytes, the same at a word's end, one piece a merge, and the two marks.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these bytes stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    pieces = symbols + [f"{symbol}</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, model_max_length=77)
