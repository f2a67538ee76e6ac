"""At SD1.5's full size with random weights, everything equals diffusers and transformers: `make test-full`.

Takes some ten minutes on two CPU cores, 10 GB of memory and 5 GB of disk for a while. The real CLIP vocabulary comes with
open_clip, which `make test-full` installs.
"""

import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT, SCHEDULE, box_mask, draws, noise_image, relative
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import lida
from lida.checkpoints import load_text_encoder, load_unet, load_vae
from lida.doors.pictures import to_images
from lida.nn.text import TextEncoder

pytestmark = pytest.mark.full
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768,
    "hidden_act": "quick_gelu", "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
}  # fmt: skip
PROMPTS = (
    "", "a portrait photo of a man, age 60s", "A PORTRAIT Photo, of (a [woman]) - 100% real!!! ;:/\\ #1 @2 $3 ^_~",
    "don't we'll I'M", "naïve café Ünïcode ß ñ İstanbul", "日本語 テスト", "😀 👩‍👩‍👧 🇯🇵", "word " * 200, "12345 age 34",
    "  a \n b\t\tc  ", "e\u0301 and é",
)  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary():
    """CLIP's list of merges in the package open_clip_torch."""
    spec = importlib.util.find_spec("open_clip")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec else None
    if path is None or not path.is_file():
        pytest.skip("open_clip_torch is not installed")
    return path


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return read_clip_vocabulary(vocabulary)


