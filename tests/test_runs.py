"""Training runs as a whole: equal to diffusers + peft, exact when resumed, the same on two processes, watchful."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import diffusers
import numpy as np
import peft
import pytest
import torch
from conftest import ROOT, noise_image, relative
from diffusers.optimization import get_scheduler
from PIL import Image

import lida
from lida.amx import has_amx
from lida.data import read_examples
from lida.diffusion import mask_weights, noise_prediction_loss
from lida.lora import CROSS_ATTENTION, LoRALinear, SampleDropout, inject_lora, lora_parameters
from lida.monitor import Monitor
from lida.runs import split
from lida.training import LR_SCHEDULERS, World, checkpoints, lr_factor, write_checkpoint

ADAPTER = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def module():
    """train_lora.py as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("train_lora", ROOT / "train_lora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(module, folder, dataset, tmp_path, monkeypatch):
    """Train in this process; returns the adapter's layers."""

    def run(name: str, *more) -> dict:
        arguments = ["--pretrained_model_name_or_path", folder, "--train_data_dir", dataset, "--output_dir", tmp_path / name]
        arguments += ["--rank", 4, "--train_batch_size", 2, "--learning_rate", 1e-3, "--max_train_steps", 4, *more]
        monkeypatch.setattr(sys, "argv", ["train_lora.py", *map(str, arguments)])
        path = module.train(module.parse_args())
        return lida.load_adapter(path).layers if path else {}

    return run


def command(folder, dataset, output, *more, launcher=()) -> list[str]:
    """The same, for a process of its own."""
    arguments = ["--pretrained_model_name_or_path", folder, "--train_data_dir", dataset, "--output_dir", output, "--rank", 4]
    return [sys.executable, *map(str, launcher), str(ROOT / "train_lora.py"), *map(str, arguments), *map(str, more)]


def environment(**more) -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def assert_equal(a: dict, b: dict, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for path in a:
        for x, y in ((a[path].down, b[path].down), (a[path].up, b[path].up)):
            assert torch.equal(x, y) if tolerance == 0 else relative(x, y) <= tolerance, path


# Equal to the peers


def test_fifty_steps_are_those_of_diffusers_and_peft(module, train, folder, monkeypatch):
    """Fed with the latents, texts, noise and timesteps that the script drew; accumulation and clipping as in their scripts."""
    begun, drawn, losses = {}, [], []

    def inject(unet, *arguments):
        layers = lida.inject_lora(unet, *arguments)
        begun.update({path: layer.lora_down.detach().clone() for path, layer in layers.items()})
        return layers

    def loss(unet, schedule, latents, context, **more):
        drawn.append((latents, context, more["noise"], more["timesteps"]))
        losses.append(lida.noise_prediction_loss(unet, schedule, latents, context, **more))
        return losses[-1]

    monkeypatch.setattr(module, "inject_lora", inject)
    monkeypatch.setattr(module, "noise_prediction_loss", loss)
    trained = train("out", "--gradient_accumulation_steps", 2, "--max_train_steps", 50, "--lr_scheduler", "cosine")

    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=sorted(begun)))
    modules = dict(unet.named_modules())
    for path, down in begun.items():
        modules[path].lora_A["default"].weight.data.copy_(down)
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=50)
    assert len(drawn) == 100 and all(0.1 < latents.std() < 10 for latents, *_ in drawn)
    for i, (latents, context, noise, timesteps) in enumerate(drawn):
        noise_pred = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        theirs = torch.nn.functional.mse_loss(noise_pred, noise)
        assert abs(theirs.item() - losses[i].item()) <= 1e-4 * theirs.item()
        (theirs / 2).backward()
        if i % 2:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
    for path, layer in trained.items():
        assert relative(layer.down, modules[path].lora_A["default"].weight) <= 1e-3  # rounding, over fifty steps
        assert relative(layer.up, modules[path].lora_B["default"].weight) <= 1e-3


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_learning_rates_are_diffusers(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=40, num_cycles=3, power=2.0)
    for step in range(45):
        ours = 3e-4 * lr_factor(name, step, 5, 40, cycles=3, power=2.0, lr=3e-4)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-12), step
        optimizer.step()
        theirs.step()


# The objective


