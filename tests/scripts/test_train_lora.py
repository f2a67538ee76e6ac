"""train_lora.py as a whole: equal to diffusers + peft, exact when resumed, the same on two processes, and every bad input."""

import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import diffusers
import numpy as np
import peft
import pytest
import torch
from conftest import ROOT, SCHEDULE, VAE, noise_image, relative
from diffusers.optimization import get_scheduler
from launching import Launched, ranks
from transformers import CLIPTextConfig, CLIPTextModel

import lida
from lida.data.folder import data_fingerprint, read_examples
from lida.diffusion import noise_prediction_loss
from lida.doors.files import locked
from lida.kernels import fastest_attention
from lida.training.caches import LatentCache
from lida.training.state import checkpoints

ADAPTER, ABOUT = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.json"
SMOOTH = ("--adam_epsilon", 1e-3)  # Adam magnifies the rounding of gradients near 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A smaller model than the other tests have: latents of 4 x 4 for pictures of 32 px, two resolutions."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("smallest")
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="quick_gelu", **ends,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=48,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(**{**VAE, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": 32})
    parts = (vae, CLIPTextModel(text), tokenizer, unet, diffusers.DDIMScheduler(**SCHEDULE))
    diffusers.StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def module():
    """train_lora.py as a module."""
    spec = importlib.util.spec_from_file_location("train_lora", ROOT / "train_lora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(folder, dataset, tmp_path):
    """The command line of a run with this name."""

    def make(name: str, *more) -> list[str]:
        given = ["--pretrained_model_name_or_path", folder, "--train_data_dir", dataset, "--output_dir", tmp_path / name]
        given += ["--device", "cpu", "--rank", 4, "--train_batch_size", 2, "--learning_rate", 1e-3, "--max_train_steps", 4]
        return [str(argument) for argument in (*given, *more)]

    return make


@pytest.fixture
def train(module, arguments, monkeypatch):
    """Train in this process; returns the adapter's layers."""

    def run(name: str, *more) -> dict:
        monkeypatch.setattr(sys, "argv", ["train_lora.py", *arguments(name, *more)])
        return lida.load_adapter(module.train(module.parse_args())).layers

    return run


@pytest.fixture
def command(arguments, monkeypatch, capsys):
    """Run the script in this process; returns exit code, standard output and standard error."""

    def run(name: str, *more) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train_lora.py", *arguments(name, *more)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "train_lora.py"), run_name="__main__")
        except SystemExit as error:
            code = error.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def launch(arguments, tmp_path):
    """Start the script in a process of its own."""

    def start(name: str, *more, **options) -> Launched:
        return Launched(*arguments(name, *more), log=tmp_path / f"{name}.log", **options)

    return start


def assert_equal(a: dict, b: dict, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys() and a
    for path in a:
        for x, y in ((a[path].down, b[path].down), (a[path].up, b[path].up)):
            assert torch.equal(x, y) if tolerance == 0 else relative(x, y) <= tolerance, path


def metrics(folder) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


# Equal to the peers


def test_thirty_steps_are_those_of_diffusers_and_peft(module, train, folder, monkeypatch):
    """Fed with the latents, texts, noise and timesteps that the script drew; accumulation and clipping as in their scripts."""
    begun, drawn, losses = {}, [], []

    def inject(unet, **options):
        layers = lida.inject_lora(unet, **options)
        begun.update({path: layer.lora_down.detach().clone() for path, layer in layers.items()})
        return layers

    def loss(unet, schedule, latents, context, **more):
        drawn.append((latents, context, more["noise"], more["timesteps"]))
        losses.append(noise_prediction_loss(unet, schedule, latents, context, **more))
        return losses[-1]

    monkeypatch.setattr(module, "inject_lora", inject)
    monkeypatch.setattr(module, "noise_prediction_loss", loss)
    trained = train("out", "--gradient_accumulation_steps", 2, "--max_train_steps", 30, "--lr_scheduler", "cosine")

    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=sorted(begun)))
    modules = dict(unet.named_modules())
    for path, down in begun.items():
        modules[path].lora_A["default"].weight.data.copy_(down)
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=30)
    assert len(drawn) == 60 and all(0.1 < latents.std() < 10 for latents, *_ in drawn)
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
        assert relative(layer.down, modules[path].lora_A["default"].weight) <= 1e-3  # rounding, over thirty steps
        assert relative(layer.up, modules[path].lora_B["default"].weight) <= 1e-3


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_learning_rates_are_diffusers(module, name):
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = get_scheduler(name, reference, num_warmup_steps=5, num_training_steps=40)
    args = Namespace(learning_rate=3e-4, lr_scheduler=name, lr_warmup_steps=5, max_train_steps=40)
    for step in range(40):
        assert module.learning_rate(step, args) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6, abs=1e-12), step
        reference.step()
        schedule.step()


