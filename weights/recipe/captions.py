"""Both datasets as one captioned folder for train_lora.py: a square of each face, and its age in the caption.

    python weights/recipe/captions.py --data squares --output_dir aged

A quarter of the captions say "a person" or "a child", as infer.py asks where nobody says more.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lida.data.folder import CAPTIONING, METADATA
from lida.photos.captions import Captioning

OLDEST = 95  # of UTKFace's labels above it many are wrong
SQUARE = 5  # of eight: about 1.2 lengths of the mask, as age_face cuts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="squares from prepare.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the pictures and their captions")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pixels, faces = np.load(args.data / "pixels.npy", mmap_mode="r"), np.load(args.data / "faces.npz")
    rng, lines, captioning = np.random.default_rng(args.seed), [], Captioning(ages=(1, OLDEST))
    for row, (age, man) in enumerate(zip(tqdm(faces["ages"].tolist(), unit="face"), faces["men"])):
        if age > OLDEST:
            continue
        name, subject = f"{row:05d}.jpg", ("a man" if man else "a woman") if rng.random() < 0.75 else "a person"
        Image.fromarray(pixels[row, min(SQUARE, pixels.shape[1] - 1)]).save(args.output_dir / name, quality=95, subsampling=0)
        decade = f"{min(age // 10, 8)}0s"  # to balance by: the oldest are few
        lines.append(
            json.dumps({"file_name": name, "text": captioning.caption(subject, age), "age": age, "decade": decade}) + "\n"
        )
    (args.output_dir / CAPTIONING).write_text(json.dumps(asdict(captioning)) + "\n", encoding="utf-8")
    (args.output_dir / METADATA).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} captioned faces")


if __name__ == "__main__":
    main()
