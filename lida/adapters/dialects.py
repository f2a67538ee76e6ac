"""Tensor names in the files of adapters: names -> layers, and layers -> named tensors.

Tensors that cannot be applied are refused by name; none is dropped silently.
"""

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..doors.errors import InputError, blamed
from ..doors.tensors import FLOATS, is_finite
from ..nn.lora import LowRank
from .adapter import TEXT
from .peft_config import PeftConfig, config_of

# x.processor.to_q_lora.down, x.to_q.lora.down, x.to_q.lora_A of diffusers and peft; lora_unet_x_to_q.lora_down of kohya
KEY = re.compile(r"(?P<path>.{1,256}?)(?:[._]lora(?:_linear_layer)?[._](?P<factor>A|B|down|up)(?:\.default)?\.weight|\.alpha)")
FACTORS = {"A": "down", "B": "up", None: "alpha"}
ROOTS = {
    "unet.": ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding."),
    TEXT: ("encoder.layers.", "embeddings.", "final_layer_norm"),
}
# kohya joins a path by underscores. WORD finds its parts again, of which these have an underscore inside:
WORD = re.compile(
    r"down_blocks|mid_block|up_blocks|transformer_blocks|time_embedding|time_emb_proj|linear_[12]|conv_(?:in|out|shortcut)"
    r"|proj_(?:in|out)|to_(?:q|k|v|out)|text_model|self_attn|[qkv]_proj|out_proj|layer_norm[12]|token_embedding"
    r"|position_embedding|final_layer_norm|[a-z]+[12]?|\d+"
)
FOREIGN = {
    r"\.hada_": "LoHa", r"\.lokr_": "LoKr", r"\.dora_scale$|lora_magnitude_vector": "DoRA",
    r"^lora_te2_|^text_encoder_2\.": "SDXL's second text encoder",
    r"^lora_transformer_|^transformer\.|(double|single)_blocks": "a transformer's layers, not a UNet's",
    r"^lora_unet_(input|output)_blocks_|^lora_unet_middle_block_": "latent diffusion's names, which SDXL's adapters have",
}  # fmt: skip
MOST_LAYERS = 1024
LARGEST = 2**28  # values of a weight; SD1.5's largest has 38 million

Layers = Mapping[str, LowRank]


def parse_key(key: str) -> tuple[str, str] | None:
    """Return the layer's path and `down`, `up` or `alpha` from a tensor's name; None for any other name."""
    match = KEY.fullmatch(key.removeprefix("base_model.model."))
    if not match:
        return None
    path = match["path"]
    if kohya := re.fullmatch(r"lora_(unet|te1?)_(\w+)", path):
        words = WORD.findall(kohya[2])
        if "_".join(words) != kohya[2]:
            return None
        path = ("unet." if kohya[1] == "unet" else TEXT) + ".".join(words)
    path = re.sub(r"\.to_out$", ".to_out.0", path.replace(".processor.", "."))
    for component, roots in ROOTS.items():
        rest = path.removeprefix(component).removeprefix("text_model." if component == TEXT else "")
        if rest.startswith(roots):
            return (TEXT if component == TEXT else "") + rest, FACTORS.get(match["factor"], match["factor"])
    return None


def parse(tensors: Mapping[str, Tensor], configs: Mapping[str, PeftConfig], where: str) -> dict[str, LowRank]:
    """Return the layers of a file's tensors. `configs` has peft's config for "unet" and for "text_encoder".

    A layer's alpha is its own tensor, else that of the config, else its rank. Raises InputError, which begins with `where`, for
    tensors that cannot be applied.
    """
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        path, part = parse_key(key) or ("", "")
        if not path or found.setdefault(path, {}).setdefault(part, tensor) is not tensor:
            unknown.append(key)
    if unknown:
        kinds = (kind for pattern, kind in FOREIGN.items() if any(re.search(pattern, name) for name in unknown))
        kind, names = next(kinds, "names that are no part of an SD1.5 adapter"), ", ".join(unknown[:3])
        raise InputError(f"{where}: has {kind} in {len(unknown)} tensors ({names}); lida applies plain LoRA of SD1.5")
    if not 0 < len(found) <= MOST_LAYERS:
        raise InputError(f"{where}: holds {len(found) or 'no'} layers; an adapter of SD1.5 has 1 to {MOST_LAYERS}")
    layers = {}
    for path, parts in found.items():
        check_layer(path, parts, where)
        rank, component = len(parts["down"]), "text_encoder" if path.startswith(TEXT) else "unet"
        if "alpha" in parts:
            alpha = float(parts["alpha"]) or float(rank)  # kohya writes 0 for the rank
        else:
            with blamed(f"{where}: "):
                alpha = configs[component].alpha(path.removeprefix(TEXT), rank)
        layers[path] = LowRank(parts["down"].clone(), parts["up"].clone(), alpha)
    return layers