def test_the_loss_is_weighed_by_place_and_held_to_a_teacher(sd):
    torch.manual_seed(0)
    x, c = torch.randn(2, 4, 8, 8), sd.text_encoder(["a", "b"])
    noise, t, mask = torch.randn_like(x), torch.tensor([100, 700]), torch.rand(2, 1, 8, 8)
    noisy = sd.schedule.add_noise(x, noise, t)
    error = (sd.unet(noisy, t, c) - noise) ** 2
    weights = mask_weights(mask, unmasked_weight=0.1)
    loss = noise_prediction_loss(sd.unet, sd.schedule, x, c, noise, t, pixel_weights=weights)
    assert loss.item() == pytest.approx(((mask + 0.1 * (1 - mask)) * error).mean().item(), rel=1e-5)
    alike = mask_weights(mask, normalise=True)
    assert torch.allclose(alike.mean((1, 2, 3)), torch.ones(2)) and mask_weights(0 * mask, 0.0, True).sum() == 0
    held = noise_prediction_loss(sd.unet, sd.schedule, x, c, noise, t, teacher=lambda x, t, c: 0 * x + 2)
    assert held.item() == pytest.approx(((sd.unet(noisy, t, c) - 2) ** 2).mean().item(), rel=1e-5)
    assert noise_prediction_loss(sd.unet, sd.schedule, x, c, noise, t, teacher=sd.unet).item() <= 1e-5**2


def test_the_prior_holds_the_adapter_to_the_base_with_the_age_adapter(module, train, folder, dataset, tmp_path):
    """Where the new adapter is the Age-LoRA itself, nothing is left to hold; and training towards it comes nearer to it."""
    layers = train("age", "--learning_rate", 0.03, "--max_train_steps", 8)
    age = lida.Adapter(layers, {"template": "{subject} at {age}", "ages": [10, 12]})
    lida.save_adapter(tmp_path / "age-lora", age)
    sd = lida.StableDiffusion.load(folder)
    teacher, metadata = module.teacher_of(sd, tmp_path / "age-lora")
    shared = {id(p) for p in sd.unet.parameters()}
    assert sum(id(p) not in shared for p in teacher.parameters()) == len(layers)  # the rest are the very same weights
    sd.load_adapter("age", age)
    sd.set_adapters(["age"], [1.0])
    x, t, c = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), sd.text_encoder(["a", "b"])
    assert relative(teacher(x, t, c), sd.unet(x, t, c)) <= 1e-6
    sd.set_adapters([], [])
    assert module.ages_of(metadata, "a man") == ["a man at 10", "a man at 11", "a man at 12"]

    def distance(layers: dict) -> float:
        sd.load_adapter("new", lida.Adapter(layers))
        sd.set_adapters(["new"], [1.0])
        prompts = sd.text_encoder(["a person at 10", "a person at 12"])
        near = (sd.unet(x, t, prompts) - teacher(x, t, prompts)).square().mean().item()
        sd.set_adapters([], [])
        return near

    options = ("--learning_rate", 0.01, "--max_train_steps", 15, "--seed", 1)
    free, held = (
        train("free", *options),
        train("held", *options, "--prior_adapter", tmp_path / "age-lora", "--prior_weight", 20),
    )
    assert distance(held) < 0.5 * distance(free)


def test_class_pictures_add_their_loss(module, train, dataset, tmp_path, monkeypatch):
    """By turns the pictures' passes and the class's, with its captions; other noise for each."""
    shutil.copytree(dataset, tmp_path / "class", ignore=shutil.ignore_patterns("*.jsonl"))
    seen = []

    def loss(unet, schedule, latents, context, **more):
        seen.append((context, more["noise"]))
        return lida.noise_prediction_loss(unet, schedule, latents, context, **more)

    monkeypatch.setattr(module, "noise_prediction_loss", loss)
    smooth = ("--adam_epsilon", 1e-3, "--max_train_steps", 2)  # Adam magnifies the rounding of gradients near 0
    options = ("--class_data_dir", tmp_path / "class", "--class_prompt", "a person", *smooth)
    train("a", *options)
    assert len(seen) == 4
    for (own, noise), (other, other_noise) in zip(seen[::2], seen[1::2]):
        assert torch.equal(other[0], other[1]) and not torch.equal(own[0], other[0]) and not torch.equal(noise, other_noise)
    assert_equal(train("zero", *options, "--prior_loss_weight", 0), train("none", *smooth), 1e-4)


