"""The scripts as users run them, on the small random model; and every kind of bad input."""

import json
import runpy
import shutil
import sys
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import ROOT, box_mask, noise_image, script  # noqa: F401
from PIL import Image

import lida
from lida.data.folder import data_fingerprint, read_examples


WHOLE = "0,0,90,120"  # all of the photograph, as a mask


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "anna.png"
    noise_image(90, 120).save(path)
    return path


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.png"
    box_mask(90, 120, (20, 30, 70, 90)).save(path)
    return path


def train(script, folder, dataset, output, *more) -> dict:
    arguments = ("--pretrained_model_name_or_path", folder, "--train_data_dir", dataset, "--output_dir", output)
    code, _, err = script("train_lora.py", *arguments, "--train_batch_size", 2, "--rank", 4, *more)
    assert code == 0, err
    return json.loads((output / "pytorch_lora_weights.json").read_text())


def test_training_then_aging(script, folder, dataset, photo, mask, tmp_path):
    (dataset / "captioning.json").write_text('{"template": "{subject} at {age}", "ages": [10, 50]}')
    recorded = train(script, folder, dataset, tmp_path / "age", "--max_train_steps", 3, "--gradient_accumulation_steps", 2)
    assert recorded["template"] == "{subject} at {age}" and recorded["training"]["rank"] == 4
    assert recorded["training"]["resolution"] == 64 and recorded["training"]["examples"] == 6
    files = ["loss.png", "metrics.jsonl", "pytorch_lora_weights.json", "pytorch_lora_weights.safetensors"]
    assert sorted(p.name for p in (tmp_path / "age").iterdir()) == files
    options = ("--pretrained_model_name_or_path", folder, "--adapter", f"{tmp_path / 'age'}=0.5", "--num_inference_steps", 10)
    code, out, err = script(
        "infer.py", photo, "--mask", mask, "--ages", 10, 70, "--subject", "man", "--output_dir", "out", *options
    )
    assert code == 0, err
    assert "warning: age 70 is beyond the ages 10 to 50" in err
    pictures = ["anna-age10.png", "anna-age70.png", "anna-sheet.png"]
    assert sorted(p.name for p in (script.folder / "out").glob("*.png")) == pictures
    before, after = np.asarray(Image.open(photo)), np.asarray(Image.open(script.folder / "out" / "anna-age70.png"))
    outside = np.asarray(Image.open(mask)) == 0
    assert np.array_equal(before[outside], after[outside]) and not np.array_equal(before, after)
    settings = json.loads(Image.open(script.folder / "out" / "anna-age10.png").info["lida"])
    assert settings["whole_prompt"] == "a man at 10" and settings["seed"] == 4 and 0.3 <= settings["strength"] <= 0.6


def test_an_adapter_tells_where_it_comes_from_and_no_place(script, folder, dataset, photo, tmp_path):
    """Base, role, data and settings in its header; paths only in the JSON beside it. Another base warns."""
    train(script, folder, dataset, tmp_path / "a", "--max_train_steps", 1, "--role", "identity", "--consent", "hers, 2026")
    adapter = lida.load_adapter(tmp_path / "a")
    known, sd = adapter.metadata, lida.StableDiffusion.load(folder)
    assert known["base"] == sd.base and known["base"]["unet"] == sd.unet.fingerprint and len(sd.unet.fingerprint) == 64
    assert known["role"] == "identity" and known["consent"] == "hers, 2026" and known["rank"] == known["alpha"] == 4
    assert known["training"]["learning_rate"] == 1e-4 and "licence" not in known
    for place in (str(tmp_path), str(folder), str(dataset)):
        assert place not in json.dumps(known)
    (tmp_path / "other").mkdir()
    lines = (dataset / "metadata.jsonl").read_text().splitlines()[::-1]
    for number, line in enumerate(lines):
        name = json.loads(line)["file_name"]
        (tmp_path / "other" / f"renamed{number}.png").write_bytes((dataset / name).read_bytes())
        lines[number] = line.replace(name, f"renamed{number}.png")
    (tmp_path / "other" / "metadata.jsonl").write_text("\n".join(lines))
    assert data_fingerprint(read_examples(tmp_path / "other")) == known["data"] and known["data"]["count"] == 6
    assert data_fingerprint(read_examples(dataset)[1:]) != known["data"]
    stranger = lida.Adapter(adapter.layers, {**known, "base": {"name": "another", "unet": "0" * 64}})
    lida.save_adapter(tmp_path / "b", stranger)
    options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 10, "--ages", 10, "--mask", WHOLE)
    for name, warnings in (("a", 0), ("b", 1)):
        code, _, err = script("infer.py", photo, "--adapter", tmp_path / name, *options)
        lines = [line for line in err.splitlines() if line.startswith("warning: adapter ")]
        assert code == 0 and len(lines) == warnings and all("trained on another base (another)" in line for line in lines)


