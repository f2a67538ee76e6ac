"""infer.py as users run it, on photographs as people have them: large, turned, in folders, with several faces, and again."""

import json
import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, box_mask, draws, noise_image, random_adapter
from PIL import Image, ImageCms

import lida
from lida.aging import Edit, plan_ages
from lida.aging.slider import fit_slider
from lida.doors.pictures import open_photo
from lida.photos.ages import AgeEstimator
from lida.photos.marking import read_settings

WHOLE = ("--mask", "0,0,90,120")  # all of the photograph
FACE = ("--mask", "20,30,70,90", "--current_age", 30)


def exif_of(**tags) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[{"orientation": 0x0112, "make": 0x010F}[name]] = value
    return exif


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


@pytest.fixture
def infer(script, folder):
    """Run infer.py on the small random model at few steps, in a folder of its own; return what it printed, and its warnings."""

    def infer(*arguments, steps: int = 4) -> tuple[str, str]:
        options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", steps)
        code, out, err = script("infer.py", *arguments, *options)
        assert code == 0, err
        return out, err

    return infer


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "anna.png"
    noise_image(90, 120).save(path)
    return path


@pytest.fixture
def adapter(folder, tmp_path) -> Path:
    """An adapter of the small model, with a template and ages of its own."""
    random = random_adapter(lida.StableDiffusion.load(folder), 0)
    metadata = {"template": "{subject} at {age}", "ages": [10, 50]}
    return lida.save_adapter(tmp_path / "age.safetensors", lida.Adapter(random.layers, metadata))


# Photographs ------------------------------------------------------------------------------------------------------------