def test_dropout_depends_on_the_sample_alone():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(50, 8), 4)
    layer.lora_up.data.normal_()
    x = torch.randn(3, 7, 50)
    plain = layer(x)
    layer.dropout = SampleDropout(0.4)
    layer.dropout.seeds = [5, 6, 7]
    whole = layer(x)
    layer.dropout.seeds = [6]
    assert torch.allclose(layer(x[1:2]), whole[1:2], atol=1e-6) and not torch.allclose(whole, plain, atol=1e-2)
    layer.eval()
    assert torch.equal(layer(x), plain)
    dropout = SampleDropout(0.4)
    dropout.seeds = [1]
    kept = dropout(torch.ones(1, 100, 1000), 0)
    assert (kept == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert kept.max().item() == pytest.approx(1 / 0.6) and not torch.equal(kept, dropout(torch.ones(1, 100, 1000), 1))


def test_gradients_are_the_same_with_checkpointing(sd):
    torch.manual_seed(0)
    parameters = lora_parameters(inject_lora(sd.unet, 4).values())
    for p in parameters:
        p.data.normal_(std=0.1)
    x, t, c = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), sd.text_encoder(["a", "b"])
    gradients = []
    for on in (False, True):
        sd.unet.set_gradient_checkpointing(on)
        sd.unet(x, t, c).square().mean().backward()
        gradients.append([p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


# Options that change speed and memory, and not the result


@pytest.mark.filterwarnings("ignore:each picture is encoded anew")
def test_what_is_computed_once_is_what_would_be_computed_each_time(train, tmp_path):
    plain = train("plain", "--center_crop")
    assert_equal(train("kept", "--center_crop", "--cache_latents"), plain, 1e-4)
    assert_equal(train("disk", "--center_crop", "--cache_dir", tmp_path / "cache"), plain, 1e-4)
    assert_equal(train("again", "--center_crop", "--cache_dir", tmp_path / "cache"), plain, 1e-4)
    assert_equal(train("less", "--center_crop", "--gradient_checkpointing"), plain)
    assert_equal(train("workers", "--center_crop", "--dataloader_num_workers", 1), plain)
    with pytest.raises(lida.InputError, match="--cache_latents: pictures are cut at random"):
        train("random", "--cache_latents")


def test_in_bf16_latents_are_encoded_in_it_unless_they_are_kept(train, tmp_path):
    """As diffusers' script does; what is kept is worth float32, and a run goes on with what it began with."""
    options = ("--device", "cpu", "--mixed_precision", "bf16", "--center_crop", "--checkpointing_steps", 2)
    with pytest.warns(UserWarning, match="--cache_latents does it once"):
        each_time = train("a", *options)
    kept = train("b", *options, "--cache_latents")
    assert max(relative(kept[path].up, layer.up) for path, layer in each_time.items()) > 0.01  # bf16's rounding, by Adam
    for path, layer in kept.items():
        assert relative(layer.down, each_time[path].down) <= 0.05  # four steps of Adam, which looks at signs above all
    with pytest.raises(lida.InputError, match="vae_dtype was 'torch.bfloat16' and is 'torch.float32'"):
        train("a", *options, "--cache_latents", "--resume_from_checkpoint", "latest")


@pytest.mark.filterwarnings("ignore:each picture is encoded anew")
def test_all_options_train_something_else(train, dataset):
    """None is taken and dropped: each changes the adapter."""
    (dataset / "masks").mkdir()
    for i in range(6):
        noise_image(70, 80, i).convert("L").point(lambda v: max(v, 8)).save(dataset / "masks" / f"{i}.png")
    plain = train("plain")
    path = next(iter(plain))
    assert torch.equal(train("again")[path].up, plain[path].up)  # or chance alone would make the difference
    for k, options in enumerate([
        ("--center_crop",), ("--random_flip",), ("--noise_offset", 0.5), ("--caption_dropout", 0.9), ("--snr_gamma", 1),
        ("--mask_loss",), ("--mask_loss", "--unmasked_weight", 0.5), ("--mask_loss", "--normalize_mask_loss"),
        ("--lora_dropout", 0.5), ("--lr_scheduler", "linear"), ("--scale_lr",), ("--lora_alpha", 1), ("--train_text_encoder",),
        ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 3), ("--enable_bucket", "--bucket_reso_steps", 8),
        ("--adam_beta1", 0.5), ("--adam_beta2", 0.5), ("--adam_weight_decay", 30), ("--adam_epsilon", 1.0),
        ("--max_grad_norm", 1e-9),
        ("--num_train_epochs", 2), ("--validation_split", 0.3), ("--mixed_precision", "bf16"), ("--resolution", 32),
    ]):  # fmt: skip
        other = train(str(k), *options)
        assert relative(other[path].up, plain[path].up) > 0.01, options  # far more than rounding
        assert any(path.startswith("text_encoder.") for path in other) == ("--train_text_encoder" in options)


def test_mask_loss_wants_every_mask(train, dataset, tmp_path):
    with pytest.raises(lida.InputError) as error:
        train("a", "--mask_loss")
    assert len(error.value.args) == 6 and "0.png: has no mask masks/0.png" in error.value.args[0]
    assert not (tmp_path / "a").exists()


# Going on


def test_a_resumed_run_ends_as_one_that_never_stopped(train, tmp_path):
    options = ("--max_train_steps", 9, "--checkpointing_steps", 4, "--lora_dropout", 0.1, "--lr_scheduler", "cosine")
    whole = train("whole", *options)
    assert [path.name for path in checkpoints(tmp_path / "whole")] == ["checkpoint-8", "checkpoint-4"]
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    for name in ("checkpoint-4", str(tmp_path / "whole" / "checkpoint-8")):
        (tmp_path / "whole" / ADAPTER).unlink()
        assert_equal(train("whole", *options, "--resume_from_checkpoint", name), whole)
        again = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in again] == list(range(1, 10)) and again[-1]["loss"] == json.loads(rows[-1])["loss"]
    # Another number of passes and of pictures a pass is the same run: sixteen pictures a step either way
    (tmp_path / "whole" / ADAPTER).unlink()
    other = ("--train_batch_size", 1, "--gradient_accumulation_steps", 2, "--resume_from_checkpoint", "checkpoint-4")
    assert_equal(train("whole", *options, *other), whole, 1e-3)


