"""python -m lida.study.evaluate on the model that ships: its table, its controls, going on, several processes, other judges."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_runs import environment
from test_scripts import script  # noqa: F401

import lida
from lida.adapters.merging import applied_within
from lida.doors.errors import InputError
from lida.study.judges import AgeJudge, square_of
from lida.nn.layers import Prompt
from lida.study.people import read_people
from lida.aging.editing import age_face
from lida.study.settings import CONTROLS

WEIGHTS = ROOT / "weights"
PHOTO, MASK = WEIGHTS / "demo" / "person-a.png", WEIGHTS / "demo" / "person-a-mask.png"
ADAPTERS = ("--age_adapter", WEIGHTS / "age.safetensors", "--identity_adapter", WEIGHTS / "person-a.safetensors")
FEW = ("--num_inference_steps", 4, "--strength", 0.5, "--ages", 20, 45, 70, "--seeds", 3, "--kind", "man")
JUDGE = ("--age_judge", WEIGHTS / "age-estimator")
RUN = (PHOTO, "--mask", MASK, "--pretrained_model_name_or_path", WEIGHTS / "lida-tiny", *ADAPTERS, *FEW)
GRID = ("--identity_weights", "0.3", "1.0", "--age_weights", "0.2", "1.0")


def width_as_age(squares):
    """A judge for the test below: the mean grey, as years."""
    return [np.asarray(square.convert("L")).mean() / 3 for square in squares]


def table_of(folder) -> dict[str, dict]:
    with open(folder / "table.csv", encoding="utf-8") as file:
        return {line["setting"]: line for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A grid of four settings, painted once for the tests below."""
    folder = tmp_path_factory.mktemp("evaluated")
    command = [sys.executable, "-m", "lida.study.evaluate", *RUN, *GRID, *JUDGE, "--output_dir", folder]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_table_has_the_settings_and_the_controls(evaluated):
    table = table_of(evaluated)
    assert list(table)[:4] == ["sum 0.3 0.2", "sum 0.3 1.0", "sum 1.0 0.2", "sum 1.0 1.0"]
    assert list(table)[4:] == ["default", *(name for name in CONTROLS if name != "ceiling")]  # of no other photographs
    assert all(line["largest_change_outside"] == "0" for line in table.values())
    nothing = table["do nothing"]
    assert float(nothing["cosine_input"]) == pytest.approx(1) and float(nothing["cosine_back"]) == pytest.approx(1)
    assert nothing["psnr_inside"] == "" and nothing["cosine_target"] == ""  # no other photographs of the person are given
    found = json.loads((evaluated / "table.json").read_text(encoding="utf-8"))
    read = [row["read"] for row in found["rows"] if row["setting"] == "do nothing"]
    photo, mask = Image.open(PHOTO).convert("RGB"), Image.open(MASK).convert("L")
    own = AgeJudge(str(WEIGHTS / "age-estimator"))([square_of(photo, mask)])[0]
    assert read == pytest.approx([own] * 3) and float(nothing["age_error"]) == pytest.approx(
        np.mean(np.abs(own - np.array([20, 45, 70]))), abs=1e-3
    )
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') >= 2 and "http" not in page  # all of it in the one file
    assert Image.open(evaluated / "grid.png").width > 2 * 128


def test_its_pictures_are_those_of_age_face(evaluated, one_thread):
    """A setting's picture, made by hand: weights merged, the photograph inverted, the caption's decade."""
    sd = lida.StableDiffusion.load(WEIGHTS / "lida-tiny")
    sd.load_adapter("id", WEIGHTS / "person-a.safetensors")
    sd.load_adapter("age", WEIGHTS / "age.safetensors")
    sd.set_adapters(["age", "id"], [0.2, 1.0])
    photo, mask = Image.open(PHOTO).convert("RGB"), Image.open(MASK).convert("L")
    options = {"method": "ddim_inversion", "source_prompt": "a portrait photo of sks", "strength": 0.5, "guidance_scale": 3.0}
    prompts = ["a portrait photo of sks, age 20s", {f"a portrait photo of sks, age {d}0s": 0.5 for d in (4, 5)}]
    prompts.append("a portrait photo of sks, age 70s")
    made = age_face(sd, photo, mask, prompts, num_inference_steps=4, **options)
    folder = evaluated / "pictures" / "person-a" / "sum 1.0 0.2" / "seed3"
    for age, picture in zip((20, 45, 70), made):
        assert np.array_equal(np.asarray(Image.open(folder / f"age{age}.png")), np.asarray(picture))


def test_a_run_goes_on_and_other_judges_need_no_pictures(evaluated, script, one_thread):  # noqa: F811
    """What is on disk stays, what was lost comes again to the byte, and a judge by its import path reads the same pictures."""
    folder = evaluated / "pictures" / "person-a" / "sum 0.3 1.0" / "seed3"
    before, whole = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*.png")}, (folder / "age70.png").read_bytes()
    (folder / "unit.json").unlink()
    (folder / "age70.png").unlink()
    options = (*RUN, *GRID, *JUDGE, "test_evaluate:width_as_age", "--output_dir", evaluated)
    code, _, err = script("lida.study.evaluate", *options)
    assert code == 0, err
    assert (folder / "age70.png").read_bytes() == whole
    kept = [path for path in before if path.parent != folder and path.name not in ("curve.png", "grid.png")]
    assert kept and all(path.stat().st_mtime_ns == before[path] for path in kept)
    line = table_of(evaluated)["do nothing"]
    assert float(line["age_error:test_evaluate:width_as_age"]) >= 0
    assert line["age_error_real:test_evaluate:width_as_age"] == ""  # nobody has measured it on real faces