# The objective


def test_class_pictures_add_their_loss(module, train, dataset, tmp_path, monkeypatch):
    """In each micro-batch the pictures' pass and the class's, with its captions; other noise for each."""
    shutil.copytree(dataset, tmp_path / "class", ignore=shutil.ignore_patterns("*.jsonl"))
    seen = []

    def loss(unet, schedule, latents, context, **more):
        seen.append((context, more["noise"]))
        return noise_prediction_loss(unet, schedule, latents, context, **more)

    monkeypatch.setattr(module, "noise_prediction_loss", loss)
    options = ("--class_data_dir", tmp_path / "class", "--class_prompt", "a person", *SMOOTH, "--max_train_steps", 2)
    train("a", *options)
    assert len(seen) == 4
    for (own, noise), (other, other_noise) in zip(seen[::2], seen[1::2]):
        assert torch.equal(other[0], other[1]) and not torch.equal(own[0], other[0]) and not torch.equal(noise, other_noise)
    none = train("none", *SMOOTH, "--max_train_steps", 2)
    assert_equal(train("zero", *options, "--prior_loss_weight", 0), none, 1e-4)


# Options that change speed and memory, and not the result


def test_what_is_computed_once_is_what_would_be_computed_each_time(train, tmp_path):
    plain = train("plain", "--center_crop", *SMOOTH)
    assert_equal(train("kept", "--center_crop", "--cache_latents", *SMOOTH), plain, 1e-4)
    kept = train("disk", "--center_crop", "--cache_dir", tmp_path / "cache", *SMOOTH)
    assert_equal(kept, plain, 1e-4)
    assert_equal(train("again", "--center_crop", "--cache_dir", tmp_path / "cache", *SMOOTH), kept)
    assert_equal(train("less", "--center_crop", "--gradient_checkpointing", *SMOOTH), plain)
    assert_equal(train("workers", "--center_crop", "--dataloader_num_workers", 1, *SMOOTH), plain)


def test_no_picture_is_encoded_that_the_run_does_not_see(train, monkeypatch):
    encoded, encode = [], LatentCache.encode
    monkeypatch.setattr(LatentCache, "encode", lambda self, *key: encoded.append(key) or encode(self, *key))
    train("a", "--center_crop", "--cache_latents", "--train_batch_size", 1, "--max_train_steps", 2)
    assert len(encoded) == len(set(encoded)) == 2


def test_in_bf16_latents_are_encoded_in_it_unless_they_are_kept(train):
    """As in diffusers' script; cached latents are in float32, and a resumed run uses the kind it started with."""
    options = ("--mixed_precision", "bf16", "--center_crop", "--checkpointing_steps", 2)
    each_time = train("a", *options)
    kept = train("b", *options, "--cache_latents")
    assert max(relative(kept[path].up, layer.up) for path, layer in each_time.items()) > 0.01  # bf16's rounding, by Adam
    for path, layer in kept.items():
        assert relative(layer.down, each_time[path].down) <= 0.05  # four steps of Adam, which looks at signs above all
    with pytest.raises(lida.InputError, match="vae_dtype was 'torch.bfloat16' and is 'torch.float32'"):
        train("a", *options, "--cache_latents", "--resume_from_checkpoint", "latest")


def test_attention_runs_on_the_fastest_kernel_and_a_run_may_go_on_with_another(train, tmp_path):
    options = ("--mixed_precision", "bf16", "--checkpointing_steps", 2)
    chosen, others = train("a", *options), train("b", *options, "--attention", "einsum")
    used = lida.load_adapter(tmp_path / "a").metadata["training"]["attention"]
    assert used == fastest_attention(torch.bfloat16, "cpu", 16)
    for path, layer in chosen.items():
        assert relative(layer.down, others[path].down) <= 0.05  # bf16, after four steps of Adam
    (tmp_path / "b" / ADAPTER).unlink()
    train("b", *options, "--resume_from_checkpoint", "latest")
    assert lida.load_adapter(tmp_path / "b").metadata["training"]["attention"] == used
    with pytest.raises(lida.InputError, match="attention flash_cpu: is for bfloat16 on the CPU, not float32"):
        train("c", "--attention", "flash_cpu")


