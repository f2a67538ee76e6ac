"""Caches: cached values equal computed ones, and nothing is computed that is not drawn."""

from argparse import Namespace

import pytest
import torch
from conftest import noise_image
from safetensors.torch import load_file, save

from lida.data.folder import read_examples
from lida.training.batches import BatchSampler, MicroBatches, Samples
from lida.training.caches import LatentCache, TextCache
from lida.training.processes import Processes

FLAGS = {
    "seed": 3, "random_flip": True, "center_crop": True, "caption_dropout": 0.0, "noise_offset": 0.0, "mask_loss": False,
    "validation_prompt": "a man",
}  # fmt: skip


WRONG = [{"posterior": x} for x in (torch.ones(2, 4, 8, 8).half(), torch.ones(2, 4, 8, 4), torch.full((2, 4, 8, 8), torch.nan))]


def samples_of(dataset, sd, cached=False, folder=None, size=64) -> Samples:
    args = Namespace(**FLAGS, resolution=size, cache_latents=cached, cache_dir=folder)
    return Samples(read_examples(dataset), sd, args)


def files(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


@torch.no_grad()
def test_cached_latents_are_those_of_encoding_at_each_step(sd, dataset, tmp_path):
    live, cached = samples_of(dataset, sd), samples_of(dataset, sd, True)
    stored = samples_of(dataset, sd, True, tmp_path / "cache")
    for key in [(i, 3, i) for i in range(6)]:
        x, y, z = live[key], cached[key], stored[key]
        posterior = torch.cat(sd.vae.posterior(x["pixel_values"][None]))
        assert torch.equal(y["posterior"], posterior) and torch.equal(y["posterior"], z["posterior"])
        assert torch.equal(x["posterior_noise"], y["posterior_noise"]) and torch.equal(x["noise"], z["noise"])
        assert torch.equal(cached[key]["posterior"], posterior) and torch.equal(stored[key]["posterior"], posterior)


def test_only_what_is_drawn_is_encoded_and_once(sd, dataset, monkeypatch):
    encoded, encode = [], LatentCache.encode
    monkeypatch.setattr(LatentCache, "encode", lambda self, *key: encoded.append(key) or encode(self, *key))
    samples = samples_of(dataset, sd, True)
    own = MicroBatches(samples, BatchSampler(6, 2, seed=0), 2)
    assert not encoded
    next(own.load(0, 5))
    assert len(encoded) == 2
    drawn = [key for keys in own.keys(0, 60) for key in keys]
    assert sum(len(batch["caption"]) for batch in own.load(0, 60)) == 120
    assert len(encoded) == len(set(encoded)) == 12 and {index for index, _ in encoded} == {key[0] for key in drawn}


@torch.no_grad()
def test_latents_depend_on_no_other_picture(sd, dataset):
    """To the bit: a resumed run draws pictures first in other batches, and so does each of two processes."""
    whole, half = samples_of(dataset, sd, True), samples_of(dataset, sd, True)
    sampler = BatchSampler(6, 4, seed=0)
    (batch,) = MicroBatches(whole, sampler, 4).load(7, 8)
    parts = [next(MicroBatches(half, sampler, 2, Processes(rank, 2)).load(7, 8)) for rank in (0, 1)]
    assert torch.equal(batch["posterior"], torch.cat([part["posterior"] for part in parts]))


def test_a_folder_of_latents_is_shared_by_runs_and_named_by_content(sd, dataset, tmp_path):
    folder = tmp_path / "cache"

    def fill(**more) -> None:
        latents = samples_of(dataset, sd, True, folder, **more).latents
        for index in range(6):
            latents(index, False), latents(index, True)

    fill()
    before = files(folder)
    fill()
    assert len(before) == 12 and files(folder) == before  # six pictures, and their mirror images
    noise_image(70, 80, 99).save(dataset / "0.png")
    fill()
    fill(size=72)
    assert len(files(folder)) == 12 + 2 + 12


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None, *map(save, WRONG)])
def test_a_damaged_file_of_latents_is_written_again(sd, dataset, tmp_path, damage):
    latents = samples_of(dataset, sd, True, tmp_path).latents
    posterior = latents(0, False)
    (path,) = (path for path in tmp_path.iterdir() if path.suffix == ".safetensors")
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert torch.equal(samples_of(dataset, sd, True, tmp_path).latents(0, False), posterior)
    assert torch.equal(load_file(path)["posterior"], posterior)


@torch.no_grad()
def test_texts_are_those_of_the_encoder_each_alone(sd):
    texts = TextCache(sd.text_encoder, ["a man", "", "a woman", "a man"])
    assert texts.hidden.keys() == {"a man", "", "a woman"}
    assert torch.equal(texts(["a woman"]), sd.text_encoder(["a woman"]))
    assert (texts(["a woman", "", "a woman"]) - sd.text_encoder(["a woman", "", "a woman"])).abs().max() <= 1e-5


def test_captions_that_are_too_long_are_reported_once(sd):
    long = [f"{'a very ' * 40}old man {number}" for number in range(3)]
    with pytest.warns(UserWarning, match="these words are lost: .*old man 0; the same holds for 2 other captions") as caught:
        TextCache(sd.text_encoder, [*long, "a man"])
    assert len(caught) == 1
