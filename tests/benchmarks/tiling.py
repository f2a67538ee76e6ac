"""Memory of decoding a large picture at SD1.5's full size (random weights), whole and by tiles, lida beside diffusers.

    python tests/benchmarks/tiling.py --size 1024

Growth is of the resident size over that with the weights in memory; each runs in a process of its own.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "scripts"), str(ROOT / "tests" / "benchmarks")]


def measure(library: str, tiled: bool, size: int) -> None:
    """Print growth in GB and seconds."""
    import diffusers
    import torch
    from load import Peak, resident
    from test_full import VAE as CONFIG

    from lida.nn.vae import VAE, VAEConfig

    latents = torch.randn(1, 4, size // 8, size // 8)
    if library == "lida":
        vae = VAE(VAEConfig((128, 256, 512, 512), layers_per_block=2, sample_size=512))
        vae.tiling = tiled
    else:
        vae = diffusers.AutoencoderKL(**CONFIG)
        if tiled:
            vae.enable_tiling()
    with torch.no_grad():
        vae.decode(latents[:, :, :8, :8])
        before, start = resident(), perf_counter()
        with Peak() as peak:
            vae.decode(latents)
    print(f"{(peak.highest - before) / 1e9:.2f} {perf_counter() - start:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the picture in pixels (default: 1024)")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one[0], args.one[1] == "tiles", args.size)
        return
    for how in ("whole", "tiles"):
        for library in ("lida", "diffusers"):
            command = [sys.executable, __file__, "--size", str(args.size), "--one", library, how]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            print(f"{args.size} px, {how}, {library:10} {out[0]:>6} GB {out[1]:>7} s")


if __name__ == "__main__":
    main()
