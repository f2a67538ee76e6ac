"""lida's attention for CPUs beside torch's kernel, in bf16, at the shapes of SD1.5 at 512 px.

    python tests/benchmarks/attention.py

Seconds forward and back, medians of alternating runs, and how far values and gradients are from float64's, as shares of them.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from lida.doors.errors import run
from lida.kernels import ATTENTION
from lida.kernels.flash_cpu import require

SHAPES = [(4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40)]  # queries, keys, d; 8 heads
KERNELS = ("flash_cpu", "sdpa")


def heads(tokens: int, d: int) -> torch.Tensor:
    """(1, 8, tokens, d) as projections leave it."""
    return torch.randn(1, tokens, 8, d).bfloat16().transpose(1, 2).requires_grad_()


def once(inputs: list[torch.Tensor], dout: torch.Tensor, kernel: str) -> tuple[list[float], list[torch.Tensor]]:
    """Seconds forward and back; the value and the gradients."""
    start = time.perf_counter()
    out = ATTENTION[kernel](*inputs)
    middle = time.perf_counter()
    gradients = torch.autograd.grad(out, inputs, dout.to(out.dtype))
    return [middle - start, time.perf_counter() - middle], [out, *gradients]


def error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The largest of the four, |a - b| / |b|."""
    return max(float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(found, exact))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="of each (default: 7)")
    args = parser.parse_args()
    require(torch.bfloat16, torch.device("cpu"))
    torch.manual_seed(0)
    for queries, keys, d in SHAPES:
        inputs, dout = [heads(n, d) for n in (queries, keys, keys)], torch.randn(1, 8, queries, d).bfloat16()
        exact = once([x.detach().double().requires_grad_() for x in inputs], dout, "sdpa")[1]
        seconds, found = {kernel: [] for kernel in KERNELS}, {}
        for _ in range(args.runs + 1):
            for kernel in KERNELS:
                took, found[kernel] = once(inputs, dout, kernel)
                seconds[kernel].append(took)
        ours, torchs = ([statistics.median(times) for times in zip(*seconds[kernel][1:])] for kernel in KERNELS)
        parts = [f"{queries} queries, {keys} keys, d {d}:"]
        for name, a, b in zip(("forward", "back"), ours, torchs):
            parts.append(f"{name} {a * 1e3:.1f} ms, torch {b * 1e3:.1f}, {b / a:.1f} times the rate;")
        parts.append(f"off by {error(found['flash_cpu'], exact):.4f}, torch {error(found['sdpa'], exact):.4f}")
        print(*parts)


if __name__ == "__main__":
    run(main)
