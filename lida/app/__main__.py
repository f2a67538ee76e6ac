"""Serve the page: `lida app`, or `python -m lida.app`."""

import argparse
import os
import signal
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path

from .. import shipped
from ..doors import arguments
from ..doors.errors import InputError, run


def parse_args() -> argparse.Namespace:
    parser = arguments.Parser(prog="lida app", description="Age a face in a page of your browser, on your own machine.")
    add = parser.add_argument
    model = shipped.path_of(shipped.MODEL)
    add("--pretrained_model_name_or_path", default=model, help="folder, .safetensors file or hub id (default: lida-tiny)")
    add("--age_adapter", help="an Age-LoRA (default, on lida-tiny: weights/age.safetensors)")
    add("--identity_adapter", help="an Identity-LoRA (default: none; the page takes one too)")
    add("--num_inference_steps", type=arguments.whole(1, 999), help="from pure noise to a picture (default: infer.py's)")
    add("--server_name", default="127.0.0.1", help="address; 0.0.0.0 lets others use the page too (default: 127.0.0.1)")
    add("--server_port", type=arguments.whole(1, 65535), help="(default: the first free one from 7860)")
    add("--max_file_size", type=arguments.whole(1, 10000), default=100, metavar="MB", help="of an upload (default: 100)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        family = socket.getaddrinfo(args.server_name, None)[0][0]
        socket.create_server((args.server_name, 0), family=family).close()
    except (OSError, UnicodeError):
        raise InputError(f"--server_name {args.server_name}: is no address of this machine; give one such as 127.0.0.1") from None
    if find_spec("gradio") is None:
        raise InputError('gradio, which serves the page, is not installed: pip install "lida-aging[app]"')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so the folder is removed, too
    with tempfile.TemporaryDirectory(prefix="lida-app-") as folder:  # for uploads and pictures
        os.environ["GRADIO_TEMP_DIR"] = folder
        from ..adapters import parse_pairs
        from ..diffusion import Sampling  # imported here, with what follows, so that --help is quick
        from .page import Painter, serve

        model = args.pretrained_model_name_or_path
        adapters = {"age": args.age_adapter or shipped.age_adapter_of(model), "identity": args.identity_adapter}
        parse_pairs([path for path in adapters.values() if path], "--identity_adapter")  # refuses a file that is given twice
        sampling = Sampling(args.num_inference_steps) if args.num_inference_steps else Sampling()
        painter = Painter(model, adapters, shipped.path_of(shipped.AGE_ESTIMATOR), sampling, Path(folder))
        address = {"server_name": args.server_name, "server_port": args.server_port}
        demo = (shipped.path_of(shipped.DEMO_PHOTO), shipped.path_of(shipped.DEMO_ADAPTER), shipped.DEMO_SUBJECT)
        page = serve(painter, demo, **address, max_file_size=f"{args.max_file_size}mb")
        print(f"lida app: {page.local_url} (Ctrl-C stops it)", flush=True)
        page.block_thread()


if __name__ == "__main__":
    run(main)
