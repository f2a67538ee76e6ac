"""The text encoder equals transformers'; a warning names the words that do not fit."""

import warnings

import pytest
import torch
from conftest import relative


@pytest.mark.filterwarnings("ignore:the prompt")
@pytest.mark.parametrize("prompt", ["", "a portrait photo of a man, age 60s", "word " * 200])
def test_the_text_encoder_equals_transformers(sd, pipe, prompt):
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        assert relative(sd.text_encoder(prompt), pipe.text_encoder(ids).last_hidden_state) <= 1e-5


def test_prompts_that_are_not_texts_are_refused(sd):
    for prompts in ([5], [b"a boy"], [None], ["a \udcff"]):
        with pytest.raises((TypeError, UnicodeError)):
            sd.text_encoder(prompts)


def test_a_long_prompt_warns_with_the_words_that_are_lost(sd):
    """The first of them is the first whose tokens are not read: 75 fit beside the two marks."""
    tokenizer, words = sd.text_encoder.tokenizer, ["man"] * 75
    assert len(tokenizer("man", add_special_tokens=False).input_ids) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitting = sd.text_encoder.tokenize([" ".join(words)])
    with pytest.warns(UserWarning, match="longer than 75 tokens; these words are lost: boy age 60s$"):
        longer = sd.text_encoder.tokenize([" ".join([*words, "boy", "age", "60s"])])
    assert torch.equal(fitting, longer)
