"""Stage 0: what needs no pictures. A byte-level BPE (Sennrich et al. 2016) in CLIP's file format, the noise schedule of
Stable Diffusion 1.5, and the index by which diffusers opens the folder.

    python weights/recipe/tokenizer.py --output_dir weights/lida-tiny

It can encode every text, byte by byte; words of portrait captions are one token each, and every digit is a token.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from lida.checkpoints import save_schedule
from lida.checkpoints.single_file import SCHEDULE
from lida.diffusion.schedule import NoiseSchedule

WORDS = """
a an the of and with in on at by is not no very for from his her their
portrait photo photograph picture painting drawing sketch face head person people someone somebody
man woman boy girl child baby toddler teenager adult lady gentleman grandfather grandmother elderly senior kid
age aged old young middle older younger year years decade
smile smiling laughing serious sad happy angry surprised calm neutral expression eyes eye nose mouth lips teeth ears
hair beard moustache glasses hat cap scarf wrinkles skin freckles makeup earrings bald curly straight long short
black white brown blond blonde grey gray red blue green dark light bright soft warm cold
background studio outdoor indoor street garden room window sky wall sun shadow lighting front side profile close up
blurry sharp colour color monochrome quality high low detailed realistic shirt suit dress jacket tie
sks name called s
"""
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
# CLIP's own way of splitting a text into words
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_bpe() -> tuple[dict[str, int], list[str]]:
    """Return vocabulary and merges in CLIP's order: the bytes, the bytes that end a word, the merges, the two special tokens."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(WORDS.split(), trainer)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(merge.split()) for merge in merges] + SPECIAL
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="model folder: gets tokenizer/ and scheduler/")
    args = parser.parse_args()
    folder = args.output_dir / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = train_bpe()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    start, end = SPECIAL
    config = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end, "model_max_length": 77}
    config["tokenizer_class"] = "CLIPTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_schedule(NoiseSchedule.from_config(SCHEDULE), args.output_dir)

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    words = tokenizer.tokenize("a portrait photo of an old woman, age 60s")
    print(len(tokenizer), "pieces:", *words)
    assert max(vocab.values()) + 1 == len(tokenizer) == len(vocab)
    assert tokenizer.decode(tokenizer("naïve 😀 ωmega", add_special_tokens=False).input_ids).split() == ["naïve", "😀", "ωmega"]


if __name__ == "__main__":
    main()