def test_weights_by_block_and_timestep_from_the_command_line(script, folder, dataset, photo, tmp_path):
    train(script, folder, dataset, tmp_path / "a", "--max_train_steps", 2, "--learning_rate", 0.1)
    options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 10, "--ages", 10, "--strength", 0.8)
    options += ("--mask", WHOLE)
    pictures = {}
    for weight in ("1", "1@999-0", "1@500-0", "1@500-0,up=0.5", "0"):
        code, _, err = script("infer.py", photo, "--adapter", f"{tmp_path / 'a'}={weight}", *options)
        assert code == 0, err
        pictures[weight] = np.asarray(Image.open(script.folder / "outputs" / "anna-age10.png"), dtype=int)
    assert np.array_equal(pictures["1"], pictures.pop("1@999-0"))
    assert all(np.abs(a - b).max() > 2 for a, b in combinations(pictures.values(), 2))  # more than rounding
    code, _, err = script("infer.py", photo, "--adapter", f"{tmp_path / 'a'}=1@0-500", *options)
    assert code == 2 and "not a stretch of timesteps" in err and len(err.strip().splitlines()) == 1


def test_a_prompt_over_a_photo_makes_one_picture(script, folder, photo):
    options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 10, "--mask", WHOLE)
    code, out, err = script("infer.py", photo, "--prompt", "a boy", *options)
    assert code == 0, err
    assert out.split() == ["outputs/anna-prompt.png", "outputs/anna-sheet.png"]


def test_painting_from_text(script, folder):
    options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 2, "--num_images_per_prompt", 2)
    code, out, err = script("infer.py", "--prompt", "An old man!", *options)
    assert code == 0, err
    assert out.split() == ["outputs/an-old-man-0.png", "outputs/an-old-man-1.png"]
    assert all((script.folder / path).is_file() for path in out.split())


def test_without_a_mask_the_face_is_found(script, folder, tmp_path):
    """And told apart from a second one; what is repainted is about the mask, by its growth and feather."""
    portrait, page = Image.open(ROOT / "weights" / "demo" / "person-a.png"), Image.new("RGB", (400, 300), "grey")
    page.paste(portrait.resize((200, 200)), (10, 20))
    page.save(tmp_path / "one.png")
    page.paste(portrait.resize((120, 120)), (260, 150))
    page.save(tmp_path / "two.png")
    options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 4, "--ages", 30, "--detail", 0)
    changed = {}
    for name, more in (
        ("one", ()),
        ("two", ("--face", 2)),
        ("one", ("--mask_growth", 0.2)),
        ("one", ("--mask", "10,20,210,220")),
    ):
        code, _, err = script("infer.py", tmp_path / f"{name}.png", *more, *options)
        assert code == 0, err
        before, after = (np.asarray(Image.open(p)).astype(int) for p in (tmp_path / f"{name}.png", f"outputs/{name}-age30.png"))
        rows, columns = np.nonzero((before != after).any(-1))
        changed[" ".join(map(str, (name, *more)))] = (columns.min(), rows.min(), columns.max(), rows.max())
    assert changed["one --mask 10,20,210,220"] == (10, 20, 209, 219)
    box, grown, second = (changed[key] for key in ("one", "one --mask_growth 0.2", "two --face 2"))
    assert 10 < box[0] < 80 < 140 < box[2] < 210 and grown[0] < box[0] and grown[3] > box[3]
    assert second[0] >= 255 and second[1] >= 145
    for more, message in (((), "2 faces are found"), (("--face", 3), "--face 3: the photograph has 2")):
        code, _, err = script("infer.py", tmp_path / "two.png", *more, *options)
        assert code == 2 and message in err


