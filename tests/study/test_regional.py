"""An adapter that acts within a mask, against the same adapter merged."""

import torch
from conftest import relative

import lida
from lida.nn.layers import CachedContext
from lida.study.regional import applied_within


def test_an_adapter_within_everything_is_an_adapter_merged(sd, adapters):
    """A mask of ones changes nothing of W + w BA; one of zeros leaves the change of the text's keys and values alone."""
    adapter = sd.load_adapter("own", adapters / "person.safetensors")
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), sd.encode(["a portrait photo of sks"] * 2)
    with torch.no_grad():
        base = sd.unet(x, t, text)
        with applied_within(sd.module, adapter.layers, 0.7, torch.ones(1, 1, 8, 8)):
            everywhere = sd.unet(x, t, CachedContext(text))
        with applied_within(sd.module, adapter.layers, 0.7, torch.zeros(1, 1, 8, 8)):
            nowhere = sd.unet(x, t, text)
        assert torch.equal(sd.unet(x, t, text), base)  # the hooks are gone
        sd.set_adapters(["own"], [0.7])
        assert relative(everywhere, sd.unet(x, t, text)) < 1e-5
        sd.set_adapters([], [])
        of_text = {path: layer for path, layer in adapter.layers.items() if path.endswith(("attn2.to_k", "attn2.to_v"))}
        sd.load_adapter("text", lida.Adapter(of_text))
        sd.set_adapters(["text"], [0.7])
        assert relative(nowhere, sd.unet(x, t, text)) < 1e-5
    assert relative(everywhere, base) > 1e-3 < relative(nowhere, base)
