"""CLIP's tokenizer, from a model's folder or from the list of merges that OpenAI published."""

import gzip
import os
from importlib.util import find_spec
from pathlib import Path

from transformers import CLIPTokenizer

from ..doors.errors import InputError, one_line
from ..doors.files import regular_file
from .sources import is_single_file, local

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
SPELLINGS = {"vocab.json", "merges.txt"}, {"tokenizer.json"}  # CLIP's own format, and what transformers 5 writes
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(source: str | Path) -> tuple[CLIPTokenizer, Path]:
    """Return a model's tokenizer, and the path that it was read from.

    A single file has no tokenizer: the one in the folder tokenizer/ beside it is taken, else open_clip's, else the hub's.
    """
    if not is_single_file(source):
        path = local(source, "tokenizer/*") / "tokenizer"
    elif (path := Path(source).parent / "tokenizer").is_dir():
        pass
    elif (vocabulary := open_clip_vocabulary()) is not None:
        return read_clip_vocabulary(vocabulary), vocabulary
    else:
        try:
            path = local(CLIP_HUB_ID, "vocab.json", "merges.txt")
        except InputError as error:
            cure = "put one into a folder tokenizer/ beside it, or pip install open_clip_torch"
            raise InputError(f"{source}: a single file has no tokenizer; {cure} ({error})") from None
    if not any(all((path / name).is_file() for name in names) for names in SPELLINGS):
        raise InputError(f"{path}: has neither vocab.json and merges.txt nor tokenizer.json; fetch the folder again")
    for name in FILES:
        if os.path.lexists(path / name):
            regular_file(path / name, "tokenizer's file")  # a pipe would be waited for
    try:
        return CLIPTokenizer.from_pretrained(path, local_files_only=True), path
    except Exception as error:  # the Rust library raises Exception itself
        raise InputError(f"{path}: not readable as a CLIP tokenizer ({one_line(error)}); fetch the folder again") from None


def check_tokenizer(tokenizer: CLIPTokenizer, path: Path, vocab_size: int, length: int) -> None:
    """Raise InputError unless each token has a row among the encoder's `vocab_size`, and prompts are filled up to `length`."""
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= vocab_size:
        raise InputError(f"{path}: has token {last}, the encoder's last is {vocab_size - 1}; they are not of one model")
    try:
        ids = tokenizer("a", padding="max_length", truncation=True, max_length=length).input_ids
    except Exception as error:
        raise InputError(f"{path}: cannot tokenize a prompt ({one_line(error)}); fetch the folder again") from None
    if len(ids) != length or None in ids:
        raise InputError(f"{path}: makes {len(ids)} tokens of a prompt, not {length}; fetch the folder again")


def open_clip_vocabulary() -> Path | None:
    """Return CLIP's list of merges in the package open_clip_torch, or None if it is not installed."""
    spec = find_spec("open_clip")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec else None
    return path if path and path.is_file() else None


def read_clip_vocabulary(path: str | Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer (49,408 pieces) from the gzipped list of merges that OpenAI published and open_clip carries.

    The list determines the vocabulary: 256 bytes, the same bytes at the end of a word, one piece a merge, and two marks.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these bytes stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    pieces = symbols + [f"{symbol}</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, model_max_length=77)
