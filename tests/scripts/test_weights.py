"""The weights that ship: lida-tiny opens in diffusers too, its adapters fit, and the demo is what the README shows."""

import json
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT, draws, relative
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import lida
from lida.data.folder import read_examples
from lida.doors.pictures import to_tensor
from lida.photos.squares import cut, square_about

WEIGHTS = ROOT / "weights"
PERSONS = ("person-a", "person-b", "person-c", "person-d")


@pytest.fixture(scope="module")
def tiny() -> lida.StableDiffusion:
    return lida.StableDiffusion.load(WEIGHTS / "lida-tiny")


def test_lida_tiny_and_its_age_adapter_paint_the_same_in_diffusers(tiny):
    prompt = "a portrait photo of a man, age 70s"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(WEIGHTS / "lida-tiny", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(WEIGHTS, weight_name="age.safetensors")
    options = {"num_inference_steps": 10, "guidance_scale": lida.Sampling().guidance_scale, "output_type": "latent"}
    theirs = pipe(prompt, generator=draws(5), **options).images
    tiny.load_adapter("age", WEIGHTS / "age.safetensors")
    tiny.set_adapters(["age"], [1.0])
    ours = lida.generate(tiny, prompt, lida.Sampling(10), generator=draws(5), output_type="latent")
    tiny.set_adapters([], [])
    assert relative(ours, theirs) <= 1e-4  # ten steps of rounding


def test_the_latents_deviate_by_one_as_the_schedule_assumes(tiny):
    """With another scaling_factor the noise would be too strong, or too weak, at every step."""
    photos = [to_tensor(Image.open(WEIGHTS / "demo" / f"{person}.png").convert("RGB")) for person in PERSONS]
    assert 0.8 < tiny.vae.encode(torch.cat(photos), sample=False).std() < 1.25


def test_the_adapters_record_how_they_were_made():
    age, *persons = (lida.load_adapter(WEIGHTS / f"{name}.safetensors") for name in ("age", *PERSONS))
    assert age.metadata["template"] == "a portrait photo of {subject}, age {decade}" and age.metadata["ages"] == [1, 95]
    assert age.metadata["role"] == "age" and {person.metadata["role"] for person in persons} == {"identity"}
    for adapter in (age, *persons):
        assert adapter.metadata["training"]["seed"] == 0 and adapter.metadata["training"]["final_loss"] > 0


def test_all_that_ships_was_made_with_the_base_that_ships():
    done = subprocess.run([sys.executable, WEIGHTS / "recipe" / "check.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_inversion_gives_the_photograph_back_where_nothing_else_is_asked_for(tiny):
    """Towards its own description the invented person's latents come back; towards another age they do not."""
    photo, mask = (Image.open(WEIGHTS / "demo" / f"person-a{end}.png") for end in ("", "-mask"))
    photo, mask, described = photo.convert("RGB"), mask.convert("L"), "a portrait photo of a man"
    edit = lida.Edit("ddim_inversion", 0.5, source_prompt=described, context=1.0)
    same, other = (
        lida.age_face(tiny, photo, mask, prompt, edit, lida.Sampling(50, g), output_type="latent")
        for prompt, g in ((described, 1.0), ("a portrait photo of an old man", 3.0))
    )
    plain = tiny.vae.encode(to_tensor(cut(photo, square_about(mask, 1.0), tiny.resolution)), sample=False)
    assert (same - plain).norm() < 0.05 * plain.norm() < 0.7 * (other - plain).norm()


def test_the_tokenizer_is_in_clips_format_and_loses_nothing(tiny):
    tokenizer = tiny.text_encoder.tokenizer
    assert {path.name for path in (WEIGHTS / "lida-tiny" / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt"}
    text = "naïve ωmega 😀 42"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids).split() == ["naïve", "ωmega", "😀", "4", "2"]


def test_all_weights_together_stay_small():
    tracked = list(WEIGHTS.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in tracked) <= 32e6


@pytest.mark.parametrize("person", PERSONS)
def test_the_albums_are_datasets(person):
    assert 20 <= len(read_examples(WEIGHTS / person)) <= 30


def test_the_age_estimator_opens_with_transformers_own_classes():
    """And gives, for squares of its size, what the recipe reads with it."""
    model = AutoModelForImageClassification.from_pretrained(WEIGHTS / "age-estimator", dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(WEIGHTS / "age-estimator")
    photo = Image.open(WEIGHTS / "demo" / "person-a.png").convert("RGB").resize((96, 96))
    pixel_values = processor(photo, return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixel_values, to_tensor(photo), atol=1e-6)
    with torch.no_grad():
        probabilities = model(pixel_values).logits.softmax(-1)
    age = float(probabilities @ torch.arange(101.0))
    assert 20 < age < 70 and model.config.id2label[34] == "34"
    assert sum(path.stat().st_size for path in (WEIGHTS / "age-estimator").iterdir()) <= 4e6


def test_the_demo_makes_a_sheet(tmp_path):
    """As a user runs it, in a process of its own and another folder."""
    command = [sys.executable, ROOT / "infer.py", "--num_inference_steps", "20", "--output_dir", tmp_path / "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    names = [f"person-b-age{age}.png" for age in (10, 30, 50, 70)] + ["person-b-sheet.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    pictures = [np.asarray(Image.open(tmp_path / "out" / name)).astype(int) for name in names[:4]]
    # More than rounding; how far apart is the card's matter
    assert all(np.abs(a - b).max() > 2 for i, a in enumerate(pictures) for b in pictures[:i])
    outside = np.asarray(Image.open(WEIGHTS / "demo" / "person-b-mask.png").convert("L")) == 0
    photo = np.asarray(Image.open(WEIGHTS / "demo" / "person-b.png").convert("RGB"))
    assert all(np.array_equal(picture[outside], photo[outside]) for picture in pictures)
    settings = json.loads((tmp_path / "out" / "person-b-age10.json").read_text())
    assert settings["arguments"]["num_inference_steps"] == 20
