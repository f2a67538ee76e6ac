"""infer.py on photographs as people have them: large, turned, in colours of their own, in folders, and again."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT, box_mask, noise_image
from PIL import Image, ImageCms
from test_scripts import script  # noqa: F401

from lida.photos.captions import Captioning
from lida.photos.marking import read_settings


def exif_of(**tags) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[{"orientation": 0x0112, "make": 0x010F}[name]] = value
    return exif


@pytest.fixture
def run(script, folder):  # noqa: F811
    """infer.py on the small random model at few steps; returns what it printed."""

    def run(*arguments, steps: int = 6) -> str:
        options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", steps)
        code, out, err = script("infer.py", *arguments, *options)
        assert code == 0, err
        run.err = err
        return out

    run.folder = script.folder
    return run


def test_a_large_photograph_comes_back_whole_but_for_the_face(run, tmp_path):
    """4000 x 3000, turned by EXIF, in a profile of its own, with a feathered mask about 400 pixels wide."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "BGR ".encode("utf-16-be"))
    photo = noise_image(3000, 4000)
    photo.transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "a.jpg", quality=90, exif=exif_of(orientation=6, make="a camera"), icc_profile=swapped
    )
    mask = np.zeros((4000, 3000))
    y, x = np.mgrid[:4000, :3000]
    mask = (255 * np.clip(1.5 - np.hypot((x - 1500) / 200, (y - 900) / 260), 0, 1)).astype(np.uint8)
    mask[mask < 8] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run(tmp_path / "a.jpg", "--mask", tmp_path / "mask.png", "--ages", 60, "--strength", 0.8)
    with Image.open(tmp_path / "a.jpg") as file:
        before = np.asarray(file.transpose(Image.Transpose.ROTATE_270).convert("RGB"))
    after = Image.open(run.folder / "outputs" / "a-age60.png")
    assert after.size == (3000, 4000) and after.info["icc_profile"] == swapped
    assert after.getexif()[0x010F] == "a camera" and after.getexif().get(0x0112, 1) == 1
    changed = (np.asarray(after) != before).any(-1)
    assert not changed[mask == 0].any() and changed[mask > 128].mean() > 0.9
    report = read_settings(run.folder / "outputs" / "a-age60.png")["report"]
    assert report["largest_change_outside"] == 0 and report["seam_gradient"] < 3 * report["seam_gradient_before"] + 3


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_the_format_may_stay(run, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise_image(160, 120).save(path, exif=exif_of(make="a camera"), **({"quality": 80} if suffix != "png" else {}))
    run(path, "--mask", "40,30,100,90", "--ages", 60, "--strength", 0.8, "--format", "same")
    result = Image.open(run.folder / "outputs" / f"a-age60.{suffix}")
    assert result.format == Image.open(path).format and result.getexif()[0x010F] == "a camera"
    settings = read_settings(run.folder / "outputs" / f"a-age60.{suffix}")
    assert settings["report"]["largest_change_outside"] == 0 and "files" in settings
    assert b"compositeWithTrainedAlgorithmicMedia" in (run.folder / "outputs" / f"a-age60.{suffix}").read_bytes()
    difference = np.abs(np.asarray(result.convert("RGB")).astype(int) - np.asarray(Image.open(path).convert("RGB")))
    outside = np.asarray(box_mask(160, 120, (32, 22, 108, 98))) == 0
    assert difference[outside].max() <= (0 if suffix == "png" else 20)
    if suffix == "jpg":
        assert result.quantization == Image.open(path).quantization


def test_a_picture_says_what_it_is_and_is_made_again_to_the_byte(run, script, tmp_path):  # noqa: F811
    noise_image(90, 120).save(tmp_path / "anna.png")
    box_mask(90, 120, (20, 30, 70, 90)).save(tmp_path / "mask.png")
    options = (
        "--mask",
        tmp_path / "mask.png",
        "--ages",
        20,
        64,
        "--strength",
        0.9,
        "--seed",
        7,
        "--eta",
        0.5,
        "--method",
        "inpaint",
    )
    run(tmp_path / "anna.png", *options, "--output_dir", "one")
    first = {path.name: path.read_bytes() for path in (run.folder / "one").iterdir()}
    assert {name for name in first if name.endswith(".png")} == {"anna-age20.png", "anna-age64.png", "anna-sheet.png"}
    picture = Image.open(run.folder / "one" / "anna-age64.png")
    assert "compositeWithTrainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
    told = json.loads(picture.info["lida"])
    assert told == json.loads(first["anna-age64.json"]) and told["seed"] == 7 and told["strength"] == 0.9
    assert told["whole_prompt"] == {"a portrait photo of a person, age 60s": 0.6, "a portrait photo of a person, age 70s": 0.4}
    code, _, err = script("infer.py", "--reproduce", "one/anna-age20.png", "--output_dir", "two")
    assert code == 0, err
    assert {path.name: path.read_bytes() for path in (run.folder / "two").iterdir()} == first
    noise_image(90, 120, 5).save(tmp_path / "anna.png")
    code, _, err = script("infer.py", "--reproduce", "one/anna-age20.png", "--output_dir", "three")
    assert code == 2 and "anna.png is not the file that it was made from" in err
    code, _, err = script("infer.py", "--reproduce", tmp_path / "mask.png")
    assert code == 2 and "has no settings of lida's" in err


def test_painted_pictures_are_marked_as_painted(run):
    run("--prompt", "a boy")
    picture = Image.open(run.folder / "outputs" / "a-boy.png")
    assert "digitalsourcetype/trainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]


def test_a_folder_of_photographs(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for i, name in enumerate(("a.jpg", "b.png")):
        noise_image(90, 120, i).save(tmp_path / "photos" / name)
        box_mask(90, 120, (20, 30, 70, 90)).save(tmp_path / "masks" / f"{name[0]}.png")
    (tmp_path / "photos" / "notes.txt").write_text("none")
    out = run(
        tmp_path / "photos", "--mask", tmp_path / "masks", "--ages", 20, 60, "--current_age", 30, "--batch_size", 1, "--gif"
    )
    names = [f"{n}-{end}" for n in "ab" for end in ("age20.png", "age60.png", "sheet.png")] + ["a.gif", "b.gif"]
    assert sorted(out.split()) == sorted(f"outputs/{name}" for name in names)
    film = Image.open(run.folder / "outputs" / "a.gif")
    assert film.n_frames >= 6 and film.size == (90, 120)


def test_ages_at_once_and_one_by_one_are_the_same_pictures(run, tmp_path):
    noise_image(90, 120).save(tmp_path / "a.png")
    pixels = {}
    for size in (1, 3):
        run(
            tmp_path / "a.png",
            "--mask",
            "20,30,70,90",
            "--ages",
            20,
            40,
            60,
            "--current_age",
            30,
            "--batch_size",
            size,
            "--eta",
            0.5,
        )
        pixels[size] = [np.asarray(Image.open(run.folder / "outputs" / f"a-age{age}.png")).astype(int) for age in (20, 40, 60)]
    assert all(np.abs(a - b).max() <= 2 for a, b in zip(*pixels.values())) and (pixels[1][0] != pixels[1][2]).any()


def test_the_strength_follows_the_years(run, tmp_path):
    """From the age given or read to the age asked for; --strength overrides."""
    noise_image(90, 120).save(tmp_path / "a.png")
    strengths = {}
    for current in (20, 60):
        run(tmp_path / "a.png", "--mask", "20,30,70,90", "--ages", 20, 35, 60, "--current_age", current, steps=20)
        strengths[current] = [read_settings(run.folder / "outputs" / f"a-age{age}.png")["strength"] for age in (20, 35, 60)]
    assert strengths[20][0] == strengths[60][2] == 0.3 and strengths[20][0] < strengths[20][1] < strengths[20][2]
    assert strengths[60][0] == strengths[20][2] > strengths[60][1]
    run(tmp_path / "a.png", "--mask", "20,30,70,90", "--ages", 60)
    read = read_settings(run.folder / "outputs" / "a-age60.png")
    assert 0 < read["current_age"] < 80 and read["arguments"]["current_age"] is None
    run(tmp_path / "a.png", "--mask", "20,30,70,90", "--ages", 60, "--strength", 0.7)
    assert read_settings(run.folder / "outputs" / "a-age60.png")["strength"] == 0.7


def test_captions_between_decades_are_mixed():
    template = "a portrait photo of {subject}, age {decade}"
    mixed = Captioning(template).prompt("sks", 34)
    assert mixed == pytest.approx({"a portrait photo of sks, age 30s": 0.6, "a portrait photo of sks, age 40s": 0.4})
    assert Captioning(template).prompt("sks", 40) == "a portrait photo of sks, age 40s"
    assert Captioning(template, (2, 79)).prompt("sks", 79) == "a portrait photo of sks, age 70s"  # no 80s in training
    assert Captioning("{subject} of {age}").prompt("sks", 34) == "sks of 34"
    assert Captioning(template).prompt("sks", 97) == "a portrait photo of sks, age 90s"


def test_a_notice_where_a_child_is_read_or_asked_for(run, tmp_path):
    noise_image(90, 120).save(tmp_path / "a.png")
    for ages, current, notices in (((10,), 40, 1), ((30,), 12, 1), ((30,), 40, 0)):
        run(tmp_path / "a.png", "--mask", "20,30,70,90", "--ages", *ages, "--current_age", current)
        assert run.err.count("notice: a face under 18") == notices


@pytest.mark.parametrize("box", [(45, 60, 46, 61), (0, 0, 30, 30), (0, 0, 90, 120), (80, 100, 90, 120)])
def test_masks_of_one_pixel_at_the_border_and_full(run, tmp_path, box):
    noise_image(90, 120).save(tmp_path / "a.png")
    run(tmp_path / "a.png", "--mask", ",".join(map(str, box)), "--ages", 60, "--strength", 0.9)
    before, after = (np.asarray(Image.open(p)) for p in (tmp_path / "a.png", run.folder / "outputs" / "a-age60.png"))
    inside = np.asarray(box_mask(90, 120, box)) > 0
    assert not (before != after)[~inside].any() and (before != after)[inside].any()


def test_bad_calls_end_in_one_line(script, folder, tmp_path):  # noqa: F811
    noise_image(90, 120).save(tmp_path / "a.png")
    (tmp_path / "twice").mkdir()
    (tmp_path / "empty").mkdir()
    noise_image(90, 120).save(tmp_path / "twice" / "a.jpg")
    noise_image(90, 120).save(tmp_path / "b.tif")
    (tmp_path / "labels").mkdir()
    photo, whole = tmp_path / "a.png", ("--mask", "0,0,90,120")
    for arguments, message in (
        ((tmp_path / "empty", *whole), "empty: has no photographs in it"),
        ((photo, tmp_path / "twice", *whole), "a: is the name of two photographs"),
        ((photo, "--mask", tmp_path / "empty"), "empty/a.png: no such file"),
        ((photo, *whole, "--zones", "nose=1"), "--zones 'nose=1': is not one of eyes, mouth, hairline"),
        ((photo, *whole, "--zones", "eyes=x"), "--zones 'eyes=x'"),
        ((photo, *whole, "--guidance_interval", 5, 1), "the first number must be the lower"),
        ((photo, *whole, "--scheduler", "euler", "--eta", 0.5), "--scheduler euler: draws no noise"),
        ((photo, *whole, "--scheduler", "euler", "--method", "inversion"), "--scheduler euler: draws no noise"),
        ((photo, *whole, "--guidance_rescale", 2), "--guidance_rescale must lie between 0 and 1"),
        ((photo, *whole, "--age_estimator", tmp_path / "labels"), "labels: no age estimator"),
        (
            (tmp_path / "b.tif", *whole, "--ages", 60, "--strength", 0.5, "--format", "same"),
            "b.tif is TIFF, and JPEG, WebP and PNG",
        ),
    ):
        code, out, err = script("infer.py", *arguments, "--pretrained_model_name_or_path", folder, "--num_inference_steps", 4)
        assert code == 2 and message in err and err.strip().splitlines()[-1].startswith("error: "), (arguments, err)


def test_the_demo_finds_its_face_by_itself(script):  # noqa: F811
    """The bare call, on lida-tiny: a photograph and an age."""
    code, out, err = script("infer.py", ROOT / "weights" / "demo" / "person-a.png", "--ages", 60, "--num_inference_steps", 10)
    assert code == 0 and "person-a-age60.png" in out, err
    assert sys.argv[0] == "infer.py"
