"""Copy held-out photographs to a folder, for the slider: two of each decade from the 10s to the 60s, of each dataset.

    python weights/recipe/held_out.py "All-Age-Faces Dataset" UTKFace --output_dir held-out-24

The choice is seeded.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from prepare import read_photos


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="All-Age-Faces, UTKFace, or both, as downloaded")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the photographs")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for folder in args.folders:
        photos = read_photos(folder, "held_out")
        for decade in range(1, 7):
            same = [photo.path for photo in photos if photo.age // 10 == decade]
            for row in rng.choice(len(same), 2, replace=False):
                shutil.copy(same[row], args.output_dir)


if __name__ == "__main__":
    main()