def test_latest_starts_anew_where_there_is_none_and_rests_where_all_is_done(train, tmp_path, capsys):
    first = train("a", "--resume_from_checkpoint", "latest")
    assert "no checkpoint in" in capsys.readouterr().err
    written = (tmp_path / "a" / ADAPTER).stat().st_mtime_ns
    assert_equal(train("a", "--resume_from_checkpoint", "latest"), first)
    assert (tmp_path / "a" / ADAPTER).stat().st_mtime_ns == written
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 4


def test_other_settings_or_data_are_told_and_refused(train, dataset, tmp_path):
    options = ("--checkpointing_steps", 2, "--resume_from_checkpoint", "latest")
    train("a", *options)
    for more, what in (
        (("--learning_rate", 2e-3), "learning_rate was 0.001 and is 0.002"),
        (("--rank", 2), "rank was 4 and is 2"),
        (("--train_batch_size", 3), "samples_per_step was 2 and is 3"),
        (("--seed", 1, "--noise_offset", 0.1), "noise_offset was 0.0 and is 0.1; seed was 0 and is 1"),
    ):
        with pytest.raises(lida.InputError, match=what):
            train("a", *options, *more)
    (dataset / "metadata.jsonl").write_text((dataset / "metadata.jsonl").read_text().replace("10s", "11s"))
    with pytest.raises(lida.InputError, match="was trained with other settings .data was "):
        train("a", *options)
    with pytest.raises(lida.InputError, match="checkpoint-9: no such checkpoint; give a folder or latest"):
        train("a", "--resume_from_checkpoint", "checkpoint-9")


def test_a_constant_rate_may_go_on_for_longer(train, tmp_path):
    whole = train("whole", "--max_train_steps", 6)
    train("a", "--checkpointing_steps", 3)
    assert_equal(train("a", "--max_train_steps", 6, "--resume_from_checkpoint", "latest"), whole)