def read_clip_vocabulary(path: str | Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer (49,408 pieces) from the gzipped list of merges that OpenAI published and open_clip carries.

    The list determines the vocabulary: 256 bytes, the same bytes at the end of a word, one piece a merge, and two marks.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these bytes stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    pieces = symbols + [f"{symbol}</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, model_max_length=77)


def open_clip_tokenizer(vocabulary):
    """open_clip's own, from its file alone: the package wants torchvision."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", vocabulary.parent / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def ids_of(tokenizer, reference, prompt: str) -> tuple[list[int], list[int]]:
    """Both tokenizers' ids up to and including the first end."""
    ours = tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
    theirs = reference([prompt])[0].tolist()
    return ours[: ours.index(49407) + 1], theirs[: theirs.index(49407) + 1]


def test_tokens_are_those_of_clip(tokenizer, vocabulary):
    reference = open_clip_tokenizer(vocabulary)
    for prompt in PROMPTS:
        ours, theirs = ids_of(tokenizer, reference, prompt)
        assert ours == theirs, prompt
    assert len(tokenizer) == 49408 and len(ids_of(tokenizer, reference, "word " * 200)[0]) == 77


@pytest.mark.parametrize(
    "prompt", ["&amp; &lt;b&gt;", "“curly” quotes", "ﬁne", "ＦＵＬＬ", "Â£ mojibake", "<|endoftext|>", "<start_of_text>"]
)
def test_cleaning_that_openai_did_and_transformers_does_not(tokenizer, vocabulary, prompt):
    """ftfy and HTML entities: diffusers reads prompts without them, and so does lida. This is the list of differences."""
    ours, theirs = ids_of(tokenizer, open_clip_tokenizer(vocabulary), prompt)
    assert ours != theirs


def write_model(folder, tokenizer, in_channels: int = 4) -> None:
    """SD1.5 with random weights in float32, as diffusers writes it."""
    torch.manual_seed(in_channels)
    unet = diffusers.UNet2DConditionModel(in_channels=in_channels, sample_size=64, cross_attention_dim=768)
    text, schedule = CLIPTextModel(CLIPTextConfig(**TEXT)), diffusers.DDIMScheduler(**SCHEDULE)
    kind = diffusers.StableDiffusionPipeline if in_channels == 4 else diffusers.StableDiffusionInpaintPipeline
    pipe = kind(diffusers.AutoencoderKL(**VAE), text, tokenizer, unet, schedule, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder)


@pytest.fixture(scope="module", params=[4, 9], ids=["4 channels", "9 channels"])
def folder(request, tmp_path_factory, tokenizer):
    """A model of full size, on disk for as long as its tests run."""
    folder = tmp_path_factory.mktemp("full")
    write_model(folder, tokenizer, request.param)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("size", [(64, 64), (56, 72)])
def test_the_unet_equals_diffusers(folder, size):
    ours, theirs = load_unet(folder), diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    inputs = torch.randn(1, ours.config.in_channels, *size), torch.tensor([981]), torch.randn(1, 77, 768)
    with torch.no_grad():
        assert relative(ours(*inputs), theirs(*inputs).sample) <= 1e-5


@pytest.mark.parametrize("size", [(512, 512), (448, 576)])
def test_the_vae_equals_diffusers(folder, size):
    ours, theirs = load_vae(folder), diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        x = torch.rand(1, 3, *size) * 2 - 1
        latents = ours.encode(x, sample=False)
        assert relative(latents, theirs.encode(x).latent_dist.mean * 0.18215) <= 1e-5
        assert relative(ours.decode(latents), theirs.decode(latents / 0.18215).sample) <= 1e-5


@pytest.mark.filterwarnings("ignore:the prompt")
def test_the_text_encoder_equals_transformers(folder, tokenizer):
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder")
    ours = load_text_encoder(folder)
    assert isinstance(ours, TextEncoder)
    with torch.no_grad():
        ids = tokenizer(list(PROMPTS), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert relative(ours(PROMPTS), theirs(ids).last_hidden_state) <= 1e-5


def close(ours, theirs) -> bool:
    """Two pictures that differ by at most one in 99.9 % of their values."""
    return (np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)) <= 1).mean() >= 0.999


def test_twenty_steps_equal_diffusers(folder, monkeypatch):
    """Text to picture, and inpainting at two strengths, with guidance, at 256 px: latents and pictures.

    Weights drawn at random predict noise of no use, so that latents grow; the sums that are compared are no easier for it.
    """
    sd = lida.StableDiffusion.load(folder)
    monkeypatch.setattr(lida.StableDiffusion, "resolution", 256)
    inpaint = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    inpaint.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 20, "guidance_scale": lida.Sampling().guidance_scale, "output_type": "latent"}
    image, mask, prompt = noise_image(256, 256), box_mask(256, 256, (64, 32, 224, 192)), "a portrait photo of a man, age 60s"

    def check(ours, theirs):
        assert relative(ours, theirs) <= 1e-4
        with torch.no_grad():
            pictures = sd.vae.decode(ours), inpaint.vae.decode(theirs / 0.18215).sample
        assert close(*(to_images(picture)[0] for picture in pictures))

    for strength in (0.6, 1.0):
        edit = lida.Edit("inpaint", strength, context=9)
        ours = lida.age_face(sd, image, mask, prompt, edit, lida.Sampling(20), generator=draws(3), output_type="latent")
        more = {"image": image, "mask_image": mask, "height": 256, "width": 256, "strength": strength}
        check(ours, inpaint(prompt, generator=draws(3), **more, **options).images)
    if not sd.unet.inpaints:
        pipe = diffusers.StableDiffusionPipeline(**inpaint.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        size = {"height": 256, "width": 256}
        ours = lida.generate(sd, prompt, lida.Sampling(20), generator=draws(3), output_type="latent", **size)
        check(ours, pipe(prompt, generator=draws(3), **size, **options).images)


def test_the_whole_chain_of_the_readme(folder, tmp_path):
    """All-Age-Faces, an album, two trainings, a photograph: the README's commands on a model of full size, at a few steps."""
    if load_unet(folder).inpaints:
        pytest.skip("adapters are trained on the plain model")
    aaf, photo = tmp_path / "All-Age-Faces Dataset", enlarged("demo/person-a.png")
    for name in ("original images", "key points", "image sets"):
        (aaf / name).mkdir(parents=True)
    spans = [(10, 90, 210, 110, 125), (9, 135, 165, 130, 185), (12, 100, 200, 135, 145), (18, 125, 175, 215, 240)]
    rng, lines = np.random.default_rng(0), []
    for serial, letter in enumerate("abcd"):
        name = f"{serial:05d}A{20 + 10 * serial}"
        enlarged(f"demo/person-{letter}.png").save(aaf / "original images" / f"{name}.jpg")
        points = [np.stack([rng.uniform(a, b, n), rng.uniform(c, d, n)], -1) for n, a, b, c, d in spans]
        np.savetxt(aaf / "key points" / f"{name}.txt", np.concatenate(points))
        lines.append(f"{name}.jpg {serial % 2}\n")
    (aaf / "image sets" / "train.txt").write_text("".join(lines))
    (aaf / "image sets" / "val.txt").write_text("")
    (tmp_path / "photos").mkdir()
    for i in range(6):
        enlarged(f"person-a/{i:02d}.png").save(tmp_path / "photos" / f"{i}.png")
    photo.save(tmp_path / "me.png")
    model = ("--pretrained_model_name_or_path", folder)
    training = (*model, "--resolution", 512, "--train_batch_size", 1, "--center_crop", "--mixed_precision", "bf16")
    infer = ("--adapter", "me-lora=1.0", "--adapter", "age-lora=0.2", "--subject", "sks", "--ages", 30, 70)
    for command in (
        ("-m", "lida.data.aaf", aaf, "--output_dir", "aaf512", "--crop", "face", "--resolution", 512),
        (ROOT / "train_lora.py", *training, "--train_data_dir", "aaf512", "--output_dir", "age-lora", "--rank", 8,
         "--gradient_accumulation_steps", 2, "--max_train_steps", 1, "--balance_column", "decade", "--cache_dir", "latents"),
        ("-m", "lida.data.album", "photos", "--subject", "sks", "--output_dir", "me", "--resolution", 512),
        (ROOT / "train_lora.py", *training, "--train_data_dir", "me", "--output_dir", "me-lora", "--rank", 4, "--role",
         "identity", "--max_train_steps", 1, "--cache_latents", "--consent", "none: invented"),
        (ROOT / "infer.py", "me.png", *model, *infer, "--dtype", "bfloat16", "--num_inference_steps", 4),
    ):  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert lida.load_adapter(tmp_path / "me-lora").metadata["role"] == "identity"
    before, after = np.asarray(photo), np.asarray(Image.open(tmp_path / "outputs" / "me-age70.png"))
    assert before.shape == after.shape and 0.05 < (before != after).any(-1).mean() < 0.9


def enlarged(path: str) -> Image.Image:
    """A painted picture of 96 pixels at 300, with the grain that photographs have."""
    pixels = np.asarray(Image.open(ROOT / "weights" / path).convert("RGB").resize((300, 300), Image.Resampling.BICUBIC))
    return Image.fromarray((pixels + 8 * np.random.default_rng(0).normal(size=(300, 300, 1))).clip(0, 255).astype(np.uint8))