def test_pictures_made_otherwise_are_not_mixed_in(evaluated, script):  # noqa: F811
    code, _, err = script("lida.study.evaluate", *RUN, *GRID, *JUDGE, "--output_dir", evaluated, "--strength", 0.75)
    assert code == 2 and "made otherwise" in err and "'strength': 0.5" in err and "another --output_dir" in err


def test_two_processes_paint_what_one_paints(evaluated, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    command = [sys.executable, *launcher, "-m", "lida.study.evaluate", *RUN, *GRID, *JUDGE, "--no_back", "--output_dir", tmp_path]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pictures = sorted(path.relative_to(tmp_path) for path in (tmp_path / "pictures").rglob("*.png"))
    assert len(pictures) == 10 * 3
    for path in pictures:
        assert np.array_equal(*(np.asarray(Image.open(root / path)) for root in (evaluated, tmp_path))), path
    ours, theirs = table_of(evaluated), table_of(tmp_path)
    for name, line in theirs.items():
        assert float(line["age_error"]) == pytest.approx(float(ours[name]["age_error"]), abs=0.1)


@pytest.mark.parametrize(
    "options, said",
    [
        (("--setting", "a: rule=best"), "rule 'best'"), (("--ages", 20, 200), "200 is not between"),
        (("--seeds", 1, 1), "one comes twice"), (("--age_judge", "os:nothing"), "cannot be imported"),
        (("--age_judge", "no/such/folder"), "no age estimator"), (("--identity_judge", "arcface"), "neither sface nor"),
        (("--people", "people.jsonl"), "one of the two"), (("--strength", 0), "--strength 0"),
        (("--identity_adapter", "nowhere.safetensors"), "no such adapter"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(script, options, said):  # noqa: F811
    code, _, err = script("lida.study.evaluate", *RUN, *JUDGE, "--output_dir", "out", *options)
    assert code == 2 and said in err and len([line for line in err.splitlines() if line.startswith("error")]) == 1
    assert not list((script.folder / "out").rglob("*.png")) if (script.folder / "out").exists() else True


def test_people_are_read_and_checked(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.safetensors").touch()
    line = {"photo": "a.png", "age": 30, "kind": "man", "identity": {"x": "a.safetensors"}}
    line["references"] = [{"photo": "a.png", "age": 50}]
    path = tmp_path / "people.jsonl"
    path.write_text(json.dumps(line) + "\n\n", encoding="utf-8")
    (person,) = read_people(path)
    assert (person.name, person.photo, person.age, person.subject) == ("a", tmp_path / "a.png", 30.0, "sks")
    assert person.identity == {"x": tmp_path / "a.safetensors"} and person.references == ((tmp_path / "a.png", 50.0),)
    wrong = [
        {},
        {"photo": "b.png"},
        {**line, "kind": "child"},
        {**line, "color": 1},
        {**line, "references": [{"photo": "a.png"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [line, line, *wrong]) + "nonsense\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_people(path)
    told = str(error.value).splitlines()
    assert len(told) == 7 and "has no photo" in told[0] and "does not exist" in told[1] and "'child'" in told[2]
    assert "'color' is no field" in told[3] and "KeyError" in told[4] and "not readable as JSON" in told[5] and "name of two" in told[6]


def test_a_judge_measured_on_faces_knows_its_bias(tmp_path):
    """One that reads ten years too many expects eleven-year-olds at 21."""
    for age in (4, 14, 24):
        picture = Image.open(PHOTO).convert("RGB")
        picture.putpixel((0, 0), (age, age, age))
        picture.save(tmp_path / f"{age}.png")
    lines = [{"file_name": f"{age}.png", "age": age} for age in (4, 14, 24)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    calls = iter([14.0, 24.0, 34.0])
    judge = AgeJudge("test_evaluate:width_as_age")
    judge.read = lambda squares: [next(calls) for _ in squares]
    judge.measure(tmp_path, None)
    assert judge.mean_error == pytest.approx(10) and judge.expected(11) == pytest.approx(21)
    assert AgeJudge("test_evaluate:width_as_age").expected(11) is None
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "4.png"}\n{"file_name": "14.png", "age": "5"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="(?s)4.png: its age is None.*14.png: its age is '5'"):
        judge.measure(tmp_path, None)


def test_an_adapter_within_everything_is_an_adapter_merged(tmp_path):
    """A mask of ones changes nothing of W + w BA; one of zeros leaves the change of the text's keys and values alone."""
    torch.manual_seed(0)
    sd = lida.StableDiffusion.load(WEIGHTS / "lida-tiny")
    adapter = sd.load_adapter("id", WEIGHTS / "person-a.safetensors")
    x, t, text = torch.randn(2, 4, 12, 12), torch.tensor([500, 500]), sd.text_encoder(["a portrait photo of sks"] * 2)
    with torch.no_grad():
        base = sd.unet(x, t, text)
        with applied_within(sd.module, adapter.layers, 0.7, torch.ones(1, 1, 12, 12)):
            everywhere = sd.unet(x, t, Prompt(text))
        with applied_within(sd.module, adapter.layers, 0.7, torch.zeros(1, 1, 12, 12)):
            nowhere = sd.unet(x, t, text)
        assert torch.equal(sd.unet(x, t, text), base)  # the hooks are gone
        sd.set_adapters(["id"], [0.7])
        assert (everywhere - sd.unet(x, t, text)).abs().max() < 1e-5
        sd.set_adapters([], [])
        of_text = {path: layer for path, layer in adapter.layers.items() if path.endswith(("attn2.to_k", "attn2.to_v"))}
        sd.load_adapter("text", lida.Adapter(of_text))
        sd.set_adapters(["text"], [0.7])
        assert (nowhere - sd.unet(x, t, text)).abs().max() < 1e-5
    assert (everywhere - base).abs().max() > 1e-3 < (nowhere - base).abs().max()