def test_a_checkpoint_is_whole_or_absent(train, tmp_path, monkeypatch):
    train("a", "--checkpointing_steps", 1, "--checkpoints_total_limit", 2)
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["checkpoint-3", "checkpoint-2"]
    (tmp_path / "a" / "checkpoint-9").mkdir()  # without a state
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["checkpoint-3", "checkpoint-2"]
    adapter = lida.load_adapter(tmp_path / "a" / "checkpoint-3")
    assert adapter.layers and adapter.metadata["training"]["learning_rate"] == 1e-3

    def fail(part):
        (part / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        lida.InputError, match="checkpoint-4: cannot be written .*No space left.*last whole one is checkpoint-3"
    ):
        write_checkpoint(tmp_path / "a", 4, {}, fail, None)
    assert not list((tmp_path / "a").glob("writing-*")) and not (tmp_path / "a" / "checkpoint-4").exists()


def test_killed_at_any_moment_it_goes_on_to_the_same_adapter(train, folder, dataset, tmp_path, one_thread):
    """kill -9 while it trains and writes checkpoints; then SIGTERM; then to the end."""
    options = (
        "--train_batch_size",
        2,
        "--max_train_steps",
        60,
        "--checkpointing_steps",
        3,
        "--resume_from_checkpoint",
        "latest",
    )
    options += ("--checkpoints_total_limit", 2, "--learning_rate", 1e-3)
    train("whole", *options)
    rng, started, errors = np.random.default_rng(0), [], ""
    for kill in (signal.SIGKILL, signal.SIGTERM):
        run = subprocess.Popen(
            command(folder, dataset, tmp_path / "cut", *options), env=environment(), stderr=subprocess.PIPE, text=True
        )
        before = len(metrics(tmp_path / "cut"))
        while len(metrics(tmp_path / "cut")) < before + 4 and run.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        run.send_signal(kill)
        errors = run.communicate()[1]
        started.append(run.returncode)
    assert (
        started == [-9, 128 + 15]
        and "stopped after step " in errors
        and "go on with --resume_from_checkpoint latest" in errors
    )
    last = subprocess.run(
        command(folder, dataset, tmp_path / "cut", *options), env=environment(), capture_output=True, text=True
    )
    assert last.returncode == 0, last.stderr
    assert (tmp_path / "cut" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert [row["loss"] for row in metrics(tmp_path / "cut")] == [row["loss"] for row in metrics(tmp_path / "whole")]


def metrics(folder) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def test_a_full_disk_costs_no_checkpoint(train, folder, dataset, tmp_path, one_thread):
    """Files may grow to 100 kB at first: checkpoints of rank 4 do not fit, and nothing half-written stays."""
    options = (
        "--train_batch_size",
        2,
        "--max_train_steps",
        4,
        "--checkpointing_steps",
        2,
        "--resume_from_checkpoint",
        "latest",
    )

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = subprocess.run(
        command(folder, dataset, tmp_path / "a", *options), env=environment(), capture_output=True, text=True, preexec_fn=small
    )
    assert full.returncode == 2 and "cannot be written" in full.stderr and "free space" in full.stderr
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["metrics.jsonl"]
    assert_equal(*(train(name, "--learning_rate", 1e-4, *options) for name in "ab"))


# More than one process


def test_two_processes_train_as_one(train, folder, dataset, tmp_path):
    """Half the pictures each, started by torchrun; one of them writes."""
    options = ("--max_train_steps", 5, "--learning_rate", 1e-3, "--random_flip", "--caption_dropout", 0.3)
    options += ("--lora_dropout", 0.2, "--adam_epsilon", 1e-3)  # Adam magnifies the rounding of gradients near 0
    one = train("one", "--train_batch_size", 4, *options)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    two = subprocess.run(
        command(folder, dataset, tmp_path / "two", "--train_batch_size", 2, *options, launcher=launcher), env=environment()
    )
    assert two.returncode == 0
    assert_equal(lida.load_adapter(tmp_path / "two").layers, one, 1e-4)
    pairs = zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["step"] == b["step"] for a, b in pairs)


