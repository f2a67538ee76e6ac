"""python -m lida.adapters."""

import json
import subprocess
import sys

import diffusers
import torch
from conftest import ROOT, agree, pair

import lida
from lida.adapters import load_adapter, save_adapter


def command(*arguments):
    """What `python -m lida.adapters` prints, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "lida.adapters", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line(sd, folder, tmp_path):
    files = [save_adapter(tmp_path / f"{k}.safetensors", adapter, "kohya") for k, (adapter, _) in enumerate(pair(sd)[:2])]
    code, out, _ = command("info", files[0])
    shown = json.loads(out)
    assert (
        code == 0 and shown["ranks"] == [4] and shown["metadata"] == {"role": "test"} and shown["layers"]["text_encoder"] == 0
    )
    assert command("convert", files[1], "-o", tmp_path / "peft", "--format", "peft")[0] == 0
    agree(load_adapter(tmp_path / "peft", sd), lambda name: pair(sd)[1][0].layers[name].delta)
    code, out, _ = command("combine", f"{files[0]}=0.7", f"{files[1]}=-0.5", "-o", tmp_path / "sum", "--rank", "4")
    assert code == 0 and "largest relative error" in out and "least energy retained" in out
    assert {layer.rank for layer in load_adapter(tmp_path / "sum").layers.values()} <= {2, 4}
    code, out, _ = command("compare", *files, "-o", tmp_path / "report")
    assert code == 0 and out.splitlines()[0].split()[:2] == ["layer", "norm"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "table.txt", "heat-map.png"}
    code, _, err = command("fuse", folder, f"{files[0]}=0.7", "-o", tmp_path / "fused")
    assert code == 0, err
    sd.load_adapter("0", pair(sd)[0][0])
    sd.set_adapters(["0"], [0.7])
    fused = lida.StableDiffusion.load(tmp_path / "fused")
    for name, tensor in fused.unet.state_dict().items():  # in float16, of a sum that another process made: one step of 2^-10
        assert torch.allclose(tensor, sd.unet.state_dict()[name].half().float(), rtol=2**-10, atol=1e-7), name
    assert torch.equal(fused.schedule.alphas_cumprod, sd.schedule.alphas_cumprod)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "fused")
    assert torch.equal(theirs.scheduler.alphas_cumprod, sd.schedule.alphas_cumprod)
    assert torch.equal(theirs.unet.conv_in.weight, fused.unet.conv_in.weight)
    for arguments, message in (
        (("info", "none"), "no such adapter"),
        (("combine", f"{files[0]}=x", "-o", "y"), "not a finite number"),
        (("combine", f"{files[0]}=1e39", "-o", "y"), "not a finite number"),
        (("combine", files[0], "-o", "y", "--rank", "0"), "--rank"),
        (("fuse", folder, f"{files[0]}=0.7", "-o", folder), "is the model that is read"),
        (("fuse", folder, f"{files[0]}=0.7", "-o", tmp_path), "is not empty"),
        (("fuse", folder, f"{files[0]}=1e9", "-o", tmp_path / "big"), "does not fit into torch.float16"),
        (("convert", files[0], "-o", files[0] / "x"), "give a folder that can be written to"),
        (("compare", *files, "-o", files[0]), "File exists"),
        (("combine", f"{files[0]}=1@600-0", "-o", "y"), "one weight for all blocks and timesteps"),
    ):
        code, out, err = command(*arguments)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1
