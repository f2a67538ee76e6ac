"""The spellings in which adapters of Stable Diffusion 1.5 are traded: tensor names -> layers, and layers -> tensors.

Here a layer is a module path of the UNet (`down_blocks.0...attn1.to_q`) or, behind `text_encoder.`, of the text encoder. What
cannot be applied is refused by name; nothing is dropped in silence.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..doors.tensors import FLOATS, is_finite
from ..nn.lora import LowRank
from .peft_config import PeftConfig, config_of

TEXT = "text_encoder."
# The three spellings of diffusers and peft: attn.processor.to_q_lora.down, attn.to_q.lora.down, attn.to_q.lora_A
FACTOR = re.compile(
    r"(?P<path>.+?)(?:\.processor)?"
    r"(?:\.(?P<old>to_q|to_k|to_v|to_out)_lora\.(?P<a>down|up)|\.lora(?:_linear_layer)?\.(?P<b>down|up)"
    r"|\.lora_(?P<c>A|B|down|up)(?:\.default)?)\.weight"
)
ROOTS = {"unet": ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.")}
ROOTS["text_encoder"] = ("encoder.layers.", "embeddings.", "final_layer_norm")
# kohya joins a path by underscores. These of its words have one inside:
WORD = re.compile(
    r"down_blocks|mid_block|up_blocks|transformer_blocks|time_embedding|time_emb_proj|linear_[12]|conv_(?:in|out|shortcut)"
    r"|proj_(?:in|out)|to_(?:q|k|v|out)|text_model|self_attn|[qkv]_proj|out_proj|layer_norm[12]|token_embedding"
    r"|position_embedding|final_layer_norm|[a-z]+[12]?|\d+"
)
FOREIGN = {
    r"\.hada_": "LoHa", r"\.lokr_": "LoKr", r"\.dora_scale$|lora_magnitude_vector": "DoRA", r"\.lora_mid\.": "a Tucker core",
    r"\.oft_|\.boft_": "OFT", r"\.diff(_b)?$": "whole differences of weights", r"\.bias$": "biases",
    r"\.w_norm$|\.b_norm$": "norms", r"\.ia3_": "IA3", r"\.vera_lambda_": "VeRA", r"\.lora_E": "AdaLoRA",
    r"lora_embedding_": "changes of embeddings", r"^(unet|text_encoder):\d+:": "cloneofsimo's numbered layers",
    r"^(emb_params|string_to_param|bundle_emb)": "textual inversion", r"lllite|control_model|^control_": "ControlNet",
    r"^lora_te2_|^text_encoder_2\.": "SDXL's second text encoder",
    r"^lora_transformer_|^transformer\.|(double|single)_blocks": "a transformer's layers, not a UNet's",
    r"^lora_unet_(input|output)_blocks_|^lora_unet_middle_block_": "latent diffusion's names, which SDXL's adapters have",
}  # fmt: skip
MOST_LAYERS = 4096
LARGEST = 2**28  # values of a weight; SD1.5's largest has 38 million

Layers = Mapping[str, LowRank]


def block_of(path: str) -> str:
    """Return the part of the model that a layer belongs to: down, mid, up, text, or ends (the UNet's first and last layers)."""
    if path.startswith(TEXT):
        return "text"
    match = re.match(r"(down|mid|up)_block", path)
    return match[1] if match else "ends"


def inner_path(path: str) -> str | None:
    """Return lida's form of a path that may have its component in front; None if it is neither component's."""
    for component, prefix in (("unet", ""), ("text_encoder", TEXT)):
        rest = path.removeprefix(f"{component}.").removeprefix("text_model." if prefix else "")
        if rest.startswith(ROOTS[component]):
            return prefix + rest
    return None


def dotted(name: str) -> str | None:
    """Return the path of kohya's underscored name; None if it holds other words than SD1.5's paths do."""
    words = WORD.findall(name)
    return ".".join(words) if "_".join(words) == name else None


def parse_key(key: str) -> tuple[str, str] | None:
    """Return the layer's path and `down`, `up` or `alpha` from a tensor's name; None for any other name."""
    kohya = re.fullmatch(r"lora_(unet|te|te1)_(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)", key)
    if kohya:
        path = dotted(kohya[2])
        component = "unet" if kohya[1] == "unet" else "text_encoder"
        path = path and inner_path(f"{component}.{path}")
        return path and (path, kohya[3].removeprefix("lora_").removesuffix(".weight"))
    key = key.removeprefix("base_model.model.")
    match = FACTOR.fullmatch(key)
    if not match:
        path = inner_path(key.removesuffix(".alpha")) if key.endswith(".alpha") else None
        return path and (path, "alpha")
    path, old = match["path"], match["old"]
    if old:  # the factor's name holds the projection's, for the text encoder too by the UNet's names
        text = "self_attn" in path
        path += "." + ({"to_out": "out_proj"}.get(old, f"{old[-1]}_proj") if text else old.replace("to_out", "to_out.0"))
    path = inner_path(path)
    return path and (path, "down" if (match["a"] or match["b"] or match["c"]) in ("down", "A") else "up")


def refuse_foreign(names: Collection[str], where: str) -> None:
    """Raise InputError if the tensors' names are those of another kind of adapter, and say which."""
    for pattern, kind in FOREIGN.items():
        if found := [name for name in names if re.search(pattern, name)]:
            count = f"{len(found)} tensors ({', '.join(found[:3])})"
            raise InputError(f"{where}: has {kind} in {count}; lida applies plain LoRA of SD1.5")


def parse(tensors: Mapping[str, Tensor], configs: Mapping[str, PeftConfig], where: str) -> dict[str, LowRank]:
    """Return the layers of a file's tensors. `configs` has peft's config for "unet" and for "text_encoder".

    A layer's alpha is its own tensor, else what the config says, else its rank. Raises InputError, with `where` in front, for
    whatever cannot be applied.
    """
    found, unknown = {}, []
    for key, tensor in tensors.items():
        place = parse_key(key)
        if place is None or place[1] in found.get(place[0], {}):
            unknown.append(key)
        else:
            found.setdefault(place[0], {})[place[1]] = tensor
    if unknown:
        raise InputError(f"{where}: {len(unknown)} tensors are no part of an SD1.5 adapter: {', '.join(unknown[:5])}")
    if not 0 < len(found) <= MOST_LAYERS:
        raise InputError(f"{where}: holds {len(found) or 'no'} layers; an adapter of SD1.5 has 1 to {MOST_LAYERS}")
    for path, parts in found.items():
        check_layer(path, parts, where)
    layers = {}
    for component, part in by_component(found).items():
        alphas = configs[component].alphas({path: len(parts["down"]) for path, parts in part.items()}, where)
        for path, parts in part.items():
            rank, alpha = len(parts["down"]), float(parts["alpha"]) if "alpha" in parts else alphas[path]
            alpha = float(rank) if "alpha" in parts and not alpha else alpha  # kohya writes 0 for the rank
            path = TEXT + path if component == "text_encoder" else path
            layers[path] = LowRank(parts["down"].clone(), parts["up"].clone(), alpha)
    return layers


def check_layer(path: str, parts: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError unless these are finite factors of one rank, and at most one alpha."""
    if missing := {"down", "up"} - parts.keys():
        raise InputError(f"{where}: {path} has no {' and no '.join(sorted(missing))}; fetch it again")
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha")
    pair = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[2:].numel() != 1 or down.shape[0] != up.shape[1]:
        raise InputError(f"{where}: {path} is no pair of factors of one rank ({pair}); fetch it again")
    if not down.numel() or not up.numel() or len(up) * down[0].numel() > LARGEST:
        raise InputError(f"{where}: {path} has an impossible size ({pair}); fetch it again")
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{where}: {path} has {alpha.numel()} values of alpha, not one; fetch it again")
    for name, tensor in parts.items():  # in float32, which is computed in; diffusers writes alpha as an integer
        kinds = FLOATS | {torch.int32, torch.int64} if name == "alpha" else FLOATS
        if tensor.dtype not in kinds or not is_finite(tensor.float()):
            raise InputError(f"{where}: {path}, {name}: is not made of finite numbers ({tensor.dtype}); train it again")


def by_component(layers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort layers into "unet" and "text_encoder", each with its own model's paths. A model without layers is left out."""
    parts: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    for path, layer in layers.items():
        parts["text_encoder" if path.startswith(TEXT) else "unet"][path.removeprefix(TEXT)] = layer
    return {component: part for component, part in parts.items() if part}


def with_alpha(layer: LowRank, alpha: float) -> LowRank:
    """Return the same change with another alpha. The rest of the scale goes into `up`, in float32."""
    if layer.alpha == alpha:
        return layer
    return LowRank(layer.down, layer.up.float() * (layer.alpha / alpha), alpha)


def as_diffusers(layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header as diffusers writes them. alpha becomes the rank: not every reader looks at the header."""
    tensors, config = {}, {}
    for component, part in by_component(layers).items():
        part = {path: with_alpha(layer, layer.rank) for path, layer in part.items()}
        infix, inner = ("lora", "") if component == "unet" else ("lora_linear_layer", "text_model.")
        for path, layer in part.items():
            tensors[f"{component}.{inner}{path}.{infix}.down.weight"] = layer.down
            tensors[f"{component}.{inner}{path}.{infix}.up.weight"] = layer.up
        config |= {f"{component}.{name}": value for name, value in config_of(part).items()}
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def as_kohya(layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header as kohya's scripts write them, with one alpha: diffusers misreads files with several."""
    alpha = next(iter(layers.values())).alpha
    if not 1e-6 < abs(alpha) < 1e6 or any(layer.alpha != alpha for layer in layers.values()):  # readers take 0 for the rank
        alpha = float(max(layer.rank for layer in layers.values()))
    tensors = {}
    for path, layer in layers.items():
        layer, prefix = with_alpha(layer, alpha), "lora_te_text_model_" if path.startswith(TEXT) else "lora_unet_"
        name = prefix + path.removeprefix(TEXT).replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    rank = max(layer.rank for layer in layers.values())
    header = {"ss_network_module": "networks.lora", "ss_network_dim": f"{rank}", "ss_network_alpha": f"{alpha}"}
    return tensors, {**header, "ss_base_model_version": "sd_v1", "ss_v2": "False"}


def as_peft(layers: Layers) -> dict[str, tuple[dict[str, Tensor], dict]]:
    """Return the tensors and the adapter_config.json of each component, as PeftModel.save_pretrained writes them."""
    folders = {}
    for component, part in by_component(layers).items():
        tensors = {}
        for path, layer in part.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = layer.down
            tensors[f"base_model.model.{path}.lora_B.weight"] = layer.up
        config = {"peft_type": "LORA", "base_model_name_or_path": None, "bias": "none", **config_of(part)}
        folders[component] = tensors, config
    return folders
