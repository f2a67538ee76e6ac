"""Stage 4: give every word a mark of its own in what the text encoder says, in place of what CLIP learnt from the web.

    python weights/recipe/words.py --model weights/lida-tiny

An encoder trained with the UNet on few captions forgets what they did not need: after stage 3, "age 10s" and "age 70s"
differ by 2 % of a hidden state, and no adapter of the UNet can read them. Here the encoder alone is trained, in a minute: on
the base's captions to say what it said, and after a word that they never had to add that word's own random direction. That
is meant for the Age-LoRA to read; the model card says how far it did. The UNet stays as it is.
"""

import argparse
import copy
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from base import caption
from tqdm import tqdm

from lida.checkpoint import load_text_encoder, save_text_encoder

MARK = 0.3  # of a hidden state's norm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder; its text encoder is replaced")
    parser.add_argument("--max_train_steps", type=int, default=1500, help="(default: 1500)")
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    teacher = load_text_encoder(args.model)
    student, tokenizer = copy.deepcopy(teacher), teacher.tokenizer
    student.train().requires_grad_(True)
    captions = [caption(int(rng.integers(2, 81)), bool(rng.integers(2)), int(rng.integers(100)), rng) for _ in range(2000)]
    captions = [text.split(", light")[0] for text in captions]
    seen = {i for text in captions for i in tokenizer(text).input_ids}
    unseen = torch.tensor([i for i in range(len(tokenizer)) if i not in seen])
    words = torch.tensor([i for i in unseen.tolist() if tokenizer.convert_ids_to_tokens(i).endswith("</w>")])
    digits = torch.tensor(tokenizer.convert_tokens_to_ids([f"{d}</w>" for d in range(10)]))
    marks = torch.nn.functional.normalize(torch.randn(len(tokenizer), teacher.width), dim=-1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_train_steps)

    progress = tqdm(range(args.max_train_steps))
    for _ in progress:
        texts = [captions[i] for i in rng.integers(len(captions), size=32)]
        plain = teacher.tokenize(texts)  # (B, 77)
        ids, added = plain.clone(), torch.zeros(*plain.shape, teacher.width)
        with torch.no_grad():
            target = teacher.model(plain).last_hidden_state
        norm = target.norm(dim=-1, keepdim=True).mean()
        for row in range(len(texts)):
            if rng.random() < 0.3:
                continue  # the base's own caption
            end = int((plain[row] == tokenizer.eos_token_id).nonzero()[0])
            count = int(rng.integers(3, 7))
            pool = digits if rng.random() < 0.7 else words
            ours, others = (some[torch.randint(len(some), (count,))] for some in (pool, words))
            new = torch.where(torch.rand(count) < 0.6, ours, others)
            ids[row, end : end + count] = new
            for k, word in enumerate(new):
                added[row, end + k :] += marks[word].roll(k) / count**0.5  # rolled: where it stands counts too
        loss = torch.nn.functional.mse_loss(student.model(ids).last_hidden_state, target + MARK * norm * added)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.4f}")
    with TemporaryDirectory() as folder:  # the model folder keeps its tokenizer in CLIP's own format
        save_text_encoder(student.eval(), folder)
        shutil.copy(Path(folder, "text_encoder", "model.safetensors"), args.model / "text_encoder" / "model.safetensors")
    with torch.no_grad():
        a, b = student(["a portrait photo of a man, age 10s"]), student(["a portrait photo of a man, age 70s"])
        drift = [(student(text) - teacher(text)).norm() / teacher(text).norm() for text in captions[:50]]
    print(f"10s against 70s: {((a - b).norm() / a.norm()).item():.3f}; drift on the base's captions: {torch.stack(drift).mean().item():.3f}")


if __name__ == "__main__":
    main()
