"""An adapter as data: layers by path and what is known of them. To and from disk, checked against a model, added up.

python -m lida.adapters info FILE
python -m lida.adapters convert FILE -o OUT --format kohya
python -m lida.adapters combine FILE=WEIGHT FILE=WEIGHT -o OUT --rank 8
python -m lida.adapters compare FILE FILE -o DIR
python -m lida.adapters fuse MODEL FILE=WEIGHT -o DIR
"""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .merging import Weight, parse_weight, varies
from .dialects import TEXT, as_diffusers, as_kohya, as_peft, parse
from ..doors.errors import InputError, output_folder, run
from ..photos.pictures import written_whole
from .comparison import compare, write_report
from ..nn.lora import LoRALinear, LowRank, thin_svd

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
FORMATS = ("diffusers", "kohya", "peft")


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes by path (the UNet's; the text encoder's behind `text_encoder.`), and JSON values told of them."""

    layers: dict[str, LowRank]
    metadata: dict = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over every layer's path and values: what the adapter does, whatever is told of it."""
        digest = hashlib.sha256()
        for path, layer in sorted(self.layers.items()):
            digest.update(f"{path} {layer.alpha}".encode())
            for tensor in (layer.down, layer.up):
                digest.update(tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def of(cls, layers: Mapping[str, LoRALinear], metadata: dict | None = None) -> "Adapter":
        """A copy of what inject_lora's layers hold now."""
        copies = {
            path: LowRank(layer.lora_down.detach().cpu().clone(), layer.lora_up.detach().cpu().clone(), layer.alpha)
            for path, layer in layers.items()
        }
        return cls(copies, dict(metadata or {}))


def in_order(data: bytes) -> bytes:
    """The same safetensors file with its header in order, which the library leaves to chance: equal contents, equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # what follows is aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(header))
        with written_whole(path) as part:
            part.write_bytes(in_order(data))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({error}); give another place") from None


def save_adapter(path: str | Path, adapter: Adapter, format: str = "diffusers") -> Path:
    """Write the adapter in one of FORMATS so that its reader applies exactly (alpha / rank) up down; returns the path.

    diffusers: a file, or in a folder `pytorch_lora_weights.safetensors`; alpha becomes the rank, because not every reader of
    such files looks at the header. kohya: a file with one alpha for all layers. peft: a folder, with one for the UNet and
    one for the text encoder in it where it changes both; paths are those of transformers 5.6 and later. What is known of
    the adapter stands in each file's header under `lida`. Raises InputError for another format, or an empty adapter.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    if not adapter.layers:
        raise InputError(f"{path}: the adapter has no layers; there is nothing to write")
    known = {"lida": json.dumps(adapter.metadata)}
    if format == "peft":
        if path.suffix == ".safetensors":
            raise InputError(f"{path}: peft's format is a folder; give one")
        folders = as_peft(adapter.layers)
        for component, (tensors, config) in folders.items():
            folder = path / component if len(folders) > 1 else path
            write(folder / PEFT_FILES[0], tensors, {"format": "pt", **known})
            (folder / PEFT_FILES[1]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return path
    path = path if path.suffix == ".safetensors" else path / FILE_NAME
    tensors, header = (as_kohya if format == "kohya" else as_diffusers)(adapter.layers)
    write(path, tensors, {**header, **known})
    return path


def read_object(text: str, where: str) -> dict:
    """A JSON object; raises InputError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no JSON object; fetch it again")
    return value


def read_file(path: Path) -> tuple[dict[str, Tensor], dict, dict]:
    """The tensors of an adapter file, peft's config and lida's metadata from its header ({} where there are none)."""
    if not path.is_file():
        raise InputError(f"{path}: no such adapter; give a .safetensors file, or a folder with {FILE_NAME}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
    config, metadata = (read_object(header.get(key, "{}"), f"{path}: its header") for key in ("lora_adapter_metadata", "lida"))
    return tensors, config, metadata


def load_adapter(source: str | Path, sd=None) -> Adapter:
    """Read an adapter in diffusers', peft's or kohya's spelling from a file or a folder; every tensor must be understood.

    With `sd`, a StableDiffusion, it must also fit that model. Raises InputError that names the file and what is amiss.
    """
    path = Path(source)
    if not path.is_dir():
        tensors, config, metadata = read_file(path)
        layers = parse(tensors, config, str(path))
    else:
        folders = [path, path / "unet", path / "text_encoder"]  # not deeper: a trainer's checkpoints lie there
        configs = [folder / PEFT_FILES[1] for folder in folders if (folder / PEFT_FILES[1]).is_file()]
        if (path / FILE_NAME).is_file() or not configs:
            return load_adapter(path / FILE_NAME, sd)
        layers, metadata = {}, {}
        for config_path in configs:
            file = config_path.with_name(PEFT_FILES[0])
            tensors, _, metadata = read_file(file)
            try:
                config = read_object(config_path.read_text(encoding="utf-8"), str(config_path))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{config_path}: cannot be read ({error}); fetch it again") from None
            if config.get("peft_type", "LORA") != "LORA":
                raise InputError(f"{config_path}: peft_type is {config['peft_type']}; lida applies plain LoRA")
            both = {f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in config.items()}
            new = parse(tensors, both, str(file))
            if layers.keys() & new.keys():
                raise InputError(f"{path}: holds {next(iter(layers.keys() & new.keys()))} in two files; give one folder")
            layers |= new
    adapter = Adapter(layers, metadata)
    if sd is not None:
        check_fits(adapter, sd.module, str(source))
    return adapter


def check_fits(adapter: Adapter, module, name: str) -> None:
    """Raise InputError unless each layer changes a weight of its shape; `module` gives the model's by path, or None."""
    for path, layer in adapter.layers.items():
        weight = getattr(module(path), "weight", None)
        shape = None if weight is None else tuple(weight.shape)
        if shape != layer.shape and (shape is None or shape != layer.shape + (1, 1)):  # a 1x1 convolution's factors may be flat
            found = "no such layer" if shape is None else f"a weight {shape}"
            cure = "it was trained on another model, give that one"
            raise InputError(f"{name}: changes {path} by {layer.shape}, where this model has {found}; {cure}")


def random_adapter(like: Adapter, seed: int) -> Adapter:
    """Factors of independent normals, each layer's change scaled to the norm (Frobenius) that it has in another adapter."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for path, layer in like.layers.items():
        down, up = (torch.randn(factor.shape, generator=generator) for factor in (layer.down, layer.up))
        other = LowRank(down, up, layer.alpha)
        layers[path] = LowRank(down, up * (layer.delta.norm() / other.delta.norm()), layer.alpha)
    return Adapter(layers)


def combine(pairs: Sequence[tuple[Adapter, float]], rank: int | None = None) -> Adapter:
    """One adapter that does what all do together at their weights, of any ranks, alphas, targets and signs.

    Exact by concatenation along the rank: [w_1 s_1 B_1, w_2 s_2 B_2] [A_1; A_2]. With `rank`, layers above it are cut to
    that rank by the singular value decomposition of the exact sum, the best such (Eckart and Young 1936). The metadata's
    `combination` has, for each layer, the relative error |result - sum| / |sum| (Frobenius) against the sum in float64, and
    the share of energy (squared singular values) that a cut retained. Raises ValueError for a rank below 1 or no adapters.
    """
    if not pairs:
        raise ValueError("combine: no adapters given")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    layers, errors, retained = {}, {}, {}
    for path in dict.fromkeys(path for adapter, _ in pairs for path in adapter.layers):
        parts = [(adapter.layers[path], weight) for adapter, weight in pairs if path in adapter.layers]
        factors = [(weight * up, down) for layer, weight in parts for up, down in [layer.factors(torch.float64)]]
        sizes = {(up.shape[0], down.shape[1]) for up, down in factors}
        if len(sizes) > 1:
            raise ValueError(f"{path}: the adapters change weights of other sizes, {sorted(sizes)}; they are of other bases")
        exact = sum(up @ down for up, down in factors)
        up, down = torch.cat([up for up, _ in factors], dim=1), torch.cat([down for _, down in factors])
        if rank is not None and down.shape[0] > rank:
            up, down, retained[path] = cut(up, down, rank)
        shape = max((layer.down.shape[1:] for layer, _ in parts), key=len)  # a 1x1 convolution's factors may be flat
        ends = [1] * (len(shape) - 1)
        layers[path] = LowRank(down.float().reshape(-1, *shape), up.float().reshape(*up.shape, *ends), down.shape[0])
        result, norm = torch.matmul(*layers[path].factors(torch.float64)), float(exact.norm())
        errors[path] = float((result - exact).norm()) / norm if norm else 0.0
    combination = {"weights": [weight for _, weight in pairs], "relative_error": errors, "retained_energy": retained}
    told = [adapter.metadata for adapter, _ in pairs]
    known = {name: m[name] for m in told[::-1] for name in ("template", "ages") if name in m}  # the first that has them
    bases = [m.get("base") for m in told]
    known |= {"base": bases[0]} if bases[0] and all(base == bases[0] for base in bases) else {}
    return Adapter(layers, {**known, "combination": combination, "parts": told})


def cut(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of up to `rank` for up down, and the share of energy they retain."""
    u, s, v = thin_svd(up, down)
    root, energy = s[:rank].sqrt(), s.square()  # half of each singular value to either factor
    if not len(s):  # nothing is changed: factors of rank 1 that say so
        return up[:, :1] * 0, down[:1] * 0, 1.0
    return u[:, :rank] * root, root[:, None] * v[:, :rank].T, float(energy[:rank].sum() / energy.sum())


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None where there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def parse_pairs(texts: Sequence[str], flag: str = "--adapter") -> list[tuple[str, Weight]]:
    """PATH=WEIGHT, as often as given, the weight as compose.parse_weight reads it; a path alone has weight 1.

    Raises InputError for a weight that is none, or a file given twice.
    """
    pairs = []
    for text in texts:
        match = re.fullmatch(r"(.*?)=([-+\d.][^/=]*(?:,\w+=[^/=,]+)*)", text) or re.fullmatch(r"(.*)=(.*)", text)
        try:
            pairs.append((match[1], parse_weight(match[2])) if match else (text, 1.0))
        except ValueError as error:
            raise InputError(f"{flag} {text}: {error}; write PATH=WEIGHT") from None
    if len({path for path, _ in pairs}) < len(pairs):
        raise InputError(f"{flag}: the same file is given twice; add their weights up")
    return pairs


def describe(adapter: Adapter) -> dict:
    """What `info` shows: counts, ranks and scales, and the metadata."""
    parts = {"unet": 0, "text_encoder": 0}
    for path in adapter.layers:
        parts["text_encoder" if path.startswith(TEXT) else "unet"] += 1
    ranks, scales = ({getattr(layer, name) for layer in adapter.layers.values()} for name in ("rank", "scale"))
    norm = math.sqrt(sum(float(layer.delta.square().sum()) for layer in adapter.layers.values()))
    return {"layers": parts, "ranks": sorted(ranks), "scales": sorted(scales), "norm": norm, "metadata": adapter.metadata}


def fuse(source: str, pairs: Sequence[tuple[str, Weight]], folder: Path) -> None:
    """Write a model with adapters in its weights as a folder in diffusers' layout, in float16."""
    from ..aging.stable_diffusion import StableDiffusion

    output_folder(folder)
    sd = StableDiffusion.load(source)
    for path, _ in pairs:
        sd.load_adapter(path, path)
    if any(varies(weight) for _, weight in pairs):
        raise InputError("fuse: a model's weights are the same at all timesteps; give weights without @")
    sd.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])
    sd.save(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lida.adapters", description="Adapters: look, convert, add up, compare.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("info", help="what is in a file")
    two = commands.add_parser("convert", help="another format, the same changes")
    for command in (one, two):
        command.add_argument("adapter", help="file or folder in any format")
    three = commands.add_parser("combine", help="several in one, exactly")
    four = commands.add_parser("compare", help="where two change the same, and how alike")
    four.add_argument("a", help="an adapter")
    four.add_argument("b", help="another")
    five = commands.add_parser("fuse", help="a model with adapters in its weights")
    five.add_argument("model", help="model folder, .safetensors file or hub id")
    for command in (three, five):
        command.add_argument("adapters", nargs="+", metavar="PATH=WEIGHT", help="an adapter and its weight")
    for command, what in ((two, "file or folder"), (three, "file or folder"), (four, "folder"), (five, "folder")):
        command.add_argument("-o", "--output", type=Path, required=True, help=f"{what} to write")
    for command in (two, three):
        command.add_argument("--format", choices=FORMATS, default="diffusers", help="(default: diffusers)")
    three.add_argument("--rank", type=int, help="cut to this rank by SVD (default: the exact sum's)")
    args = parser.parse_args()

    if args.command == "info":
        print(json.dumps(describe(load_adapter(args.adapter)), indent=2))
    elif args.command == "convert":
        print(save_adapter(args.output, load_adapter(args.adapter), args.format))
    elif args.command == "combine":
        pairs = parse_pairs(args.adapters, "combine")
        if not all(isinstance(weight, float) for _, weight in pairs):
            raise InputError("combine: one file has one weight for all blocks and timesteps; give a number for each")
        try:
            adapter = combine([(load_adapter(path), weight) for path, weight in pairs], args.rank)
        except ValueError as error:
            raise InputError(f"combine: {error}") from None
        made = adapter.metadata["combination"]
        print(f"largest relative error of a layer: {max(made['relative_error'].values()):.1e}")
        if made["retained_energy"]:
            print(f"least energy retained by a layer: {min(made['retained_energy'].values()):.4f}")
        print(save_adapter(args.output, adapter, args.format))
    elif args.command == "compare":
        try:
            report = compare(load_adapter(args.a), load_adapter(args.b))
        except ValueError as error:
            raise InputError(f"compare: {error}") from None
        write_report(report, output_folder(args.output))
    else:
        fuse(args.model, parse_pairs(args.adapters, "fuse"), args.output)
        print(args.output)


if __name__ == "__main__":
    run(main)
