"""The model card says what the adapter is, and only what belongs to it is uploaded."""

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from lida.adapters import Adapter
from lida.doors.errors import InputError
from lida.nn.lora import LowRank
from lida.training.card import push_to_hub, write_card

TRAINING = {
    "max_train_steps": 10,
    "train_batch_size": 2,
    "learning_rate": 1e-3,
    "mask_loss": False,
    "snr_gamma": None,
}


def adapter(**about) -> Adapter:
    layers = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_q": LowRank(torch.ones(2, 4), torch.ones(4, 2), 2.0)}
    common = {
        "role": "identity",
        "base": {"name": "lida-tiny"},
        "data": {"count": 24},
        "rank": 2,
        "training": TRAINING,
        "samples_per_step": 6,
    }
    return Adapter(layers, {**common, **about})


def test_the_hub_reads_the_cards_header_and_people_its_text(tmp_path):
    card = ModelCard.load(write_card(tmp_path, adapter(consent="the person herself, 2026", licence="research only")))
    assert card.data.base_model == "lida-tiny" and {"lora", "lida-identity"} <= set(card.data.tags)
    for text in (
        "# Identity-LoRA",
        "Consent: the person herself, 2026.",
        "research only",
        "| learning_rate | 0.001 |",
        "10 steps of 6 pictures",
    ):
        assert text in card.text
    assert "snr_gamma" not in card.text and "samples.png" not in card.text


def test_a_card_without_consent_says_so(tmp_path):
    assert "No consent is recorded: do not pass it on." in ModelCard.load(write_card(tmp_path, adapter())).text
    assert "it learnt from a dataset" in ModelCard.load(write_card(tmp_path, adapter(role="age"))).text


def test_what_is_uploaded_is_the_adapter_its_card_and_samples_and_a_failure_is_one_line(tmp_path, monkeypatch):
    calls = []
    repo = huggingface_hub.RepoUrl("https://huggingface.co/someone/name")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda api, name, **options: calls.append((name, options)) or repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda api, **options: calls.append(options))
    assert push_to_hub(tmp_path / "me-lora", None) == "https://huggingface.co/someone/name"
    assert calls[0] == ("me-lora", {"private": True, "exist_ok": True}) and calls[1]["repo_id"] == "someone/name"
    assert "checkpoint" not in str(calls[1]["allow_patterns"])

    def refuse(*_, **__):
        raise OSError("no connection\nat all")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(InputError, match="--push_to_hub: no connection; the adapter is in"):
        push_to_hub(tmp_path, "a/b")
