"""python -m lida.adapters: each command, and its refusals in one line."""

import json
import re
import subprocess
import sys

import diffusers
import pytest
import torch
from conftest import ROOT, agree, pair

import lida
from lida.adapters import load_adapter, save_adapter
from lida.doors.errors import run
from lida.scripts.adapters import main


@pytest.fixture
def files(sd, tmp_path):
    """Files of two adapters of pair()."""
    return [save_adapter(tmp_path / f"{k}.safetensors", adapter, "kohya") for k, (adapter, _) in enumerate(pair(sd)[:2])]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process; return the exit code, and what it printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adapters", *map(str, arguments)])
        code = 0
        try:
            run(main)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_info_shows_what_is_in_a_file(files):
    """As `python -m lida.adapters`, in a process of its own."""
    arguments = [sys.executable, "-m", "lida.adapters", "info", files[0]]
    shown = json.loads(subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=True).stdout)
    layers = load_adapter(files[0]).layers
    assert shown["layers"] == {"unet": len(layers), "text_encoder": 0} and shown["ranks"] == [4] and shown["scales"] == [1.0]
    norm = torch.stack([layer.delta.norm() for layer in layers.values()]).norm()
    assert shown["norm"] == pytest.approx(float(norm), rel=1e-5) and shown["metadata"] == {"role": "test"}


def test_convert_changes_the_format_and_nothing_else(sd, files, command, tmp_path):
    assert command("convert", files[1], "-o", tmp_path / "peft", "--format", "peft")[0] == 0
    agree(load_adapter(tmp_path / "peft", sd), lambda name: pair(sd)[1][0].layers[name].delta)


def test_combine_says_how_exact_it_is(files, command, tmp_path):
    code, out, _ = command("combine", f"{files[0]}=0.7", f"{files[1]}=-0.5", "-o", tmp_path / "sum", "--rank", "4")
    assert code == 0 and "largest relative error" in out
    assert {layer.rank for layer in load_adapter(tmp_path / "sum").layers.values()} <= {2, 4}


def test_compare_writes_a_report(files, command, tmp_path):
    code, out, _ = command("compare", *files, "-o", tmp_path / "report")
    assert code == 0 and out.splitlines()[0].split()[:2] == ["block", "norm_a"]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["layers"].keys() == load_adapter(files[0]).layers.keys() | load_adapter(files[1]).layers.keys()


def test_fuse_writes_a_model_that_diffusers_loads(sd, folder, files, command, tmp_path):
    code, _, err = command("fuse", folder, f"{files[0]}=0.7", "-o", tmp_path / "fused")
    assert code == 0, err
    sd.load_adapter("0", pair(sd)[0][0])
    sd.set_adapters(["0"], [0.7])
    fused = lida.StableDiffusion.load(tmp_path / "fused")
    for name, tensor in fused.unet.state_dict().items():  # in float16, of weights mapped from a file: one step of 2^-10
        assert torch.allclose(tensor, sd.unet.state_dict()[name].half().float(), rtol=2**-10, atol=1e-7), name
    assert torch.equal(fused.schedule.alphas_cumprod, sd.schedule.alphas_cumprod)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "fused")
    assert torch.equal(theirs.scheduler.alphas_cumprod, sd.schedule.alphas_cumprod)
    assert torch.equal(theirs.unet.conv_in.weight, fused.unet.conv_in.weight)


REFUSED = [
    ("info none", "none: no such adapter"),
    ("combine {0}=x -o {new}", "not a finite number"),
    ("combine {0}=1e39 -o {new}", "not a finite number"),
    ("combine {0} ./{0} -o {new}", "the same adapter"),
    ("combine {0} -o {new} --rank 0", "--rank: '0' is not"),
    ("combine {0}=1@600-0 -o {new}", "one weight for all blocks and timesteps"),
    ("convert {0} -o {0}/x", "give a folder that can be written to"),
    ("convert {0} -o {new} --format ckpt", "invalid choice"),
    ("compare {0} {1} -o {0}", "File exists"),
    ("fuse {model} {0}=0.7 -o {model}", "is not empty"),
    ("fuse {model} {0}=0.7 -o {here}", "is not empty"),
    ("fuse {model} {0}=0.7@600-0 -o {new}", "the same at all timesteps"),
    ("fuse {model} {0}=1e9 -o {new}", "unet: .*is not finite in torch.float16"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_what_cannot_be_done_is_said_in_one_line(folder, files, command, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    places = {"model": folder, "new": tmp_path / "new", "here": tmp_path}
    code, out, err = command(*line.format(*(path.name for path in files), **places).split())
    assert code == 2 and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "new").exists()