BAD_AGING = [
    (["none.jpg"], "none.jpg: no such file"),
    (["{dataset}/metadata.jsonl"], "metadata.jsonl: not an image"),
    (["{photo}", "--mask", "{dataset}/0.png"], "the mask is 70x80, the photograph 90x120"),
    (["{photo}", "--mask", "{black}"], "the mask is black"),
    (["{photo}", "--mask", "auto"], "no face is found"),
    (["{photo}", "--mask", "0,0,91,120"], "is no box x0,y0,x1,y1 within the photograph, which is 90x120"),
    (["{photo}", "--mask", "0,0,9,9", "--face", "1"], "--face 1: is for --mask auto"),
    (["{photo}", "--mask_growth", "-1"], "--mask_growth -1.0 must lie above -0.5"),
    (["--prompt", "a boy", "--face", "1"], "--face 1: needs the photograph"),
    (["{photo}", "--ages", "10", "100"], "100 is not between 0 and 99"),
    (["{photo}", "--ages", "-1"], "-1 is not between 0 and 99"),
    (["{photo}", "--eta", "2"], "--eta must lie between 0 and 1, not 2.0"),
    (["{photo}", "--ages", "ten"], "invalid int value: 'ten'"),
    (["{photo}", "--strength", "1.2"], "--strength must be above 0 and up to 1, not 1.2"),
    (["{photo}", "--strength", "0.01"], "--strength must be above 0 and up to 1, not 0.01"),
    (["{photo}", "--num_inference_steps", "0"], "num_inference_steps must be between 1 and 999, not 0"),
    (["{photo}", "--height", "64"], "a photograph keeps its own size"),
    (["--prompt", "a boy", "--width", "60"], "--width must be a multiple of 8, not 60"),
    (["{photo}", "--num_images_per_prompt", "0"], "--num_images_per_prompt must be at least 1, not 0"),
    (["{photo}", "--seed", "99999999999999999999"], "--seed must lie between"),
    (["{photo}", "--guidance_scale", "nan"], "--guidance_scale must be a number, not nan"),
    (["{photo}", "--strength", "inf"], "--strength must be a number, not inf"),
    (["{photo}", "--adapter", "{wrong}=nan"], "the weight nan is not a number"),
    (["{photo}", "--mask", ""], ": no such file"),
    ([""], ": no such file"),
    (["{photo}", "--output_dir", "{photo}"], "--output_dir"),
    (["{photo}", "--adapter", "none.safetensors=1"], "none.safetensors: no such adapter"),
    (["{photo}", "--adapter", "{wrong}=x"], "'x' is not a number"),
    (["{photo}", "--adapter", "{wrong}=1"], "it was trained on another model"),
    (["{photo}", "--adapter", "{photo}=1"], "not a readable safetensors file"),
    (["{photo}", "--pretrained_model_name_or_path", "none"], "none: no such folder or file"),
    (["{photo}", "--pretrained_model_name_or_path", "{dataset}"], "unet/config.json: no such file"),
    (["{photo}", "--device", "abacus"], "device abacus: "),
    (["--mask", "{photo}"], "needs the photograph"),
    (["{photo}", "--colour", "red"], "unrecognized arguments"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_AGING, ids=[" ".join(a) for a, _ in BAD_AGING])
def test_bad_input_to_infer_ends_in_one_line(script, folder, dataset, photo, tmp_path, arguments, message):
    places = {"photo": photo, "dataset": dataset, "black": tmp_path / "black.png", "wrong": tmp_path / "wrong.safetensors"}
    Image.new("L", (90, 120)).save(places["black"])
    other = lida.StableDiffusion.load(folder)
    layer = lida.Adapter.of(lida.inject_lora(other.unet, 2)).layers
    lida.save_adapter(places["wrong"], lida.Adapter({"mid_block.attn9.to_q": next(iter(layer.values()))}))
    arguments = [argument.format(**places) for argument in arguments]
    if "--pretrained_model_name_or_path" not in arguments:
        arguments += ["--pretrained_model_name_or_path", folder]
    if arguments[0] == str(photo) and "--mask" not in arguments:
        arguments += ["--mask", WHOLE]
    code, out, err = script("infer.py", *arguments)
    assert code == 2 and not out and message in err.strip().splitlines()[-1]
    assert len(err.strip().splitlines()) == 1 or err.startswith("usage:")  # argparse's own, of what it cannot parse
    assert not list(script.folder.iterdir())


def test_bad_input_to_aaf_ends_in_one_line(script, dataset):
    for arguments, message in (
        ([dataset], "no folder 'original images'"),
        ([dataset, "--template", "x"], "must name {decade} or {age}"),
    ):
        code, out, err = script("lida.data.aaf", *arguments, "--output_dir", "out")
        assert code == 2 and not out and message in err and len(err.strip().splitlines()) == 1
        assert not list(script.folder.iterdir())
