"""Load CLIP's tokenizer from a model's folder or the hub."""

import os
from pathlib import Path

from transformers import CLIPTokenizer

from ..doors.errors import InputError, one_line
from ..doors.files import regular_file
from .sources import is_single_file, local

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
SPELLINGS = {"vocab.json", "merges.txt"}, {"tokenizer.json"}  # CLIP's own format, and what transformers 5 writes
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(source: str | Path) -> tuple[CLIPTokenizer, Path]:
    """Return a model's tokenizer and the folder it was read from; for a single file, tokenizer/ beside it, or CLIP's own."""
    single = is_single_file(source)
    path = Path(source).parent / "tokenizer" if single else local(source, "tokenizer/*") / "tokenizer"
    if single and not path.is_dir():
        try:
            path = local(CLIP_HUB_ID, "vocab.json", "merges.txt")
        except InputError as error:
            cure = "put one into a folder tokenizer/ beside it"
            raise InputError(f"{source}: a single file has no tokenizer; {cure} ({error})") from None
    if not any(all((path / name).is_file() for name in names) for names in SPELLINGS):
        raise InputError(f"{path}: has neither vocab.json and merges.txt nor tokenizer.json; fetch the folder again")
    for name in FILES:
        if os.path.lexists(path / name):
            regular_file(path / name, "tokenizer's file")  # reading a pipe may never end
    try:
        return CLIPTokenizer.from_pretrained(path, local_files_only=True), path
    except Exception as error:  # the Rust library raises Exception itself
        raise InputError(f"{path}: not readable as a CLIP tokenizer ({one_line(error)}); fetch the folder again") from None


def check_tokenizer(tokenizer: CLIPTokenizer, path: Path, vocab_size: int, length: int) -> None:
    """Raise InputError unless each token has one of the encoder's `vocab_size` rows, and prompts are padded to `length`."""
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= vocab_size:
        raise InputError(f"{path}: has token {last}, the encoder's last is {vocab_size - 1}; they belong to different models")
    try:
        ids = tokenizer("a", padding="max_length", truncation=True, max_length=length).input_ids
    except Exception as error:
        raise InputError(f"{path}: cannot tokenize a prompt ({one_line(error)}); fetch the folder again") from None
    if len(ids) != length or None in ids:
        raise InputError(f"{path}: pads a prompt to {len(ids)} tokens, not {length}; fetch the folder again")