def test_training_in_bf16_is_training_but_for_rounding(train, tmp_path):
    losses = []
    for kind in ("no", "bf16"):
        layers = train(kind, "--mixed_precision", kind, "--max_train_steps", 3)
        losses.append(lida.load_adapter(tmp_path / kind).metadata["training"]["final_loss"])
        assert all(layer.down.dtype == torch.float32 for layer in layers.values())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=2**-8)


# Options that change the result


@pytest.mark.filterwarnings("ignore:--max_train_steps 3. does nothing beside --num_train_epochs")
def test_all_options_train_something_else(train, dataset):
    """No option is accepted and ignored: each changes the adapter."""
    (dataset / "masks").mkdir()
    for i in range(6):
        noise_image(70, 80, i).convert("L").point(lambda v: max(v, 8)).save(dataset / "masks" / f"{i}.png")
    plain = train("plain", "--max_train_steps", 3)
    path = next(iter(plain))
    assert torch.equal(train("again", "--max_train_steps", 3)[path].up, plain[path].up)  # otherwise chance alone would differ
    for k, options in enumerate([
        ("--center_crop",), ("--random_flip",), ("--noise_offset", 0.5), ("--caption_dropout", 0.9), ("--snr_gamma", 1),
        ("--mask_loss",), ("--mask_loss", "--unmasked_weight", 0.5), ("--mask_loss", "--normalize_mask_loss"),
        ("--lora_dropout", 0.5), ("--lr_scheduler", "linear"), ("--lora_alpha", 1), ("--train_text_encoder",),
        ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 2), ("--adam_beta1", 0.5), ("--adam_beta2", 0.5),
        ("--adam_weight_decay", 30), ("--adam_epsilon", 1.0), ("--max_grad_norm", 1e-9), ("--num_train_epochs", 2),
        ("--validation_split", 0.3), ("--mixed_precision", "bf16"), ("--resolution", 64), ("--seed", 1),
    ]):  # fmt: skip
        other = train(str(k), "--max_train_steps", 3, *options)
        assert relative(other[path].up, plain[path].up) > 0.01, options  # far more than rounding
        assert any(path.startswith("text_encoder.") for path in other) == ("--train_text_encoder" in options)


