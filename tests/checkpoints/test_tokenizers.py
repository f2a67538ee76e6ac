"""A model's tokenizer is transformers' own; one that is broken or of another model is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

import lida
from lida.checkpoints import load_text_encoder, tokenizers
from lida.checkpoints.tokenizers import check_tokenizer, load_tokenizer

VOCABULARY = json.loads((ROOT / "weights" / "lida-tiny" / "tokenizer" / "vocab.json").read_text())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", "[]", "not readable as a CLIP tokenizer"),
        ("vocab.json", json.dumps(VOCABULARY | {"unheard": 5_000_000}), "has token 5000000"),
        ("vocab.json", "{", "not readable as a CLIP tokenizer"),
        ("merges.txt", "\0" * 100, "tokenizer"),
        ("tokenizer_config.json", '{"pad_token": "unheard", "tokenizer_class": "CLIPTokenizer"}', "has token 917"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(folder, tmp_path, name, text, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "tokenizer")
    shutil.copytree(ROOT / "weights" / "lida-tiny" / "tokenizer", tmp_path / "tokenizer")  # as vocab.json and merges.txt
    (tmp_path / "tokenizer" / name).write_text(text)
    with pytest.raises(lida.InputError, match=message) as error:
        load_text_encoder(tmp_path)
    assert str(tmp_path / "tokenizer") in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_is_that_of_transformers_and_a_single_files_lies_beside_it(small, tokenizer):
    texts = ["", "a portrait photo of a man, age 60s", "naïve 😀"]
    for source, place in ((small.folder, small.folder / "tokenizer"), (small.file, small.file.parent / "tokenizer")):
        again, path = load_tokenizer(source)
        assert path == place and again(texts).input_ids == tokenizer(texts).input_ids


def test_a_single_file_without_a_tokenizer_is_told_where_to_put_one(small, tmp_path, monkeypatch):
    def gone(source, *patterns):
        raise lida.InputError(f"{source}: not here")

    monkeypatch.setattr(tokenizers, "local", gone)
    shutil.copy(small.file, tmp_path / "a.safetensors")
    with pytest.raises(lida.InputError) as error:
        load_tokenizer(tmp_path / "a.safetensors")
    reason = "put one into a folder tokenizer/ beside it (openai/clip-vit-large-patch14: not here)"
    assert str(error.value) == f"{tmp_path / 'a.safetensors'}: a single file has no tokenizer; {reason}"


def test_a_tokenizer_that_pads_to_another_length_is_refused(tokenizer, monkeypatch):
    last = max(tokenizer.get_vocab().values())
    check_tokenizer(tokenizer, Path("t"), last + 1, 77)
    with pytest.raises(lida.InputError) as error:
        check_tokenizer(tokenizer, Path("t"), last, 77)
    assert str(error.value) == f"t: has token {last}, the encoder's last is {last - 1}; they belong to different models"
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: SimpleNamespace(input_ids=[1] * 5))
    with pytest.raises(lida.InputError) as error:
        check_tokenizer(tokenizer, Path("t"), last + 1, 77)
    assert str(error.value) == "t: pads a prompt to 5 tokens, not 77; fetch the folder again"
