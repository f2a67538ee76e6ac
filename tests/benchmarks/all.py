"""Every comparison with diffusers + peft in turn, one table of ratios, and the machine that gave them.

    python tests/benchmarks/all.py --folder DIR --json ratios.json     some two hours on two cores
    python tests/benchmarks/all.py --folder DIR --quick                a quarter of an hour: fewer pairs, smaller pictures

DIR gets 4 GB of random weights of SD1.5's size. Each benchmark runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import ROOT, Row, machine, show

# A benchmark's file, whether it needs the model at full size, and its flags for --quick
BENCHMARKS = (
    ("speed.py", False, ["--pairs", "3"]),
    ("switching.py", False, ["--pairs", "2"]),
    ("row.py", False, ["--pairs", "1", "--seeds", "2"]),
    ("load.py", True, ["--pairs", "1"]),
    ("sampling.py", True, ["--pairs", "1", "--resolution", "256", "--jobs", "photograph"]),
    ("train.py", True, ["--pairs", "3", "--resolution", "256"]),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the random model lies, or goes")
    parser.add_argument("--quick", action="store_true", help="fewer pairs, smaller pictures")
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("--only", nargs="+", default=[name for name, *_ in BENCHMARKS], help="files to run (default: all)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    args = parser.parse_args()
    rows = []
    for name, needs, quick in BENCHMARKS:
        if name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as place:
            found = Path(place, "rows.json")
            command = [sys.executable, str(Path(__file__).with_name(name)), "--json", str(found), "--device", args.device]
            command += ["--folder", str(args.folder)] if needs else []
            subprocess.run([*command, *(quick if args.quick else [])], cwd=ROOT, check=True)
            rows += [Row(**row) for row in json.loads(found.read_text())["rows"]]
    print(json.dumps(machine()))
    show(rows)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(), "rows": [{**row.__dict__, "ratio": row.ratio} for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
