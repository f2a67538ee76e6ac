"""Stage 3: the text encoder is trained on text alone, before the UNet sees a caption.

    python weights/recipe/words.py --tokenizer weights/lida-tiny --output_dir words-run

SD1.5's encoder knew a whole language before the UNet saw a caption; ours would learn the few words of its captions with the
UNet and let all others run together: after such a training "age 10s" and "age 70s" differed by 2 % of a hidden state, and no
adapter could read them. So it first learns, from random sentences, to say at each place which words it has read: the target
is a layer norm over the sum of random marks, one a word, the words that every caption has a third as loud. Tells digits of a
number apart by their place. The base then trains it on, slowly.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lida.checkpoints import save_text_encoder
from lida.nn.text import TextEncoder

WIDTH = 128
SUBJECTS = ("a man", "a woman", "a person", "a boy", "a girl", "sks", "a young man", "an old woman", "a middle-aged man")
SENTENCES = ("{}", "a photo of {}", "a portrait of {}", "a portrait photo of {}")
COMMON = ("a", "an", "the", "of", "portrait", "photo", ",", "-")


def new_text_encoder(tokenizer: CLIPTokenizer) -> TextEncoder:
    """Return a small CLIP text encoder."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", **ids,
    )  # fmt: skip
    model = CLIPTextModel(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return TextEncoder(model, tokenizer)


def sentence(words: list[str], rng: np.random.Generator) -> str:
    """Return a caption with or without an age, or up to twelve random words and numbers, or both."""
    draw, text = rng.random(), ""
    if draw < 0.7:
        text = str(rng.choice(SENTENCES)).format(rng.choice(SUBJECTS))
        if rng.random() < 0.6:
            text += f", age {rng.integers(100)}" if rng.random() < 0.5 else f", age {rng.integers(10)}0s"
    if draw > 0.5:
        some = rng.choice(words, rng.integers(1, 7 if text else 13))
        text += " " + " ".join(str(rng.integers(100)) if rng.random() < 0.2 else word for word in some)
    return text


class Marks:
    """The targets of the encoder: at each token, the sum of the marks of the words so far."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self.vectors = torch.randn(len(tokenizer), WIDTH, generator=torch.Generator().manual_seed(1))
        self.vectors[tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in COMMON])] /= 3
        self.vectors[tokenizer.eos_token_id] = 0  # the end adds nothing to the words before it
        self.is_digit = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.is_digit[tokenizer.convert_tokens_to_ids([f"{digit}</w>" for digit in range(10)])] = True

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the targets (B, 77, C) of token ids (B, 77)."""
        digit = self.is_digit[ids]
        later = F.pad(digit[:, :-1] & digit[:, 1:], (1, 0))[..., None]  # 16 is not 61
        marks = self.vectors[ids]
        return F.layer_norm(torch.where(later, marks.roll(1, -1), marks).cumsum(1), (WIDTH,))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="model folder with tokenizer/")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets text_encoder/ and tokenizer/")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="cosine to zero (default: 2e-3)")
    parser.add_argument("--train_batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--max_train_steps", type=int, default=2000, help="(default: 2000)")
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer / "tokenizer")
    text_encoder, marks = new_text_encoder(tokenizer), Marks(tokenizer)
    words = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>") and token[:-4].isalpha()]
    optimizer = torch.optim.AdamW(text_encoder.parameters(), lr=args.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_train_steps, pct_start=0.05)
    progress, average = tqdm(range(args.max_train_steps)), None
    for _ in progress:
        ids = text_encoder.tokenize([sentence(words, rng) for _ in range(args.train_batch_size)])
        loss = F.mse_loss(text_encoder.model(ids).last_hidden_state[:, 1:], marks(ids)[:, 1:])  # the start token reads nothing
        loss.backward()
        nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}")
    save_text_encoder(text_encoder.eval(), args.output_dir)
    with torch.no_grad():
        a, b = (text_encoder([f"a portrait photo of a man, age {age}s"]) for age in (10, 70))
    print(f"loss {average:.3f}; 10s against 70s: {((a - b).norm() / a.norm()).item():.2f} of a hidden state")


if __name__ == "__main__":
    main()
