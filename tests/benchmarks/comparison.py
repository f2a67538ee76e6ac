"""What the benchmarks share: runs by turns, rows of ratios, the machine's kind."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, lida's figure and the peer's, both less is better unless `unit` says otherwise."""

    what: str
    lida: float
    peer: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.lida / self.peer


def by_turns(runs: Sequence[Callable[[], object]], pairs: int, warm_up: int = 1) -> list[float]:
    """Return the median seconds of each run. They take turns, A B A B, so that a machine whose speed drifts slows all."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(pairs + warm_up):
        for run, kept in zip(runs, times):
            synchronize()
            start = perf_counter()
            run()
            synchronize()
            if number >= warm_up:
                kept.append(perf_counter() - start)
    return [statistics.median(kept) for kept in times]


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, str | int]:
    """Return what the figures depend on: processor, its instructions for matrices, threads, versions."""
    found = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count() or 0}
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        flags = fields.get("flags", "").split()
        found["processor"] = fields.get("model name", found["processor"])
        found["instructions"] = " ".join(name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"threads": torch.get_num_threads(), "torch": torch.__version__}


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    width = max([len(row.what) for row in rows], default=0)
    print(f"{'':{width}}  {'lida':>9}  {'peer':>9}  {'':4}  ratio")
    for row in rows:
        print(f"{row.what:{width}}  {row.lida:9.3g}  {row.peer:9.3g}  {row.unit:4}  {row.ratio:.2f}", flush=True)


def command(doc: str, measure: Callable[[argparse.Namespace], list[Row]], flags: Callable = lambda parser: None) -> None:
    """Run one benchmark: parse its flags, print its rows, and with --json write them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, by turns (default: 5)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    flags(parser)
    args = parser.parse_args()
    rows = measure(args)
    show(rows)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
