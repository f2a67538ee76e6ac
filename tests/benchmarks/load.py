"""Memory and time to load SD1.5 at full size (random weights), beside diffusers, each in a process of its own.

    python tests/benchmarks/load.py --folder DIR        writes 4 GB of random weights there if it is empty

Growth is of the resident size, from before loading to the highest through one forward of each part (64 x 64 latents' 16 x 16
corner, so that activations weigh little); time runs from before loading to the end of the UNet's first forward.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def make_model(folder: Path) -> None:
    """Write the random model there, if there is none; with lida-tiny's tokenizer, for CLIP's is not at hand."""
    if not (folder / "model_index.json").exists():
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "scripts")]
        from test_full import write_model
        from transformers import CLIPTokenizer

        write_model(folder, CLIPTokenizer.from_pretrained(ROOT / "weights" / "lida-tiny" / "tokenizer"))


class Peak:
    """The highest resident size while it runs, looked at every 5 ms."""

    def __enter__(self):
        self.highest, self.running = resident(), True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.highest = max(self.highest, resident())
            time.sleep(0.005)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()


@torch.no_grad()
def measure(library: str, folder: Path, dtype: torch.dtype) -> dict:
    """Load, and run each part once."""
    if library == "lida":
        import lida
    else:
        import diffusers
    latents, t, x = torch.randn(1, 4, 16, 16, dtype=dtype), torch.tensor([500]), torch.rand(1, 3, 128, 128, dtype=dtype)
    before, start = resident(), time.perf_counter()
    with Peak() as peak:
        if library == "lida":
            sd = lida.StableDiffusion.load(folder, dtype)
            context = sd.text_encoder("a man")
            sd.unet(latents, t, context)
            seconds = time.perf_counter() - start
            sd.vae.decode(sd.vae.encode(x))
            parts = (sd.unet, sd.vae, sd.text_encoder)
        else:
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=dtype)
            context = pipe.encode_prompt("a man", "cpu", 1, False)[0]
            pipe.unet(latents, t, context)
            seconds = time.perf_counter() - start
            pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean)
            parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    weights = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    growth = peak.highest - before
    return {"growth_gb": growth / 1e9, "growth_over_weights": growth / weights, "seconds_to_first_forward": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the random model lies, or goes")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many runs counts (default: 3)")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.folder, DTYPES[args.one[1]])))
        return
    make_model(args.folder)
    for dtype in DTYPES:
        best = {}
        for library in ("lida", "diffusers") * args.repeat:
            command = [sys.executable, __file__, "--folder", args.folder, "--one", library, dtype]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            run = json.loads(output.splitlines()[-1])
            best[library] = {name: min(value, best.get(library, run)[name]) for name, value in run.items()}
        print(f"\n{dtype:<28}{'lida':>10}{'diffusers':>12}{'ratio':>8}")
        for name, value in best["lida"].items():
            print(f"{name:<28}{value:>10.2f}{best['diffusers'][name]:>12.2f}{value / best['diffusers'][name]:>8.2f}")


if __name__ == "__main__":
    main()