def test_where_one_process_dies_all_end_and_the_run_goes_on(train, folder, dataset, tmp_path):
    options = (
        "--train_batch_size",
        1,
        "--max_train_steps",
        20,
        "--checkpointing_steps",
        2,
        "--resume_from_checkpoint",
        "latest",
    )
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    start = command(folder, dataset, tmp_path / "a", *options, launcher=launcher)
    run = subprocess.Popen(start, env=environment(), stderr=subprocess.PIPE, text=True)
    while not checkpoints(tmp_path / "a") and run.poll() is None:
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode != 0 and not (tmp_path / "a" / ADAPTER).exists()
    again = subprocess.run(start, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    alone = train("b", *options[2:], "--train_batch_size", 2, "--learning_rate", 1e-4)
    assert_equal(lida.load_adapter(tmp_path / "a").layers, alone, 1e-3)


def in_namespaces() -> bool:
    """Whether network namespaces can be made here."""
    if not shutil.which("ip") or os.geteuid():
        return False
    probe = f"lida-probe-{os.getpid()}"  # of this process alone: tests may run in several
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return made


@pytest.mark.full
@pytest.mark.skipif(not in_namespaces(), reason="wants root and network namespaces")
def test_two_hosts_train_as_one(train, folder, dataset, tmp_path):
    """Two nodes that meet over a cable between two network namespaces."""
    names, address = ("lida-a", "lida-b"), "10.231.7.1"
    ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)  # noqa: E731
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "lida-va", "netns", names[0], "type", "veth", "peer", "name", "lida-vb", "netns", names[1])
        for name, device, last in zip(names, ("lida-va", "lida-vb"), (1, 2)):
            ip("-n", name, "addr", "add", f"10.231.7.{last}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        options = ("--max_train_steps", 3, "--learning_rate", 1e-3, "--adam_epsilon", 1e-3)
        runs = []
        for rank, (name, device) in enumerate(zip(names, ("lida-va", "lida-vb"))):
            launcher = ("-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1)
            launcher += ("--master_addr", address, "--master_port", 29731)
            start = command(folder, dataset, tmp_path / "two", "--train_batch_size", 2, *options, launcher=launcher)
            runs.append(subprocess.Popen(["ip", "netns", "exec", name, *start], env=environment(GLOO_SOCKET_IFNAME=device)))
        assert [run.wait(120) for run in runs] == [0, 0]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    one = train("one", "--train_batch_size", 4, *options)
    assert_equal(lida.load_adapter(tmp_path / "two").layers, one, 1e-4)


# Seeing and watching


def test_what_a_run_shows(train, dataset, tmp_path):
    options = ("--validation_split", 0.3, "--validation_prompt", "a man", "--validation_steps", 2, "--num_validation_images", 2)
    train("a", *options, "--report_to", "tensorboard", "--max_train_steps", 5)
    rows = metrics(tmp_path / "a")
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4, 5, 5]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 3 and len(set(losses)) == 3
    steps = [row for row in rows if "loss" in row]
    assert steps[0]["smoothed"] == steps[0]["loss"] and all(row["lr"] == 1e-3 and row["gradient_norm"] > 0 for row in steps)
    sheet = Image.open(tmp_path / "a" / "samples.png")
    assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir()) == ["000002.png", "000004.png", "000005.png"]
    assert sheet.height == 3 * Image.open(tmp_path / "a" / "samples" / "000002.png").height
    assert list((tmp_path / "a" / "tensorboard").iterdir()) and Image.open(tmp_path / "a" / "loss.png").width > 500
    kept, held = split(read_examples(dataset), 0.3, 0)
    assert len(held) == 2 and len(kept) == 4 and not set(e.path for e in held) & set(e.path for e in kept)


def test_the_validation_loss_changes_with_the_adapter_alone(train, tmp_path):
    """The same noise and timesteps each time: where nothing is learnt it stays, to the bit."""
    train("a", "--validation_split", 0.3, "--validation_steps", 1, "--learning_rate", 1e-30, "--lora_dropout", 0.3)
    losses = [row["validation_loss"] for row in metrics(tmp_path / "a") if "validation_loss" in row]
    assert len(losses) == 4 and len(set(losses)) == 1


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(tmp_path):
    monitor = Monitor(tmp_path, 20, 2, max_skipped=3)
    monitor.begin(0)
    assert monitor.step(1, 1.0, 1e-4, 1.0) and not monitor.step(2, float("nan"), 1e-4, 1.0)
    assert not monitor.step(3, 1.0, 1e-4, float("inf")) and monitor.step(4, 1.0, 1e-4, 1.0)
    assert monitor.average == 1.0 and monitor.skipped == 2
    monitor.step(5, float("inf"), 1e-4, 1.0)
    monitor.step(6, float("inf"), 1e-4, 1.0)
    with pytest.raises(lida.InputError, match="the loss was not finite for 3 steps in a row, up to 7; lower --learning_rate"):
        monitor.step(7, float("nan"), 1e-4, 1.0)
    with pytest.warns(UserWarning, match="5 steps were skipped"):
        monitor.end()


