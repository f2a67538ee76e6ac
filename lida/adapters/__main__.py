"""Look at adapters, convert, combine and compare them, and fuse them into a model.

python -m lida.adapters info FILE
python -m lida.adapters convert FILE -o OUT --format kohya
python -m lida.adapters combine FILE=WEIGHT FILE=WEIGHT -o OUT --rank 8
python -m lida.adapters compare FILE FILE -o DIR
python -m lida.adapters fuse MODEL FILE=WEIGHT -o DIR
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lida.adapters.combination import combine
from lida.adapters.comparison import compare, table, write_report
from lida.adapters.files import FORMATS, load_adapter, parse_pairs, save_adapter
from lida.adapters.merging import Weight, varies
from lida.doors import arguments
from lida.doors.errors import InputError, run
from lida.doors.files import folder_written_whole


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments.Parser(prog="python -m lida.adapters", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "info": "what is in a file",
        "convert": "the same changes in another format",
        "combine": "several adapters in one, exactly",
        "compare": "where two adapters change the same weights, and how alike",
        "fuse": "a model with adapters in its weights",
    }
    info, convert, combining, comparing, fusing = (commands.add_parser(name, help=text) for name, text in helps.items())
    for command in (info, convert):
        command.add_argument("adapter", help="file or folder in any format")
    comparing.add_argument("a", help="an adapter")
    comparing.add_argument("b", help="another")
    fusing.add_argument("model", help="model folder, .safetensors file or hub id")
    for command in (combining, fusing):
        command.add_argument("adapters", nargs="+", metavar="PATH=WEIGHT", help="an adapter and its weight")
    outputs = {convert: "file or folder", combining: "file or folder", comparing: "folder", fusing: "new folder"}
    for command, what in outputs.items():
        command.add_argument("-o", "--output", type=Path, required=True, help=f"{what} to write")
    for command in (convert, combining):
        command.add_argument("--format", choices=FORMATS, default="diffusers", help="(default: diffusers)")
    combining.add_argument("--rank", type=arguments.positive_int, help="truncate to this rank (default: the exact sum's)")
    return parser.parse_args()


def combine_files(pairs: Sequence[tuple[str, Weight]], rank: int | None, output: Path, format: str) -> None:
    """Write one adapter that does what several do together, and print how exact it is."""
    if not all(isinstance(weight, float) for _, weight in pairs):
        raise InputError("combine: one file has one weight for all blocks and timesteps; give a number for each")
    try:
        adapter = combine([(load_adapter(path), weight) for path, weight in pairs], rank)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"combine: {error}") from None
    numbers = adapter.metadata["combination"]
    print(f"largest relative error of a layer: {max(numbers['relative_error'].values()):.1e}")
    if numbers["retained_energy"]:
        print(f"least energy retained by a layer: {min(numbers['retained_energy'].values()):.4f}")
    print(save_adapter(output, adapter, format))


def fuse(source: str, pairs: Sequence[tuple[str, Weight]], folder: Path) -> None:
    """Write a model with adapters in its weights as a folder in diffusers' layout, in float16."""
    from lida.aging import StableDiffusion  # of a floor above: this file is a script

    if any(varies(weight) for _, weight in pairs):
        raise InputError("fuse: a model's weights are the same at all timesteps; give weights without @")
    if folder.exists() and Path(source).exists() and folder.samefile(source):
        raise InputError(f"{folder}: is the model that is read; give another folder to write")
    with folder_written_whole(folder) as part:
        sd = StableDiffusion.load(source)
        for path, _ in pairs:
            sd.load_adapter(path, path)
        sd.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])
        try:
            sd.save(part)
        except InputError as error:  # such as what does not fit into float16
            raise InputError(f"with {', '.join(f'{path}={weight}' for path, weight in pairs)}: {error}") from None


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
        try:
            report = compare(load_adapter(args.a), load_adapter(args.b))
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(f"compare: {error}") from None
        write_report(report, args.output)
        print(table(report))
    else:
        fuse(args.model, parse_pairs(args.adapters, "fuse"), args.output)
        print(args.output)


if __name__ == "__main__":
    run(main)