def check_layer(path: str, parts: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError unless the parts are two finite factors of the same rank, and at most one alpha."""
    if missing := {"down", "up"} - parts.keys():
        raise InputError(f"{where}: {path} has no {' and no '.join(sorted(missing))}; fetch it again")
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha", torch.zeros(()))
    flat = down.ndim in (2, 4) and up.ndim in (2, 4) and up.shape[2:].numel() == 1 and alpha.numel() == 1
    if not flat or down.shape[0] != up.shape[1] or not 0 < len(up) * down[:1].numel() <= LARGEST:
        pair = f"down {tuple(down.shape)}, up {tuple(up.shape)}, alpha {tuple(alpha.shape)}"
        raise InputError(f"{where}: {path} is not a pair of factors of the same rank ({pair}); fetch it again")
    for name, tensor in parts.items():  # computed in float32; diffusers writes alpha as an integer
        kinds = FLOATS | {torch.int32, torch.int64} if name == "alpha" else FLOATS
        if tensor.dtype not in kinds or not is_finite(tensor.float()):
            raise InputError(f"{where}: {path}, {name}: is not made of finite numbers ({tensor.dtype}); train it again")


def by_component(layers: Layers) -> dict[str, Layers]:
    """Return the layers of "unet" and of "text_encoder", by the paths of each model. A model without layers is left out."""
    text = {path.removeprefix(TEXT): layer for path, layer in layers.items() if path.startswith(TEXT)}
    unet = {path: layer for path, layer in layers.items() if not path.startswith(TEXT)}
    return {component: part for component, part in (("unet", unet), ("text_encoder", text)) if part}


def with_alpha(layers: Layers, alpha: float | None = None) -> Layers:
    """Return the same changes with another alpha, by default each layer's rank. `up` absorbs the scale, in float32."""
    changed = {}
    for path, layer in layers.items():
        wanted = float(layer.rank if alpha is None else alpha)
        up = layer.up if layer.alpha == wanted else layer.up.float() * (layer.alpha / wanted)
        changed[path] = LowRank(layer.down, up, wanted)
    return changed


def named(layers: Layers, down: str, up: str) -> dict[str, Tensor]:
    """Return the factors by name; `down` and `up` are names with {} for the path."""
    return {name.format(path): x for path, layer in layers.items() for name, x in ((down, layer.down), (up, layer.up))}


def as_diffusers(layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header as diffusers writes them. Each alpha must be the rank, as some readers ignore the header."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, object] = {}
    for component, part in by_component(layers).items():
        stem = "unet.{}.lora" if component == "unet" else "text_encoder.text_model.{}.lora_linear_layer"
        tensors |= named(part, f"{stem}.down.weight", f"{stem}.up.weight")
        config |= {f"{component}.{name}": value for name, value in config_of(part).items()}
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def as_kohya(layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and an empty header as kohya's scripts write them. All layers must have one alpha."""
    alpha, renamed = next(iter(layers.values())).alpha, {}
    for path, layer in layers.items():
        prefix = "lora_te_text_model_" if path.startswith(TEXT) else "lora_unet_"
        renamed[prefix + path.removeprefix(TEXT).replace(".", "_")] = layer
    tensors = named(renamed, "{}.lora_down.weight", "{}.lora_up.weight")
    tensors |= {f"{name}.alpha": torch.tensor(alpha) for name in renamed}
    return tensors, {}


def as_peft(layers: Layers) -> dict[str, tuple[dict[str, Tensor], dict]]:
    """Return each component's tensors and adapter_config.json, as PeftModel.save_pretrained writes them; alpha is the rank."""
    folders = {}
    for component, part in by_component(layers).items():
        tensors = named(part, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")
        config = {"peft_type": "LORA", "base_model_name_or_path": None, "bias": "none", **config_of(part)}
        folders[component] = tensors, config
    return folders
