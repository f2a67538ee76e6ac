"""Serve the page: `lida app`, or `python -m lida.app`."""

import argparse
import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..doors import arguments
from ..doors.errors import InputError, run

WEIGHTS = Path(os.path.relpath(Path(__file__).parent.parent / "weights"))
TINY = WEIGHTS / "lida-tiny"
DEMO = (str(WEIGHTS / "demo" / "person-a.png"), str(WEIGHTS / "person-a.safetensors"), "sks")


def parse_args() -> argparse.Namespace:
    parser = arguments.Parser(prog="lida app", description="Age a face in a page of your browser, on your own machine.")
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default=str(TINY), help="folder, .safetensors file or hub id (default: lida-tiny)")
    add("--age_adapter", help="an Age-LoRA (default, on lida-tiny: weights/age.safetensors)")
    add("--identity_adapter", help="an Identity-LoRA (default: none; the page takes one too)")
    add("--num_inference_steps", type=arguments.whole(1, 999), default=50, help="steps of the whole way (default: 50)")
    help = "address to listen on; 0.0.0.0 lets others use this machine (default: 127.0.0.1)"
    add("--server_name", default="127.0.0.1", help=help)
    add("--server_port", type=arguments.whole(1, 65535), help="(default: the first free one from 7860)")
    add("--max_file_size", type=arguments.whole(1, 10000), default=100, metavar="MB", help="of an upload (default: 100)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if find_spec("gradio") is None:
        raise InputError('gradio, which serves the page, is not installed: pip install "lida-aging[app]"')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the folder would stay behind
    with tempfile.TemporaryDirectory(prefix="lida-app-") as folder:  # of uploads and pictures
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        from ..diffusion import Sampling  # here, as what follows, so that --help comes at once
        from .page import build, launch
        from .painter import Painter

        on_tiny = Path(args.pretrained_model_name_or_path).resolve() == TINY.resolve()
        files = {"age": args.age_adapter or (on_tiny and str(WEIGHTS / "age.safetensors")), "identity": args.identity_adapter}
        files = {role: path for role, path in files.items() if path}
        sampling = Sampling(args.num_inference_steps)
        painter = Painter(args.pretrained_model_name_or_path, files, str(WEIGHTS / "age-estimator"), sampling)
        page = build(painter, Path(folder), DEMO)
        url = launch(page, args.server_name, args.server_port, f"{args.max_file_size}mb", DEMO[:2])
        print(f"lida app: {url} (Ctrl-C stops it)", flush=True)
        page.block_thread()


if __name__ == "__main__":
    run(main)