def test_a_large_photograph_comes_back_whole_but_for_the_face(infer, tmp_path):
    """2000 x 1500, turned by EXIF, in a profile of its own, with a feathered mask about 200 pixels wide."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "BGR ".encode("utf-16-be"))
    noise_image(1500, 2000).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "a.jpg", quality=90, exif=exif_of(orientation=6, make="a camera"), icc_profile=swapped
    )
    y, x = np.mgrid[:2000, :1500]
    mask = (255 * np.clip(1.5 - np.hypot((x - 750) / 100, (y - 450) / 130), 0, 1)).astype(np.uint8)
    mask[mask < 8] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    infer(tmp_path / "a.jpg", "--mask", tmp_path / "mask.png", "--ages", 60, "--strength", 0.8, "--detail", 0)
    with Image.open(tmp_path / "a.jpg") as file:
        before = np.asarray(file.transpose(Image.Transpose.ROTATE_270).convert("RGB"))
    after = Image.open("outputs/a-age60.png")
    assert after.size == (1500, 2000) and after.info["icc_profile"] == swapped
    assert after.getexif()[0x010F] == "a camera" and after.getexif().get(0x0112, 1) == 1
    changed = (np.asarray(after) != before).any(-1)
    assert not changed[mask == 0].any() and changed[mask > 128].mean() > 0.9
    assert read_settings("outputs/a-age60.png")["report"]["largest_change_outside"] == 0
    seams = []
    for pixels in (before, np.asarray(after)):  # the steps of grey across the mask's border
        steps = [np.abs(np.diff(pixels.mean(-1), axis=k))[np.diff(mask > 0, axis=k)] for k in (0, 1)]
        seams.append(np.concatenate(steps).mean())
    assert seams[1] < 3 * seams[0] + 3


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_the_format_of_the_photograph_may_stay(infer, tmp_path, suffix):
    path, result = tmp_path / f"a.{suffix}", f"outputs/a-age60.{suffix}"
    noise_image(160, 120).save(path, exif=exif_of(make="a camera"), **({"quality": 80} if suffix != "png" else {}))
    infer(path, "--mask", "40,30,100,90", "--ages", 60, "--strength", 0.8, "--detail", 0, "--format", "same")
    with Image.open(path) as before, Image.open(result) as after:
        assert after.format == before.format and after.getexif()[0x010F] == "a camera"
        assert suffix != "jpg" or after.quantization == before.quantization
    settings = read_settings(result)
    assert settings["report"]["largest_change_outside"] == 0 and "files" in settings
    assert b"compositeWithTrainedAlgorithmicMedia" in Path(result).read_bytes()
    outside = np.asarray(box_mask(160, 120, (32, 22, 108, 98))) == 0
    assert np.abs(pixels(result) - pixels(path))[outside].max() <= (0 if suffix == "png" else 20)


def test_a_folder_of_photographs_with_a_folder_of_masks(infer, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for i, name in enumerate(("a.jpg", "b.png")):
        noise_image(90, 120, i).save(tmp_path / "photos" / name)
        box_mask(90, 120, (20, 30, 70, 90)).save(tmp_path / "masks" / f"{name[0]}.png")
    (tmp_path / "photos" / "notes.txt").write_text("none")
    out, _ = infer(
        tmp_path / "photos", "--mask", tmp_path / "masks", "--ages", 20, 60, "--current_age", 30, "--batch_size", 1, "--gif",
        "--subject", "man", "woman",
    )  # fmt: skip
    names = [f"{n}-{end}" for n in "ab" for end in ("age20.png", "age60.png", "sheet.png")] + ["a.gif", "b.gif"]
    assert sorted(out.split()) == sorted(f"outputs/{name}" for name in names)
    assert [read_settings(f"outputs/{n}-age20.png")["whole_prompt"] for n in "ab"] == [
        f"a portrait photo of a young {subject}, age 20s" for subject in ("man", "woman")
    ]
    with Image.open("outputs/a.gif") as film:
        assert film.n_frames >= 6 and film.size == (90, 120)


@pytest.mark.parametrize("box", [(45, 60, 46, 61), (0, 0, 30, 30), (0, 0, 90, 120), (80, 100, 90, 120)])
def test_masks_of_one_pixel_at_the_border_and_full(infer, photo, box):
    infer(photo, "--mask", ",".join(map(str, box)), "--ages", 60, "--strength", 0.9, "--detail", 0)
    changed, inside = (pixels(photo) != pixels("outputs/anna-age60.png")).any(-1), np.asarray(box_mask(90, 120, box)) > 0
    assert not changed[~inside].any() and changed[inside].any()


@pytest.fixture
def faces(tmp_path):
    """Photographs of one face, at (30, 40) and 160 pixels wide, and of two, the smaller at (280, 170)."""
    with Image.open(ROOT / "weights" / "demo" / "person-a.png") as portrait:
        page = Image.new("RGB", (400, 300), "grey")
        page.paste(portrait.resize((160, 160)), (30, 40))
        page.save(tmp_path / "one.png")
        page.paste(portrait.resize((90, 90)), (280, 170))
        page.save(tmp_path / "two.png")
    return tmp_path


def box_of_change(before: Path, after: str) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((pixels(before) != pixels(after)).any(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_without_a_mask_the_face_is_found(infer, faces):
    """What is repainted is about the mask, by its growth; a mask is taken as it is."""
    changed = []
    for more in ((), ("--mask_growth", 0.2), ("--mask", "10,20,210,220")):
        infer(faces / "one.png", "--ages", 30, "--current_age", 30, "--detail", 0, "--overwrite", *more)
        changed.append(box_of_change(faces / "one.png", "outputs/one-age30.png"))
    box, grown, given = changed
    assert 10 < box[0] < 80 < 140 < box[2] < 210 and grown[0] < box[0] and grown[3] > box[3]
    assert given == (10, 20, 209, 219)


def test_of_several_faces_one_is_chosen_or_all_are_aged(infer, script, faces):
    """All faces at once equal each face alone: the result has both changes."""
    options = ("--ages", 30, "--current_age", 30, "--detail", 0)
    found = {}
    for face in (1, 2, "all"):
        infer(faces / "two.png", "--face", face, *options, "--output_dir", face)
        found[face] = pixels(f"{face}/two-age30.png")
    before = pixels(faces / "two.png")
    assert box_of_change(faces / "two.png", "1/two-age30.png")[2] < 220
    assert min(np.subtract(box_of_change(faces / "two.png", "2/two-age30.png")[:2], (255, 145))) >= 0
    changed = {face: (found[face] != before).any(-1) for face in found}
    assert not (changed[1] & changed[2]).any()
    assert np.array_equal(found["all"], np.where(changed[2][..., None], found[2], found[1]))
    told = read_settings("all/two-age30.png")
    assert told["strength"] == 2 * [Edit().towards(30, 30).strength] and told["current_age"] == [30, 30]
    for more, message in (((), "2 faces are found"), (("--face", 3), "--face 3: the photograph has 2")):
        code, _, err = script("infer.py", faces / "two.png", *more, *options)
        assert code == 2 and message in err


# Ages -------------------------------------------------------------------------------------------------------------------


def test_ages_at_once_and_one_by_one_are_the_same_pictures(infer, photo):
    found = []
    for size in (1, 3):
        infer(photo, *FACE, "--ages", 20, 40, 60, "--batch_size", size, "--overwrite")
        found.append([pixels(f"outputs/anna-age{age}.png") for age in (20, 40, 60)])
    assert all(np.abs(a - b).max() <= 2 for a, b in zip(*found)) and (found[0][0] != found[0][2]).any()


def test_the_strength_follows_the_years(infer, photo):
    """From the age given to the age asked for; --strength overrides."""
    strengths = {}
    for current in (20, 60):
        infer(photo, "--mask", "20,30,70,90", "--ages", 20, 35, 60, "--current_age", current, "--overwrite")
        strengths[current] = [read_settings(f"outputs/anna-age{age}.png")["strength"] for age in (20, 35, 60)]
    assert strengths == {current: [Edit().towards(age, current).strength for age in (20, 35, 60)] for current in (20, 60)}
    infer(photo, *FACE, "--ages", 60, "--strength", 0.7, "--overwrite")
    assert read_settings("outputs/anna-age60.png")["strength"] == 0.7


def test_an_age_that_is_not_given_is_read_and_told(infer, photo):
    _, err = infer(photo, "--mask", "20,30,70,90", "--ages", 60)
    told = read_settings("outputs/anna-age60.png")
    assert f"anna.png: looks {told['current_age']:.0f} years old; give --current_age if that is wrong" in err
    assert told["arguments"]["current_age"] is None
    assert told["strength"] == Edit().towards(60, told["current_age"]).strength


def test_the_captions_and_ages_are_the_adapters(infer, photo, adapter):
    _, err = infer(photo, *FACE, "--ages", 10, 70, "--subject", "man", "--adapter", f"{adapter}=0.5")
    assert read_settings("outputs/anna-age10.png")["whole_prompt"] == "a boy at 10"
    assert "warning: 70 years: the adapter saw 10 to 50 in training" in err and "warning: 10 years" not in err


@pytest.mark.parametrize(
    ("current", "asked", "notices"),
    [
        (40, ("--ages", 10), 1),
        (12, ("--ages", 30), 1),
        (40, ("--ages", 30), 0),
        (40, ("--years", -30), 1),
        (40, ("--years", 5), 0),
    ],
)
def test_a_notice_where_a_child_is_seen_or_asked_for(infer, photo, current, asked, notices):
    _, err = infer(photo, "--mask", "20,30,70,90", "--current_age", current, *asked)
    assert err.count("notice: a face under 18") == notices


def test_years_are_asked_for_by_the_slider_of_the_face(infer, photo, folder):
    _, err = infer(photo, "--mask", "20,30,70,90", "--current_age", 40, "--years", -10, 15, 45)
    sd, estimator = lida.StableDiffusion.load(folder), AgeEstimator(ROOT / "weights" / "age-estimator")
    image, mask = open_photo(photo), box_mask(90, 120, (20, 30, 70, 90))
    options = {"sampling": lida.Sampling(4), "batch_size": 8, "generator": draws(4)}
    slider = fit_slider(sd, image, mask, 40, [-10, 45], estimator, **options)
    for years in (-10, 15, 45):
        told, asked = read_settings(f"outputs/anna-years{years:+03d}.png"), slider.ask(40 + years)
        (target,) = plan_ages(sd, [asked], 40).targets
        assert told["strength"] == pytest.approx(target.strength, abs=0.01)  # the decades were read to rounding
    assert f"warning: {photo}, face 1: is to look 85: it looks {slider.looks[-1]:.0f}" in err


# Adapters and prompts ---------------------------------------------------------------------------------------------------


def test_weights_by_block_and_timestep(infer, script, photo, adapter):
    options, found = (*WHOLE, "--ages", 10, "--strength", 0.8, "--detail", 0, "--current_age", 30), {}
    for weight in ("1", "1@999-0", "1@500-0", "1@500-0,up=0.5", "0"):
        infer(photo, "--adapter", f"{adapter}={weight}", *options, "--overwrite")
        found[weight] = pixels("outputs/anna-age10.png")
    assert np.array_equal(found["1"], found.pop("1@999-0"))
    assert all(np.abs(a - b).max() > 2 for a, b in combinations(found.values(), 2))  # more than rounding
    code, _, err = script("infer.py", photo, "--adapter", f"{adapter}=1@0-500", *options)
    assert code == 2 and "its timesteps do not fall" in err and len(err.strip().splitlines()) == 1


def test_an_adapter_that_was_just_trained_ages_a_face(infer, script, folder, dataset, photo):
    """With the captions that its data had; outside of the mask every pixel stays."""
    (dataset / "captioning.json").write_text('{"template": "{subject} at {age}", "ages": [10, 50]}')
    training = ("--pretrained_model_name_or_path", folder, "--train_data_dir", dataset, "--output_dir", "age")
    code, _, err = script("train_lora.py", *training, "--max_train_steps", 1, "--rank", 2, "--role", "age")
    assert code == 0, err
    infer(photo, *FACE, "--ages", 40, "--adapter", "age=0.5", "--subject", "man")
    assert read_settings("outputs/anna-age40.png")["whole_prompt"] == "a man at 40"
    changed = (pixels(photo) != pixels("outputs/anna-age40.png")).any(-1)
    outside = np.asarray(box_mask(90, 120, (20, 30, 70, 90))) == 0
    assert changed.any() and not changed[outside].any()


def test_an_adapter_of_another_base_warns(infer, photo, adapter, tmp_path):
    random = lida.load_adapter(adapter)
    other = lida.Adapter(random.layers, {**random.metadata, "base": {"name": "another", "unet": "0" * 64}})
    lida.save_adapter(tmp_path / "other.safetensors", other)
    for path, warned in ((adapter, False), (tmp_path / "other.safetensors", True)):
        _, err = infer(photo, *FACE, "--ages", 20, "--adapter", path, "--overwrite")
        assert ("trained on another base (another)" in err) == warned


def test_a_prompt_over_a_photograph_makes_one_picture(infer, photo):
    out, _ = infer(photo, "--prompt", "a boy", *WHOLE)
    assert out.split() == ["outputs/anna-prompt.png", "outputs/anna-sheet.png"]
    assert read_settings("outputs/anna-prompt.png")["strength"] == Edit().without_age().strength


def test_painting_from_text_is_marked_as_painted(infer):
    out, _ = infer("--prompt", "An old man!", "--num_images_per_prompt", 2, steps=2)
    assert out.split() == ["outputs/an-old-man-0.png", "outputs/an-old-man-1.png"]
    for path in out.split():
        with Image.open(path) as picture:
            assert "digitalsourcetype/trainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]


def test_the_demo_finds_its_face_by_itself(script):
    """On lida-tiny, with its age adapter: a photograph and an age."""
    photo = ROOT / "weights" / "demo" / "person-a.png"
    code, out, err = script("infer.py", photo, "--ages", 60, "--num_inference_steps", 4)
    assert code == 0 and "person-a-age60.png" in out, err


# What is written, and made again ----------------------------------------------------------------------------------------


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_a_picture_says_what_it_is_and_is_made_again_to_the_byte(infer, script, photo, tmp_path):
    box_mask(90, 120, (20, 30, 70, 90)).save(tmp_path / "mask.png")
    options = ("--ages", 20, 64, "--strength", 0.9, "--current_age", 30, "--seed", 7, "--eta", 0.5, "--method", "inpaint")
    infer(photo, "--mask", tmp_path / "mask.png", *options, "--output_dir", "one")
    first = contents("one")
    assert {name for name in first if name.endswith(".png")} == {"anna-age20.png", "anna-age64.png", "anna-sheet.png"}
    with Image.open("one/anna-age64.png") as picture:
        assert "compositeWithTrainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
        told = json.loads(picture.info["lida"])
    assert told == json.loads(first["anna-age64.json"]) and told["seed"] == 7 and told["strength"] == 0.9
    old = (34 / 35) ** 0.5
    assert told["whole_prompt"] == pytest.approx(
        {"a portrait photo of a person, age 30s": 1 - old, "a portrait photo of an old person, age 70s": old}
    )
    code, _, err = script("infer.py", "--reproduce", "one/anna-age20.png", "--output_dir", "two")
    assert code == 0, err
    assert contents("two") == first
    noise_image(90, 120, 5).save(photo)
    code, _, err = script("infer.py", "--reproduce", "one/anna-age20.png", "--output_dir", "three")
    assert code == 2 and "anna.png is not the file that it was made from" in err and not Path("three").exists()


@pytest.mark.parametrize(
    "options",
    [
        (*FACE, "--years", -10, 5),
        (*FACE, "--ages", 20, "--guidance_interval", 0.3, 5, "--negative_prompt=-x", "--num_images_per_prompt", 2),
        (*WHOLE, "--prompt", "-- a boy", "--source_prompt", "a girl", "--no_colour_match", "--format", "same"),
        ("--face", "all", "--zones", "eyes=0.5", "mouth=0", "--mask_growth", "0.1", "--ages", 20, "--current_age", 30),
    ],
    ids=["years", "interval", "prompt", "faces"],
)
def test_pictures_of_every_kind_are_made_again(infer, script, photo, faces, options):
    path = faces / "two.png" if "--face" in options else photo
    out, _ = infer(path, *options, "--output_dir", "one")
    code, _, err = script("infer.py", "--reproduce", out.split()[0], "--output_dir", "two")
    assert code == 0, err
    assert contents("two") == contents("one")


def test_a_painting_without_a_photograph_is_made_again(infer, script):
    out, _ = infer("--prompt", "a boy", "--height", 72, "--eta", 1, "--output_dir", "one")
    code, _, err = script("infer.py", "--reproduce", out.strip(), "--output_dir", "two")
    assert code == 0, err
    assert contents("two") == contents("one") and pixels("two/a-boy.png").shape == (72, 64, 3)


def test_a_picture_of_a_folder_is_made_again_alone(infer, script, tmp_path):
    (tmp_path / "photos").mkdir()
    for i, name in enumerate("ab"):
        noise_image(90, 120, i).save(tmp_path / "photos" / f"{name}.png")
    infer(tmp_path / "photos", *FACE, "--ages", 20, 60, "--subject", "man", "woman", "--output_dir", "one")
    code, out, err = script("infer.py", "--reproduce", "one/b-age60.png", "--output_dir", "two")
    assert code == 0, err
    assert out.split() == ["two/b-age20.png", "two/b-age60.png", "two/b-sheet.png"]
    assert contents("two") == {name: data for name, data in contents("one").items() if name.startswith("b")}


def test_a_picture_is_made_again_from_another_folder(infer, script, photo, adapter, folder, tmp_path, monkeypatch):
    """Relative paths start from the folder where it was made, unless what they name lies here."""
    shutil.copytree(ROOT / "weights" / "age-estimator", "estimator")
    options = ("--adapter", os.path.relpath(adapter), "--age_estimator", "estimator", "--output_dir", "one")
    infer(os.path.relpath(photo), *WHOLE, "--ages", 20, *options)
    made, here = Path("one").resolve(), tmp_path / "elsewhere" / "deep"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    code, out, err = script("infer.py", "--reproduce", os.path.relpath(made / "anna-age20.png"), "--output_dir", "two")
    assert code == 0, err
    assert out.split()[0] == str(here / "two" / "anna-age20.png")
    assert (pixels(here / "two" / "anna-age20.png") == pixels(made / "anna-age20.png")).all()


HOSTILE = [
    ({"ages": ["ten"]}, "--ages: 'ten' is not a whole number"),
    ({"ages": [[1, 2]]}, "--ages: '[1, 2]' is not a whole number"),
    ({"seed": -1}, "--seed: '-1' is not a whole number"),
    ({"seed": "many"}, "--seed: 'many' is not a whole number"),
    ({"strength": 1e300}, "--strength: '1e+300' is not a number above 0"),
    ({"eta": {"x": 1}}, "--eta: 'x=1' is not"),
    ({"method": "redraw"}, "--method: invalid choice: 'redraw'"),
    ({"num_images_per_prompt": 10**9}, "--num_images_per_prompt: '1000000000' is not"),
    ({"pretrained_model_name_or_path": "someone/else"}, "'someone/else' is not on this disk, and a picture cannot ask to fetch"),
    ({"age_estimator": "someone/else"}, "'someone/else' is not on this disk, and a picture cannot ask to fetch"),
    ({"pretrained_model_name_or_path": ["a", "b"]}, "is not on this disk"),
    ({"photo": ["{other}"]}, "no hash of its photograph"),
    ({"photo": "{other}"}, "no hash of its photograph"),
    ({"mask": "{other}"}, "no hash of its photograph"),
    ({"adapter": ["none.safetensors=1"]}, "none.safetensors: no such adapter"),
    ({"adapter": ["none.safetensors=nan"]}, "not a finite number"),
    ({"device": "abacus"}, "device abacus"),
    ({"run": "rm"}, "the recorded argument 'run' is not known"),
    ({"years": [5]}, "--years: not allowed with argument --ages"),
    ({"height": 64}, "--height: has no effect"),
    ({"subject": ["man", "--adapter=/etc/passwd=1"]}, "the recorded argument 'subject' holds a flag"),
    ({"device": "meta"}, "device meta"),
    ({"vae_tiling": "{other}"}, "the recorded argument 'vae_tiling' has 1 values, not 0"),
    ({"guidance_interval": [0, 1, "{other}"]}, "the recorded argument 'guidance_interval' has 3 values, not 2"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE, ids=[json.dumps(changes) for changes, _ in HOSTILE])
def test_recorded_arguments_pass_the_same_checks(infer, script, photo, tmp_path, changes, message):
    """A foreign picture cannot make lida age another file or fetch a model; the error is one line."""
    noise_image(90, 120, 3).save(tmp_path / "other.png")
    infer(photo, *FACE, "--ages", 20, "--output_dir", "one")
    told = read_settings("one/anna-age20.png")
    told["arguments"] |= json.loads(json.dumps(changes).replace("{other}", str(tmp_path / "other.png")))
    Image.new("RGB", (8, 8)).save("x.png")
    Path("x.json").write_text(json.dumps(told))
    code, out, err = script("infer.py", "--reproduce", "x.png", "--output_dir", "two")
    assert code == 2 and not out and message in err and not Path("two").exists()
    assert len([line for line in err.splitlines() if not line.startswith("anna")]) == 1, err


def test_settings_that_are_missing_or_not_lidas_are_refused_in_one_line(script, photo):
    for text, message in (
        (None, "has no settings of lida's"), ("[]", "is not an object"), ("{}", "does not say how it was made"),
        ('{"arguments": [], "files": {}}', "does not say how it was made"), ("{", "has no settings of lida's"),
    ):  # fmt: skip
        if text is not None:
            photo.with_suffix(".json").write_text(text)
        code, out, err = script("infer.py", "--reproduce", photo)
        assert code == 2 and not out and message in err and len(err.strip().splitlines()) == 1, err


def test_a_picture_made_with_another_adapter_is_not_made_again(infer, script, photo, adapter, folder):
    infer(photo, *FACE, "--ages", 20, "--adapter", adapter, "--output_dir", "one")
    sd = lida.StableDiffusion.load(folder)
    lida.save_adapter(adapter, random_adapter(sd, 1))
    code, _, err = script("infer.py", "--reproduce", "one/anna-age20.png", "--output_dir", "two")
    assert code == 2 and "was made with another version, base or adapter" in err


def test_earlier_pictures_are_kept_in_their_folder(infer, photo):
    """The next call takes a numbered folder, unless it may overwrite."""
    found = []
    for seed, more in ((1, ()), (2, ()), (3, ()), (4, ("--overwrite",))):
        out, _ = infer(photo, *FACE, "--ages", 20, "--method", "inpaint", "--detail", 0, "--seed", seed, *more)
        found.append(out.split()[0])
    folders = ("outputs", "outputs/2", "outputs/3", "outputs")
    assert found == [f"{folder}/anna-age20.png" for folder in folders]
    assert [read_settings(path)["seed"] for path in found] == [4, 2, 3, 4]
    out, _ = infer("--prompt", "a boy")
    assert out.split() == ["outputs/a-boy.png"]  # other names do not matter


def test_no_run_writes_over_its_photograph_or_paints_an_age_twice(infer, tmp_path):
    (tmp_path / "ph").mkdir()
    path = tmp_path / "ph" / "anna.gif"
    noise_image(90, 120).save(path)
    before = path.read_bytes()
    out, _ = infer(path, *FACE, "--ages", 60, 20, 60, "--gif", "--output_dir", path.parent, "--overwrite")
    names = ("anna-age60.png", "anna-age20.png", "anna-sheet.png", "anna.gif")
    assert out.split() == [f"{path.parent}/2/{name}" for name in names]
    assert path.read_bytes() == before


# Refusals ---------------------------------------------------------------------------------------------------------------

BAD = [
    (["none.jpg"], "none.jpg: no such file"),
    ([""], "photo: '' is no name"),
    (["{photo}", "--subject", " "], "--subject: ' ' is blank"),
    (["{text}"], "text.png: not an image"),
    (["{empty}"], "empty: has no photographs in it"),
    (["{photo}", "{twice}"], "anna: is the name of two photographs"),
    (["{photo}", "--mask", "{small}"], "the mask is 70x80, the photograph 90x120"),
    (["{photo}", "--mask", "{black}"], "the mask is black"),
    (["{photo}", "--mask", "auto"], "no face is found"),
    (["{photo}", "--mask", "0,0,91,120"], "is not a box x0,y0,x1,y1 within the photograph, which is 90x120"),
    (["{photo}", "--mask", ""], "--mask: '' is no name"),
    (["{photo}", "--mask", "{empty}"], "empty/anna.png: no such file"),
    (["{photo}", "--mask_growth", "-1"], "--mask_growth: '-1' is not"),
    (["{photo}", "--zones", "nose=1"], "--zones: 'nose=1' is not one of eyes, mouth, hairline"),
    (["{photo}", "--zones", "eyes=x"], "--zones: 'x' is not a number"),
    (["{photo}", "--ages", "10", "100"], "--ages: '100' is not a whole number from 0 to 99"),
    (["{photo}", "--ages", "ten"], "--ages: 'ten' is not a whole number"),
    (["{photo}", "--current_age", "-1"], "--current_age: '-1' is not"),
    (["{photo}", "--subject", "a", "b"], "--subject: 2 are given for 1 photographs"),
    (["{photo}", "--eta", "2"], "--eta: '2' is not a number from 0 to 1"),
    (["{photo}", "--strength", "1.2"], "--strength: '1.2' is not a number above 0 and up to 1"),
    (["{photo}", "--strength", "inf"], "--strength: 'inf' is not"),
    (["{photo}", "--num_inference_steps", "0"], "--num_inference_steps: '0' is not"),
    (["--prompt", "a \udcff boy"], "is not UTF-8"),
    (["--prompt", "a boy", "--width", "60"], "--width: '60' is not a whole number"),
    (["{photo}", "--num_images_per_prompt", "0"], "--num_images_per_prompt: '0' is not"),
    (["{photo}", "--seed", "99999999999999999999"], "--seed: '99999999999999999999' is not"),
    (["{photo}", "--guidance_scale", "nan"], "--guidance_scale: 'nan' is not"),
    (["{photo}", "--guidance_scale", "1e300"], "--guidance_scale: '1e300' is not"),
    (["{photo}", "--guidance_rescale", "2"], "--guidance_rescale: '2' is not"),
    (["{photo}", "--guidance_interval", "5", "1"], "--guidance_interval must be two noise levels, the lower first"),
    (
        ["{photo}", "--scheduler", "euler", "--eta", "0.5", "--method", "inpaint"],
        "--eta belongs to scheduler 'ddim', not 'euler'",
    ),
    (["{photo}", "--output_dir", "{photo}"], "--output_dir"),
    (["none.jpg", "--adapter", "none.safetensors=1"], "none.safetensors: no such adapter"),  # before photographs are read
    (["none.jpg", "--adapter", "=1"], "--adapter '=1': names no adapter"),
    (["{photo}", "--adapter", "{wrong}=x"], "'x' is not a finite number"),
    (["{photo}", "--adapter", "{wrong}=nan"], "'nan' is not a finite number"),
    (["{photo}", "--adapter", "{wrong}=1"], "it was trained on another model"),
    (["{photo}", "--adapter", "{photo}=1"], "not a readable safetensors file"),
    (["{photo}", "--pretrained_model_name_or_path", "none"], "none: no such folder or file"),
    (["{photo}", "--pretrained_model_name_or_path", "{empty}"], "unet/config.json: no such file"),
    (["{photo}", "--device", "abacus"], "device abacus: "),
    (["{photo}", "--colour", "red"], "unrecognized arguments"),
]
STEPS = [
    (
        ["--strength", "0.01"],
        "strength must be above 0 and up to 1, and 0.01 leaves none of the 25 steps; give more steps or a higher strength",
    ),
]
READING = [
    (["--age_estimator", "{empty}"], "empty: no age estimator"),
    (["--years", "5", "--current_age", "30", "--age_estimator", "{empty}"], "empty: no age estimator"),
]


@pytest.fixture
def refused(script, folder, photo, tmp_path):
    """Check that infer.py refuses arguments in one line and writes nothing."""
    places = {name: tmp_path / f"{name}.png" for name in ("text", "small", "black")}
    places |= {"photo": photo, "empty": tmp_path / "empty", "twice": tmp_path / "twice", "wrong": tmp_path / "wrong.safetensors"}
    for name in ("empty", "twice"):
        places[name].mkdir()
    noise_image(90, 120).save(places["twice"] / "anna.jpg")
    noise_image(70, 80).save(places["small"])
    Image.new("L", (90, 120)).save(places["black"])
    places["text"].write_text("nothing")

    def refused(arguments: list, message: str) -> None:
        if any("{wrong}" in argument for argument in arguments):
            layer = next(iter(random_adapter(lida.StableDiffusion.load(folder), 0).layers.values()))
            lida.save_adapter(places["wrong"], lida.Adapter({"mid_block.attn9.to_q": layer}))
        arguments = [argument.format(**places) for argument in arguments]
        if "--pretrained_model_name_or_path" not in arguments:
            arguments += ["--pretrained_model_name_or_path", folder]
        code, out, err = script("infer.py", *arguments)
        lines = [line for line in err.strip().splitlines() if "looks" not in line and not line.startswith("notice")]
        assert code == 2 and not out and lines[0].startswith("error: ") and message in lines[0] and len(lines) == 1, err
        assert not list(script.folder.iterdir())

    return refused


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_ends_in_one_line(refused, arguments, message):
    own = arguments[0] == "{photo}" and "--mask" not in arguments and "{twice}" not in arguments
    of_auto = any(argument in ("--mask_growth", "--zones") for argument in arguments)
    refused([*arguments, *(WHOLE if own and not of_auto else ())], message)


@pytest.mark.parametrize(("arguments", "message"), READING, ids=[" ".join(a) for a, _ in READING])
def test_bad_models_of_ages_end_in_one_line(refused, arguments, message):
    refused(["{photo}", *WHOLE, *arguments], message)


@pytest.mark.parametrize(("arguments", "message"), STEPS, ids=[" ".join(a) for a, _ in STEPS])
def test_settings_that_do_not_go_together_name_the_photograph(script, photo, folder, arguments, message):
    code, _, err = script("infer.py", photo, *map(str, FACE), *arguments, "--pretrained_model_name_or_path", folder)
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and f"anna.png: {message}" in err


NEEDLESS = [
    (["--prompt", "a boy", "--mask", "0,0,9,9"], "--mask"),
    (["--prompt", "a boy", "--face", "1"], "--face"),
    (["--prompt", "a boy", "--strength", "0.5"], "--strength"),
    (["--prompt", "a boy", "--method", "inpaint"], "--method"),
    (["--prompt", "a boy", "--current_age", "30"], "--current_age"),
    (["--prompt", "a boy", "--gif"], "--gif"),
    (["{photo}", *WHOLE, "--face", "1"], "--face"),
    (["{photo}", *WHOLE, "--mask_growth", "0.1"], "--mask_growth"),
    (["{photo}", *WHOLE, "--zones", "eyes=0.5"], "--zones"),
    (["{photo}", *WHOLE, "--source_prompt", "a boy", "--method", "inpaint"], "--source_prompt"),
    (["{photo}", *WHOLE, "--current_age", "20", "--age_estimator", "{empty}"], "--age_estimator"),
    (["{photo}", *WHOLE, "--height", "64"], "--height"),
    (["{photo}", *WHOLE, "--guidance_scale", "1", "--negative_prompt", "old"], "--negative_prompt"),
    (["{photo}", *WHOLE, "--guidance_scale", "1", "--guidance_rescale", "0.5"], "--guidance_rescale"),
]


@pytest.mark.parametrize(("arguments", "flag"), NEEDLESS, ids=[" ".join(a) for a, _ in NEEDLESS])
def test_flags_without_effect_are_refused(refused, arguments, flag):
    refused(arguments, f"error: {flag}: has no effect together with the other arguments; leave it out")


def test_years_are_not_for_inpainting(refused):
    refused(["{photo}", *WHOLE, "--years", "5", "--method", "inpaint"], "error: --years: method inpaint")


def test_an_adapter_given_twice_by_other_paths_is_refused(refused, tmp_path, adapter):
    (tmp_path / "link.safetensors").symlink_to(adapter)
    for other in (tmp_path / "link.safetensors", f"{adapter.parent}/./{adapter.name}"):
        refused(["{photo}", *WHOLE, "--adapter", f"{adapter}=1", "--adapter", f"{other}=1"], "same adapter is given twice")


def test_a_prompt_that_cannot_be_painted_is_refused_in_one_line(script, folder, adapter):
    options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 4)
    code, _, err = script("infer.py", "--prompt", "a boy", "--adapter", f"{adapter}=1e30", *options)
    assert code == 2 and "error: --prompt a boy: the sampler's latents are not finite" in err, err


@pytest.mark.parametrize("second", [["--years", "5"], ["--prompt", "a boy"]])
def test_ages_years_and_a_prompt_exclude_each_other(refused, second):
    refused(["{photo}", *WHOLE, "--ages", "20", *second], f"{second[0]}: not allowed with argument --ages")


def test_flags_beside_reproduce_are_refused(script, photo):
    for arguments, flag in (([photo], "--photo"), (["--seed", 5], "--seed"), (["--eta", 1], "--eta")):
        code, _, err = script("infer.py", "--reproduce", photo, *arguments)
        assert code == 2 and f"made again with its own settings; leave {flag} out" in err


def test_an_empty_name_after_reproduce_is_refused(script):
    code, _, err = script("infer.py", "--reproduce=")
    assert code == 2 and "--reproduce: '' is no name" in err


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(infer, script, photo, folder, monkeypatch):
    """While pictures, their settings and the film are written."""
    real = os.replace
    for number in range(1, 6):
        calls = []

        def full(source, target):
            calls.append(target)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
            return real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", full)
            options = ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 4)
            code, _, err = script("infer.py", photo, *FACE, "--ages", 20, 30, "--gif", "--output_dir", number, *options)
        assert code == 2 and "No space left on device" in err.splitlines()[-1], err
        assert len(list(Path(str(number)).iterdir())) == number - 1  # whole ones only
