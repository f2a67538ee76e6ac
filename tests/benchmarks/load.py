"""Memory and time to load SD1.5 at full size (random weights), beside diffusers, each in a process of its own.

    python tests/benchmarks/load.py --folder DIR        writes 4 GB of random weights there if it is empty

Growth is of the resident size, from before loading to the highest through one forward of each part (64 x 64 latents' 16 x 16
corner, so that activations weigh little). Time runs from before the library is imported, torch already is, to the end of the
UNet's first forward: warm, with the weights in the system's file cache, and cold, with them dropped from it before each run.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import torch
from comparison import ROOT, Row, command

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


def drop_from_cache(folder: Path) -> None:
    """Drop the folder's files from the system's file cache, so that the next reader reads the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
def measure_one(library: str, folder: Path, dtype: torch.dtype) -> dict:
    """Load, and run each part once."""
    start = time.perf_counter()
    if library == "lida":
        import lida
    else:
        import diffusers
    latents, t, x = torch.randn(1, 4, 16, 16, dtype=dtype), torch.tensor([500]), torch.rand(1, 3, 128, 128, dtype=dtype)
    before = resident()
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


def flags(parser) -> None:
    parser.add_argument("--folder", type=Path, required=True, help="where the random model lies, or goes")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "DTYPE"), help="measure one of them, and print it as JSON")


def take_turns(args: Namespace, dtype: str, cold: bool) -> dict[str, list[float]]:
    """Return the medians of both libraries, by name. The first run of each is not counted; when warm, it fills the file cache."""
    found: dict[str, list[dict]] = {"lida": [], "diffusers": []}
    for library in [*found] * (args.pairs + 1):
        if cold:
            drop_from_cache(args.folder)
        command = [sys.executable, __file__, "--folder", str(args.folder), "--one", library, dtype]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[library].append(json.loads(output.splitlines()[-1]))
    return {name: [statistics.median(run[name] for run in runs[1:]) for runs in found.values()] for name in found["lida"][0]}


def measure(args: Namespace) -> list[Row]:
    make_model(args.folder)
    if args.one:
        print(json.dumps(measure_one(args.one[0], args.folder, DTYPES[args.one[1]])))
        raise SystemExit
    rows = []
    for dtype in DTYPES:
        warm = take_turns(args, dtype, cold=False)
        rows += [
            Row(f"{name.replace('_', ' ')}, {dtype}", *pair, "s" if "seconds" in name else "") for name, pair in warm.items()
        ]
        cold = take_turns(args, dtype, cold=True)["seconds_to_first_forward"]
        rows.append(Row(f"seconds to first forward, cold, {dtype}", *cold))
    return rows


if __name__ == "__main__":
    command(__doc__, measure, flags)
