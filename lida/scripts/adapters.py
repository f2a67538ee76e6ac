"""Inspect, convert, combine and compare adapters, and fuse them into a model."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lida.adapters.combination import combine
from lida.adapters.comparison import compare, table
from lida.adapters.files import FORMATS, load_adapter, save_adapter
from lida.adapters.merging import Weight, varies
from lida.adapters.spelling import parse_pairs
from lida.doors import arguments
from lida.doors.errors import InputError
from lida.doors.files import folder_written_whole, output_folder, write_json


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments.Parser(prog="python -m lida.adapters", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="show what is in a file")
    convert = commands.add_parser("convert", help="write an adapter in another format")
    combining = commands.add_parser("combine", help="make one adapter of several, exactly")
    comparing = commands.add_parser("compare", help="show where two adapters change the same weights, and how similarly")
    fusing = commands.add_parser("fuse", help="write a model with adapters merged into its weights")
    for command in (info, convert):
        command.add_argument("adapter", help="file or folder in any format")
    comparing.add_argument("both", nargs=2, metavar="adapter", help="file or folder in any format")
    fusing.add_argument("model", help="model folder, .safetensors file or hub id")
    for command in (combining, fusing):
        command.add_argument("adapters", nargs="+", metavar="PATH=WEIGHT", help="an adapter and its weight")
    for command in (convert, combining, comparing, fusing):
        command.add_argument("-o", "--output", type=Path, required=True, help="file or folder to write")
    for command in (convert, combining):
        command.add_argument("--format", choices=FORMATS, default="diffusers", help="(default: diffusers)")
    combining.add_argument("--rank", type=arguments.positive_int, help="truncate to this rank (default: the exact sum's)")
    return parser.parse_args()


def combine_files(pairs: Sequence[tuple[str, Weight]], rank: int | None, output: Path, format: str) -> None:
    """Write one adapter equal to the sum of several, and print its error."""
    plain = [(path, weight) for path, weight in pairs if isinstance(weight, float)]
    if len(plain) < len(pairs):
        raise InputError("combine: one file has one weight for all blocks and timesteps; give a number for each")
    adapter = combine([(load_adapter(path), weight) for path, weight in plain], rank)
    print(f"largest relative error of a layer: {max(adapter.metadata['combination']['relative_error'].values()):.1e}")
    print(save_adapter(output, adapter, format))


def fuse(source: str, pairs: Sequence[tuple[str, Weight]], folder: Path) -> None:
    """Write a model with adapters merged into its weights, as a folder in diffusers' layout, in float16."""
    from lida.aging import StableDiffusion  # imported here, so that the other commands are quick

    if any(varies(weight) for _, weight in pairs):
        raise InputError("fuse: a model's weights are the same at all timesteps; give weights without @")
    with folder_written_whole(folder) as part:
        sd = StableDiffusion.load(source)
        sd.merge_files(pairs)
        sd.save(part)


def main() -> None:
    """Run the command."""
    args = parse_args()
    if args.command == "info":
        print(json.dumps(load_adapter(args.adapter).describe(), indent=2))
    elif args.command == "convert":
        print(save_adapter(args.output, load_adapter(args.adapter), args.format))
    elif args.command == "combine":
        combine_files(parse_pairs(args.adapters, "combine"), args.rank, args.output, args.format)
    elif args.command == "compare":
        report = compare(*map(load_adapter, args.both))
        write_json(output_folder(args.output, "-o") / "report.json", report)
        print(table(report))
    else:
        fuse(args.model, parse_pairs(args.adapters, "fuse"), args.output)
        print(args.output)