def test_a_run_whose_loss_explodes_says_so(train, tmp_path, monkeypatch, module):
    with pytest.raises(lida.InputError, match="not finite for 10 steps in a row"):
        monkeypatch.setattr(module, "noise_prediction_loss", lambda *a, **k: noise_prediction_loss(*a, **k) * float("nan"))
        train("nan", "--max_train_steps", 50)
    assert not (tmp_path / "nan" / ADAPTER).exists()
    monkeypatch.undo()
    monitor = Monitor(tmp_path, 400, 2)
    monitor.begin(0)
    monitor.step(1, 0.1, 1e-2, 1.0)
    with pytest.warns(UserWarning, match="the loss has risen to .* from 0.100: --learning_rate 1.0e-02 may be too high"):
        for step in range(2, 100):
            monitor.step(step, 1.0, 1e-2, 1.0)


def test_an_adapter_that_did_not_move_is_not_saved(train, tmp_path):
    with pytest.raises(lida.InputError, match="the adapter did not move"):
        train("a", "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 1000, "--max_train_steps", 1)
    assert not (tmp_path / "a" / ADAPTER).exists()


def test_a_dry_run_checks_and_plans_and_writes_nothing(train, tmp_path, capsys):
    assert train("a", "--dry_run", "--enable_bucket", "--bucket_reso_steps", 8, "--random_flip") == {}
    out = capsys.readouterr().out
    for line in (
        "pictures: 6, in sizes 56x72 (6)",
        "steps: 4 of 2 pictures, 1.3 epochs",
        "trained: ",
        "time: ",
        "memory: ",
        "disk: ",
    ):
        assert line in out
    assert not list((tmp_path / "a").iterdir())


def test_what_a_gpu_alone_can_do_ends_in_one_line(train):
    for options, message in (
        (
            ("--mixed_precision", "fp16"),
            "--mixed_precision fp16: needs a CUDA GPU, and the device is cpu; bf16 works there too",
        ),
        (("--use_8bit_adam",), "--use_8bit_adam: needs a CUDA GPU, and the device is cpu; leave it out"),
        (("--enable_xformers_memory_efficient_attention",), "needs a CUDA GPU, not cpu; leave it out"),
    ):
        with pytest.raises(lida.InputError, match=message):
            train("a", "--device", "cpu", *options)


def test_attention_runs_on_the_best_kernel_that_is_there(train, tmp_path):
    """In bf16 on the CPU; and a run begun on one may go on with another."""
    options = ("--device", "cpu", "--mixed_precision", "bf16", "--checkpointing_steps", 2)
    chosen, others = train("a", *options), train("b", *options, "--attention", "einsum")
    told = lida.load_adapter(tmp_path / "a").metadata["training"]["attention"]
    assert told == ("amx" if has_amx(torch.bfloat16, torch.device("cpu")) else "sdpa")
    for path, layer in chosen.items():
        assert relative(layer.down, others[path].down) <= 0.05  # bf16, after four steps of Adam, which looks at signs above all
    (tmp_path / "b" / lida.adapters.FILE_NAME).unlink()
    train("b", *options, "--resume_from_checkpoint", "latest")
    assert lida.load_adapter(tmp_path / "b").metadata["training"]["attention"] == told
    for options in (("--device", "cuda"), ("--mixed_precision", "no")):
        with pytest.raises(lida.InputError, match="attention amx: is for bfloat16 on the CPU, not "):
            train("c", "--attention", "amx", *options)


def test_out_of_memory_names_what_helps(module, train, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr(module, "train", fail)
    monkeypatch.setattr(sys, "argv", ["train_lora.py", "--train_data_dir", "x", "--output_dir", "y"])
    with pytest.raises(lida.InputError, match="out of memory .*what helps: --cache_latents, --mixed_precision bf16, "):
        module.main()


def test_gradients_are_averaged_over_processes_and_alone_left_as_they_are():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.arange(3.0)
    assert World().average([p], [2.0, 1.0]) == [2.0, 1.0] and torch.equal(p.grad, torch.arange(3.0))
    assert CROSS_ATTENTION[0] == "attn2.to_q"