def test_samples_of_one_caption_have_a_dropout_of_their_own(train, dataset):
    (dataset / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{i}.png", "text": "a man"}) for i in range(6)))
    assert train("a", "--lora_dropout", 0.3, "--train_text_encoder", "--max_train_steps", 2)


def test_training_reads_other_columns_and_balances_by_one(train, dataset, tmp_path):
    """With each decade once in a hundred but one, seen equally often; the file's name in a column of its own."""
    lines = [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]
    rows = [{"pic": row["file_name"], "said": row["text"], "decade": i % 2} for i, row in enumerate(lines)]
    (dataset / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train("a", "--max_train_steps", 1, "--image_column", "pic", "--caption_column", "said", "--balance_column", "decade")
    assert json.loads((tmp_path / "a" / ABOUT).read_text())["data"]["count"] == 6


# What is written


def test_an_adapter_says_where_it_comes_from_and_names_no_place(train, folder, dataset, tmp_path):
    """Base, role, data and settings stand in its header; paths only in the JSON beside it."""
    options = ("--role", "identity", "--consent", "hers, 2026", "--center_crop", "--cache_dir", tmp_path / "c")
    train("a", "--max_train_steps", 1, *options)
    about, sd = lida.load_adapter(tmp_path / "a").metadata, lida.StableDiffusion.load(folder)
    assert about["base"] == sd.base and about["base"]["unet"] == sd.unet.fingerprint and len(sd.unet.fingerprint) == 64
    assert about["role"] == "identity" and about["consent"] == "hers, 2026" and about["rank"] == about["alpha"] == 4
    assert about["training"]["learning_rate"] == 1e-3 and "licence" not in about
    for place in (str(tmp_path), str(folder), str(dataset)):
        assert place not in json.dumps(about)
    beside = json.loads((tmp_path / "a" / ABOUT).read_text())
    assert beside["training"]["train_data_dir"] == str(dataset)
    assert {**beside["training"], **about["training"]} == beside["training"]
    (tmp_path / "other").mkdir()
    lines = (dataset / "metadata.jsonl").read_text().splitlines()[::-1]
    for number, line in enumerate(lines):
        name = json.loads(line)["file_name"]
        (tmp_path / "other" / f"renamed{number}.png").write_bytes((dataset / name).read_bytes())
        lines[number] = line.replace(name, f"renamed{number}.png")
    (tmp_path / "other" / "metadata.jsonl").write_text("\n".join(lines))
    assert data_fingerprint(read_examples(tmp_path / "other")) == about["data"] and about["data"]["count"] == 6
    assert data_fingerprint(read_examples(dataset)[1:]) != about["data"]


def test_an_output_folder_may_have_any_name(train, tmp_path):
    """A folder named like an adapter's file must not cost the run its adapter."""
    assert train("age.safetensors", "--max_train_steps", 1)
    assert (tmp_path / "age.safetensors" / ADAPTER).is_file()


@pytest.mark.parametrize("name", ["samples/holiday.png", "samples.png", "metrics.jsonl", ABOUT, "README.md"])
def test_a_folder_with_files_of_the_users_is_refused(command, tmp_path, name):
    path = tmp_path / "a" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    code, _, err = command("a", "--max_train_steps", 1)
    assert code == 2 and "was not written by train_lora.py" in err and path.read_text() == "mine"


@pytest.mark.filterwarnings("default:step 1. nothing is measured")
def test_a_last_validation_without_memory_does_not_cost_the_adapter(command, tmp_path, monkeypatch):
    def painted(*arguments):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("lida.training.monitor.save_image", painted)
    code, _, err = command("a", "--validation_prompt", "a man", "--num_validation_images", 1, "--max_train_steps", 1)
    assert code == 0 and "nothing is measured or painted: out of memory" in err and (tmp_path / "a" / ADAPTER).exists()


def test_a_run_writes_metrics_and_sample_pictures(train, tmp_path):
    options = ("--validation_prompt", "a man", "--validation_steps", 2, "--num_validation_images", 2)
    options += ("--mixed_precision", "bf16", "--lora_dropout", 0.1, "--train_text_encoder")
    train("a", *options, "--report_to", "tensorboard", "--max_train_steps", 5)
    rows = metrics(tmp_path / "a")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["smoothed"] == rows[0]["loss"] and all(row["lr"] == 1e-3 and row["gradient_norm"] > 0 for row in rows)
    assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir()) == ["000002.png", "000004.png", "000005.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md", "metrics.jsonl", ABOUT, ADAPTER, "samples", "samples.png", "tensorboard",
    ]  # fmt: skip


def test_the_validation_loss_changes_with_the_adapter_alone(train, tmp_path):
    """The same noise and timesteps each time, without dropout: where nothing is learnt it stays, to the bit."""
    options = ("--validation_split", 0.3, "--validation_steps", 2, "--lora_dropout", 0.3, "--train_text_encoder")
    for name, more, different in (("still", ("--adam_epsilon", 1e30), 1), ("learns", (), 3)):
        train(name, *options, *more, "--max_train_steps", 5)
        rows = metrics(tmp_path / name)
        assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4, 5, 5]
        losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
        assert len(losses) == 3 and len(set(losses)) == different


# Going on


def test_a_resumed_run_ends_as_one_that_never_stopped(train, tmp_path):
    options = ("--max_train_steps", 9, "--checkpointing_steps", 4, "--lora_dropout", 0.1, "--lr_scheduler", "cosine")
    options += ("--center_crop", "--random_flip", "--cache_latents", "--caption_dropout", 0.3)
    whole = train("whole", *options)
    assert [path.name for path in checkpoints(tmp_path / "whole")] == ["checkpoint-8", "checkpoint-4"]
    rows = metrics(tmp_path / "whole")
    for name in ("checkpoint-4", str(tmp_path / "whole" / "checkpoint-8")):
        assert_equal(train("whole", *options, "--resume_from_checkpoint", name), whole)
        again = metrics(tmp_path / "whole")
        assert [row["step"] for row in again] == list(range(1, 10)) and again[-1]["loss"] == rows[-1]["loss"]
        assert again[-1]["smoothed"] == rows[-1]["smoothed"]
    # Another number of passes and of pictures a pass is the same run: two pictures a step either way
    other = ("--train_batch_size", 1, "--gradient_accumulation_steps", 2, "--resume_from_checkpoint", "checkpoint-4")
    assert_equal(train("whole", *options, *other), whole, 1e-3)


