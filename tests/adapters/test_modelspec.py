"""An adapter's header has the keys that other programs show."""

import hashlib

import pytest
import torch
from safetensors import safe_open

from lida.adapters import Adapter, combine, load_adapter, save_adapter
from lida.adapters.modelspec import today
from lida.nn.lora import LowRank

ABOUT = {
    "role": "age", "template": "a portrait photo of {subject}, age {decade}", "licence": "research only",
    "base": {"name": "lida-tiny"}, "data": {"count": 12}, "training": {"resolution": 96, "learning_rate": 1e-3, "seed": 7},
}  # fmt: skip


def adapter(rank: int = 2, about: dict = ABOUT) -> Adapter:
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    return Adapter({path: LowRank(torch.randn(rank, 6), torch.randn(5, rank), 4.0)}, about)


def header_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_the_header_says_what_the_adapter_is(tmp_path, format, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(86400 * 365))
    path = save_adapter(tmp_path / "a.safetensors", adapter(), format)
    header = header_of(path)
    expected = {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.date": "1971-01-01",
        "modelspec.title": "Age-LoRA", "modelspec.resolution": "96x96", "modelspec.license": "research only",
        "modelspec.trigger_phrase": ABOUT["template"], "ss_base_model_version": "sd_v1", "ss_network_dim": "2",
        "ss_network_alpha": "2.0", "ss_network_module": "networks.lora", "ss_sd_model_name": "lida-tiny",
        "ss_num_train_images": "12", "ss_resolution": "(96, 96)", "ss_learning_rate": "0.001", "ss_seed": "7",
    }  # fmt: skip
    assert expected.items() <= header.items() and "modelspec.merged_from" not in header
    with safe_open(path, "pt") as file:
        data = b"".join(file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys()))
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert load_adapter(path).metadata == ABOUT


def test_a_combination_names_its_parts_and_no_single_rank(tmp_path):
    other = Adapter({"conv_in": LowRank(torch.randn(3, 6), torch.randn(5, 3), 3.0)}, {"role": "identity", "base": ABOUT["base"]})
    header = header_of(save_adapter(tmp_path / "a.safetensors", combine([(adapter(), 1.0), (other, 0.2)])))
    assert header["modelspec.merged_from"] == "Age-LoRA, Identity-LoRA"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("Dynamic", "3.0")


@pytest.mark.parametrize("epoch", ["", "tomorrow", "9" * 30, "\u00b2"])
def test_a_variable_that_is_no_date_counts_for_nothing(monkeypatch, epoch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    now = today()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert now <= today() < "9"