def test_latest_starts_anew_where_there_is_none_and_rests_where_all_is_done(train, tmp_path, capsys):
    first = train("a", "--resume_from_checkpoint", "latest")
    assert "no checkpoint in" in capsys.readouterr().err
    written = (tmp_path / "a" / ADAPTER).stat().st_mtime_ns
    assert_equal(train("a", "--resume_from_checkpoint", "latest"), first)
    assert (tmp_path / "a" / ADAPTER).stat().st_mtime_ns == written
    assert len(metrics(tmp_path / "a")) == 4


@pytest.mark.parametrize("damage", ["truncated", "of another run", "absent"])
def test_a_finished_run_writes_its_adapter_again_if_the_file_is_damaged(train, tmp_path, damage):
    options = ("--checkpointing_steps", 3, "--resume_from_checkpoint", "latest")
    whole, path = train("a", *options), tmp_path / "a" / ADAPTER
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        path.unlink()
    else:
        train("b", "--seed", 1)
        shutil.copy(tmp_path / "b" / ADAPTER, path)
    assert_equal(train("a", *options), whole)


@pytest.mark.parametrize("place", ["save_adapter", "write_json", "os.replace"])
def test_a_run_that_is_killed_while_it_saves_its_adapter_goes_on(train, tmp_path, monkeypatch, place):
    """Without a checkpoint: from the beginning. Nothing that it left is taken for a finished run."""

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place if place == "os.replace" else f"lida.training.run.{place}", killed)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # nothing is cleaned up
        train("a", "--resume_from_checkpoint", "latest")
    assert not (tmp_path / "a" / ADAPTER).exists()
    assert_equal(train("a", "--resume_from_checkpoint", "latest"), train("b"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["README.md", "metrics.jsonl", ABOUT, ADAPTER]


def test_an_earlier_run_is_not_overwritten_without_a_word(train, tmp_path):
    train("a", "--checkpointing_steps", 2)
    before = (tmp_path / "a" / ADAPTER).read_bytes()
    for options, message in (
        ((), f"a: has {ADAPTER} of an earlier run; --resume_from_checkpoint latest .*--overwrite_output_dir starts anew"),
        (("--overwrite_output_dir", "--resume_from_checkpoint", "latest"), "give one of them"),
    ):
        with pytest.raises(lida.InputError, match=message):
            train("a", "--seed", 1, *options)
    (tmp_path / "a" / ADAPTER).rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(lida.InputError, match="a: has checkpoint-2 of an earlier run"):
        train("a", "--seed", 1)
    shutil.move(tmp_path / "elsewhere.safetensors", tmp_path / "a" / ADAPTER)
    shutil.rmtree(tmp_path / "a" / "checkpoint-2")
    with pytest.raises(lida.InputError, match="of an earlier run"):  # of other settings
        train("a", "--seed", 1, "--resume_from_checkpoint", "latest")
    assert (tmp_path / "a" / ADAPTER).read_bytes() == before
    train("a", "--seed", 1, "--overwrite_output_dir", "--checkpointing_steps", 3)
    assert (tmp_path / "a" / ADAPTER).read_bytes() != before and len(metrics(tmp_path / "a")) == 4
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["checkpoint-3"]


def test_one_run_at_a_time_writes_to_a_folder(train, tmp_path):
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"), pytest.raises(lida.InputError, match="a: in use by another process"):
        train("a")
    assert train("a")


def test_other_settings_or_data_are_named_and_refused(train, dataset):
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


def test_a_constant_rate_may_go_on_for_longer(train):
    whole = train("whole", "--max_train_steps", 6)
    train("a", "--checkpointing_steps", 3)
    assert_equal(train("a", "--max_train_steps", 6, "--resume_from_checkpoint", "latest"), whole)
    with pytest.raises(lida.InputError, match="--max_train_steps 2: 3 have been taken already"):
        train("a", "--max_train_steps", 2, "--resume_from_checkpoint", "latest")


def test_a_run_goes_on_past_a_damaged_checkpoint(train, tmp_path):
    whole = train("a", "--checkpointing_steps", 1)
    (tmp_path / "a" / ADAPTER).unlink()
    state = tmp_path / "a" / "checkpoint-3" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    (tmp_path / "a" / "metrics.jsonl").write_bytes(b"\xff\xfe\n" + (tmp_path / "a" / "metrics.jsonl").read_bytes())
    with pytest.warns() as caught:
        assert_equal(train("a", "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest"), whole)
    texts = [str(warning.message) for warning in caught]
    assert any("checkpoint-3/state.pt: is damaged" in text and "the last complete one, checkpoint-2" in text for text in texts)
    assert any("metrics.jsonl: 1 of its lines cannot be read" in text for text in texts)
    assert [row["step"] for row in metrics(tmp_path / "a")] == [1, 2, 3, 4]


def test_killed_at_any_moment_it_goes_on_to_the_same_adapter(launch, tmp_path):
    """kill -9 while it trains and writes checkpoints, twice; then SIGTERM; then to the end."""
    options = ("--max_train_steps", 40, "--checkpointing_steps", 3, "--checkpoints_total_limit", 2)
    options += ("--resume_from_checkpoint", "latest", "--center_crop", "--cache_latents")
    whole = launch("whole", *options)
    assert whole.wait() == 0, whole.log.read_text()
    rng, ended = np.random.default_rng(0), []
    for kill in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        run, before = launch("cut", *options), len(metrics(tmp_path / "cut"))
        while len(metrics(tmp_path / "cut")) < before + 4 and run.is_alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(run.pid, kill)
        ended.append(run.wait())
    log = run.log.read_text()
    assert ended == [-9, -9, 128 + 15] and "stopped after step " in log and "go on with --resume_from_checkpoint latest" in log
    last = launch("cut", *options)
    assert last.wait() == 0, last.log.read_text()
    assert (tmp_path / "cut" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    assert [row["loss"] for row in metrics(tmp_path / "cut")] == [row["loss"] for row in metrics(tmp_path / "whole")]


def test_a_full_disk_costs_no_checkpoint(launch, tmp_path):
    """Files may grow to 30 kB at first: checkpoints of rank 4 do not fit, and nothing half-written stays."""
    options = ("--checkpointing_steps", 2, "--resume_from_checkpoint", "latest")
    full = launch("a", *options, largest_file=30_000)
    assert full.wait() == 2
    last = full.log.read_text().strip().splitlines()[-1]
    assert "checkpoint-2: cannot be written" in last and "make room or give another place" in last
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["metrics.jsonl"]
    assert [launch(name, *options).wait() for name in "ab"] == [0, 0]
    assert (tmp_path / "a" / ADAPTER).read_bytes() == (tmp_path / "b" / ADAPTER).read_bytes()


@pytest.mark.parametrize("place", [
    "lida.training.run.save_adapter", "lida.training.run.write_json", "lida.training.monitor.save_image", "builtins.open",
])  # fmt: skip
def test_a_full_disk_anywhere_ends_in_one_line(command, tmp_path, monkeypatch, place):
    opened = open

    def full(*arguments, **options):
        if place == "builtins.open" and not str(arguments[0]).endswith("metrics.jsonl"):
            return opened(*arguments, **options)
        raise OSError(28, "No space left on device", str(tmp_path / "file"))

    monkeypatch.setattr(place, full)
    code, out, err = command("a", "--validation_prompt", "a man", "--num_validation_images", 1, "--max_train_steps", 1)
    monkeypatch.undo()
    assert code == 2 and not out and "No space left" in err.strip().splitlines()[-1] and "Traceback" not in err
    assert not {path.name for path in (tmp_path / "a").iterdir()} - {
        "README.md",
        "metrics.jsonl",
        "samples",
        "samples.png",
        ABOUT,
    }


# More than one process


def test_two_processes_train_as_one(launch, tmp_path):
    """Half the pictures each; one of them writes."""
    options = ("--max_train_steps", 5, "--center_crop", "--random_flip", "--caption_dropout", 0.3, "--cache_latents")
    options += ("--lora_dropout", 0.2, *SMOOTH)
    two = [launch("two", *options, env=env) for env in ranks(2)]
    one = launch("one", *options, "--train_batch_size", 4)
    assert [run.wait() for run in (*two, one)] == [0, 0, 0], two[0].log.read_text()
    assert_equal(*(lida.load_adapter(tmp_path / name).layers for name in ("one", "two")), 1e-4)
    pairs = list(zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True))
    assert len(pairs) == 5
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["step"] == b["step"] for a, b in pairs)


@pytest.mark.full
def test_torchrun_starts_processes_that_train_as_one(arguments, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "train_lora.py"))
    two = [sys.executable, *launcher, *arguments("two", *SMOOTH)]
    one = [sys.executable, str(ROOT / "train_lora.py"), *arguments("one", *SMOOTH, "--train_batch_size", 4)]
    for command_line in (two, one):
        done = subprocess.run(command_line, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert_equal(*(lida.load_adapter(tmp_path / name).layers for name in ("one", "two")), 1e-4)


def test_where_one_process_dies_all_end_and_the_run_goes_on(launch, tmp_path):
    options = ("--train_batch_size", 1, "--max_train_steps", 12, "--checkpointing_steps", 2)
    options += ("--resume_from_checkpoint", "latest")
    first, second = (launch("a", *options, *SMOOTH, env=env) for env in ranks(2))
    while not checkpoints(tmp_path / "a") and first.is_alive():
        time.sleep(0.01)
    os.kill(second.pid, signal.SIGKILL)
    assert first.wait() != 0 and "start it again, resuming from latest" in first.log.read_text()
    assert not (tmp_path / "a" / ADAPTER).exists()
    alone = launch("b", *options, *SMOOTH, "--train_batch_size", 2)
    again = [launch("a", *options, *SMOOTH, env=env) for env in ranks(2)]
    assert [run.wait() for run in (*again, alone)] == [0, 0, 0], again[0].log.read_text()
    assert_equal(*(lida.load_adapter(tmp_path / name).layers for name in "ab"), 1e-3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(launch, tmp_path, number):
    options = ("--max_train_steps", 100_000, "--checkpointing_steps", 100_000)
    first, second = (launch("a", *options, env=env) for env in ranks(2))
    while len(metrics(tmp_path / "a")) < 2 and first.is_alive():
        time.sleep(0.01)
    os.kill(first.pid, number)
    assert [first.wait(), second.wait()] == [128 + number, 128 + signal.SIGTERM], first.log.read_text()
    (kept,) = checkpoints(tmp_path / "a")
    assert metrics(tmp_path / "a")[-1]["step"] == int(kept.name.removeprefix("checkpoint-"))
    assert f"stopped after step {kept.name[11:]}; go on with --resume_from_checkpoint latest" in first.log.read_text()


# The end of a run that goes wrong


def test_a_run_whose_loss_is_not_finite_saves_nothing(train, tmp_path, monkeypatch, module):
    monkeypatch.setattr(module, "noise_prediction_loss", lambda *a, **k: noise_prediction_loss(*a, **k) * float("nan"))
    with pytest.raises(lida.InputError, match="loss or gradient were not finite for 10 steps in a row"):
        train("a", "--max_train_steps", 50)
    with pytest.raises(lida.InputError, match="the adapter did not change, and nothing is saved"):
        train("b", "--max_train_steps", 2)
    assert not (tmp_path / "a" / ADAPTER).exists() and not (tmp_path / "b" / ADAPTER).exists()


@pytest.mark.parametrize("steps", [1, 3])
def test_an_adapter_that_is_not_finite_is_never_saved(command, tmp_path, steps):
    """Decayed beyond the largest number at the first step, whose loss and gradient are finite."""
    code, out, err = command("a", "--adam_weight_decay", 1e300, "--max_train_steps", steps, "--checkpointing_steps", 1)
    assert code == 2 and not out and "is not finite" in err.strip().splitlines()[-1] and "Traceback" not in err
    assert not list((tmp_path / "a").rglob(ADAPTER))


def test_an_adapter_that_did_not_move_is_not_saved(train, tmp_path):
    with pytest.raises(lida.InputError, match="the adapter did not change"):
        train("a", "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 1000, "--max_train_steps", 1)
    assert not (tmp_path / "a" / ADAPTER).exists()


# Bad input


BAD = [
    (["--train_data_dir", "none"], "none: no such folder"),
    (["--train_data_dir", "{broken}"], "metadata.jsonl:2: "),
    (["--balance_column", "decade"], "--balance_column decade: not every line"),
    (["--pretrained_model_name_or_path", "none"], "none: no such folder or file"),
    (["--output_dir", "{dataset}/metadata.jsonl"], "--output_dir"),
    (["--resolution", "60"], "--resolution 60: must be a multiple of 8"),
    (["--resolution", "0"], "--resolution: '0' is not a whole number from 8 to 8192"),
    (["--rank", "0"], "--rank: '0' is not a whole number from 1 to"),
    (["--train_batch_size", "2000000000"], "--train_batch_size: '2000000000' is not a whole number from 1 to 10000"),
    (["--cache_dir", ""], "--cache_dir: '' is no name"),
    (["--rank", "four"], "--rank: 'four' is not a whole number"),
    (["--targets", "attn3.to_q"], "--targets: target 'attn3.to_q' matches no linear layer"),
    (["--learning_rate", "0"], "--learning_rate: '0' is not a learning rate above 0 and up to 1"),
    (["--learning_rate", "1e38"], "--learning_rate: '1e38' is not a learning rate above 0 and up to 1"),
    (["--snr_gamma", "nan"], "--snr_gamma: 'nan' is not a number above 0 and up to 1e30"),
    (["--lora_alpha", "nan"], "--lora_alpha: 'nan' is not a number above 0 and up to 1e30"),
    (["--caption_dropout", "1"], "--caption_dropout: '1' is not a number of at least 0 and below 1"),
    (["--adam_epsilon", "inf"], "--adam_epsilon: 'inf' is not a number above 0 and up to 1e30"),
    (["--seed", "-3"], "--seed: '-3' is not a whole number"),
    (["--lr_scheduler", "sine"], "--lr_scheduler: invalid choice: 'sine'"),
    (["--report_to", "paper"], "--report_to: invalid choice: 'paper'"),
    (["--max_train", "3"], "unrecognized arguments: --max_train"),
    (["--device", "abacus"], "device abacus: "),
    (["--device", "meta"], "device meta: "),
    (["--mixed_precision", "fp16"], "--mixed_precision fp16: needs a GPU, and the device is cpu; bf16 works there too"),
    (["--use_8bit_adam"], "--use_8bit_adam: needs a CUDA GPU, and the device is cpu; leave it out"),
    (["--attention", "xformers"], "--attention xformers: needs a CUDA GPU, and the device is cpu"),
    (["--cache_latents"], "--cache_latents: pictures are cropped at random, so latents cannot be reused; add --center_crop"),
    (["--mask_loss"], "0.png: has no mask masks/0.png, which --mask_loss needs"),
    (["--validation_split", "0.99"], "--validation_split 0.99: leaves none of the 6 pictures to train on"),
    (["--resume_from_checkpoint", "checkpoint-9"], "checkpoint-9: no such checkpoint; give a folder or latest"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_ends_in_one_line(command, dataset, tmp_path, options, message):
    broken = shutil.copytree(dataset, tmp_path / "broken")
    (broken / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\nnonsense\n')
    code, out, err = command("out", *(option.format(dataset=dataset, broken=broken) for option in options))
    lines = err.strip().splitlines()
    assert code == 2 and not out and message in err and all(line.startswith("error: ") for line in lines)
    assert len(lines) == (6 if options == ["--mask_loss"] else 1)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


IDLE = [
    (["--unmasked_weight", 0.5], "--unmasked_weight 0.5: does nothing without --mask_loss"),
    (["--class_prompt", "a man"], "--class_prompt a man: does nothing without --class_data_dir"),
    (["--lr_warmup_steps", 2], "--lr_warmup_steps 2: does nothing with constant; give constant_with_warmup"),
    (["--num_train_epochs", 1], "--max_train_steps 4: does nothing beside --num_train_epochs"),
    (["--center_crop", "--cache_latents", "--dataloader_num_workers", 1], "does nothing beside cached latents"),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("options", "message"), IDLE, ids=[message for _, message in IDLE])
def test_flags_that_do_nothing_are_reported(command, options, message):
    code, _, err = command("a", *options)
    assert code == 0 and message in err


@pytest.mark.filterwarnings("default")
def test_small_pictures_are_enlarged_with_a_warning_or_refused(command):
    code, _, err = command("a", "--max_train_steps", 1, "--resolution", 128)
    assert code == 0 and "warning: 6 of 6 pictures are smaller than --resolution 128 and are enlarged" in err
    code, _, err = command("b", "--resolution", 512)
    assert code == 2 and len(err.strip().splitlines()) == 6 and "0.png: is 70x80 pixels, too small; below 128" in err


@pytest.mark.filterwarnings("default")
def test_captions_that_are_too_long_are_reported_once(command, dataset):
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"a man {'very ' * 80}old {i}"}) for i in range(6)]
    (dataset / "metadata.jsonl").write_text("\n".join(lines))
    code, _, err = command("a", "--max_train_steps", 2)
    assert code == 0 and err.count("longer than 75 tokens") == 1 and "the same holds for 3 other captions" in err
