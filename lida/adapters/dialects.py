"""The spellings in which adapters of Stable Diffusion 1.5 are traded, into one form and out of it.

Inside, a layer is a path of the UNet (`down_blocks.0...attn1.to_q`), or, behind `text_encoder.`, of the text encoder. What
cannot be applied is refused by name: nothing is dropped in silence.
"""

import json
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..doors.errors import InputError
from ..nn.lora import LowRank

TEXT = "text_encoder."
# The three spellings of diffusers and peft: attn.processor.to_q_lora.down, attn.to_q.lora.down, attn.to_q.lora_A
FACTOR = re.compile(
    r"(?P<path>.+?)(?:\.processor)?"
    r"(?:\.(?P<old>to_q|to_k|to_v|to_out)_lora\.(?P<a>down|up)|\.lora(?:_linear_layer)?\.(?P<b>down|up)"
    r"|\.lora_(?P<c>A|B|down|up)(?:\.default)?)\.weight"
)
ROOTS = {"unet": ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.")}
ROOTS["text_encoder"] = ("encoder.layers.", "embeddings.", "final_layer_norm")
# kohya joins a path by underscores; of its words, these have one inside
WORD = re.compile(
    r"down_blocks|mid_block|up_blocks|transformer_blocks|time_embedding|time_emb_proj|linear_[12]|conv_(?:in|out|shortcut)"
    r"|proj_(?:in|out)|to_(?:q|k|v|out)|text_model|self_attn|[qkv]_proj|out_proj|layer_norm[12]|token_embedding"
    r"|position_embedding|final_layer_norm|[a-z]+[12]?|\d+"
)
FOREIGN = {
    r"\.hada_": "LoHa", r"\.lokr_": "LoKr", r"\.dora_scale$|lora_magnitude_vector": "DoRA", r"\.lora_mid\.": "a Tucker core",
    r"\.oft_|\.boft_": "OFT", r"\.diff(_b)?$": "whole differences of weights", r"\.bias$": "biases",
    r"^lora_te2_|^text_encoder_2\.": "SDXL's second text encoder",
    r"^lora_transformer_|^transformer\.|(double|single)_blocks": "a transformer's, not a UNet's",
    r"^lora_unet_(input|output)_blocks_|^lora_unet_middle_block_": "latent diffusion's names, which SDXL's adapters have",
}  # fmt: skip

Layers = Mapping[str, LowRank]


def inner_path(path: str) -> str | None:
    """A path as it is inside, from one with or without its component in front; None where it is neither's."""
    for component, prefix in (("unet", ""), ("text_encoder", TEXT)):
        rest = path.removeprefix(f"{component}.").removeprefix("text_model." if prefix else "")
        if rest.startswith(ROOTS[component]):
            return prefix + rest
    return None


def dotted(name: str) -> str | None:
    """kohya's underscored name as a path; None where it is not made of the words that SD1.5's paths are made of."""
    words, place = [], 0
    while place < len(name):
        match = WORD.match(name, place)
        if not match or name[match.end() : match.end() + 1] not in ("", "_"):
            return None
        words.append(match[0])
        place = match.end() + 1
    return ".".join(words)


def parse_key(key: str) -> tuple[str, str] | None:
    """A tensor's name -> the layer's path and what it is of it: down, up or alpha. None for any other name."""
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
    if old:  # the projection is named by the factor, and the text encoder's by the names of the UNet's
        text = "self_attn" in path
        path += "." + ({"to_out": "out_proj"}.get(old, f"{old[-1]}_proj") if text else old.replace("to_out", "to_out.0"))
    path = inner_path(path)
    return path and (path, "down" if (match["a"] or match["b"] or match["c"]) in ("down", "A") else "up")


def parse(tensors: Mapping[str, Tensor], config: Mapping, where: str) -> dict[str, LowRank]:
    """The layers of a file's tensors. `config` is peft's, keys with the component in front (`unet.lora_alpha`).

    A layer's alpha is its own tensor's, else the config's, else its rank; rsLoRA's alpha / sqrt(rank) is expressed by alpha.
    Raises InputError, with `where` in front, for whatever cannot be applied.
    """
    for pattern, kind in FOREIGN.items():
        names = [name for name in tensors if re.search(pattern, name)]
        if names:
            raise InputError(
                f"{where}: has {kind} in {len(names)} tensors ({', '.join(names[:3])}); lida applies plain LoRA of SD1.5"
            )
    for component in ("unet", "text_encoder"):
        for flag in ("use_dora", "fan_in_fan_out", "modules_to_save"):
            if config.get(f"{component}.{flag}"):
                raise InputError(f"{where}: was made with {flag}, which lida does not compute; train it as plain LoRA")
        start = config.get(f"{component}.init_lora_weights")
        if isinstance(start, str) and start not in ("gaussian", "eva", "orthogonal"):
            raise InputError(f"{where}: was begun by {start}, which changes the base too; convert it with peft to plain LoRA")
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        place = parse_key(key)
        if place is None or place[1] in found.get(place[0], {}):
            unknown.append(key)
        else:
            found.setdefault(place[0], {})[place[1]] = tensor
    if unknown:
        raise InputError(f"{where}: {len(unknown)} tensors are no part of an SD1.5 adapter: {', '.join(unknown[:5])}")
    if not found:
        raise InputError(f"{where}: holds no tensors; train it again")
    return {path: layer_of(path, parts, config, where) for path, parts in found.items()}


def layer_of(path: str, parts: Mapping[str, Tensor], config: Mapping, where: str) -> LowRank:
    """One layer, checked."""
    missing = {"down", "up"} - parts.keys()
    if missing:
        raise InputError(f"{where}: {path} has no {' and no '.join(sorted(missing))}; fetch it again")
    down, up = parts["down"], parts["up"]
    pair = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[2:].numel() != 1 or down.shape[0] != up.shape[1]:
        raise InputError(f"{where}: {path} is no pair of factors of one rank ({pair}); fetch it again")
    for name, tensor in parts.items():  # float() first: eight bits know no isfinite; diffusers writes alpha as an integer
        if (name != "alpha" and not tensor.is_floating_point()) or not tensor.float().isfinite().all():
            raise InputError(f"{where}: {path}, {name}: is not made of finite numbers ({tensor.dtype}); train it again")
    rank = down.shape[0]
    if not rank or ("alpha" in parts and parts["alpha"].numel() != 1):
        raise InputError(f"{where}: {path} has rank {rank} and not one alpha; fetch it again")
    component, inner = ("text_encoder", path.removeprefix(TEXT)) if path.startswith(TEXT) else ("unet", path)
    if "alpha" in parts:
        alpha = float(parts["alpha"]) or float(rank)  # kohya writes 0 for "as the rank"
    else:
        # As peft reads its config: a pattern is a regular expression that the end of a path matches.
        patterns = (config.get(f"{component}.alpha_pattern") or {}).items()
        names = (inner, f"text_model.{inner}") if component == "text_encoder" else (inner,)  # of old and new transformers
        matched = [value for key, value in patterns if any(re.fullmatch(rf"(.*\.)?({key})", name) for name in names)]
        alpha = matched[0] if matched else config.get(f"{component}.lora_alpha")
        alpha = float(rank if alpha is None else alpha)
        if config.get(f"{component}.use_rslora"):
            alpha *= math.sqrt(rank)  # alpha / sqrt(r) = (alpha sqrt(r)) / r (Kalajdzievski 2023)
    return LowRank(down, up, alpha)


def with_alpha(layer: LowRank, alpha: float) -> LowRank:
    """The same change under another alpha, the rest of the scale in `up`, in float32 where it has to be rounded anew."""
    if layer.alpha == alpha:
        return layer
    return LowRank(layer.down, layer.up.float() * (layer.alpha / alpha), alpha)


def split(layers: Layers) -> dict[str, dict[str, LowRank]]:
    """The UNet's and the text encoder's layers, each by its own model's paths; a model without any is left out."""
    parts: dict[str, dict[str, LowRank]] = {"unet": {}, "text_encoder": {}}
    for path, layer in layers.items():
        component = "text_encoder" if path.startswith(TEXT) else "unet"
        parts[component][path.removeprefix(TEXT)] = layer
    return {component: part for component, part in parts.items() if part}


def peft_config(layers: Layers, prefix: str = "") -> dict:
    """peft's configuration: rank and alpha, and where they differ, patterns."""
    ranks, alphas = {path: layer.rank for path, layer in layers.items()}, {path: layer.alpha for path, layer in layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        f"{prefix}r": rank,
        f"{prefix}lora_alpha": alpha,
        f"{prefix}rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        f"{prefix}alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        f"{prefix}target_modules": sorted(layers),
    }


def as_diffusers(layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header as diffusers writes them. alpha becomes the rank: not every reader looks at the header."""
    tensors, config = {}, {}
    for component, part in split(layers).items():
        part = {path: with_alpha(layer, layer.rank) for path, layer in part.items()}
        infix, inner = ("lora", "") if component == "unet" else ("lora_linear_layer", "text_model.")
        for path, layer in part.items():
            tensors[f"{component}.{inner}{path}.{infix}.down.weight"] = layer.down
            tensors[f"{component}.{inner}{path}.{infix}.up.weight"] = layer.up
        config |= peft_config(part, f"{component}.")
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def as_kohya(layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header as kohya's scripts write them, one alpha for all layers: diffusers misreads files with several."""
    alpha = next(iter(layers.values())).alpha
    if any(layer.alpha != alpha for layer in layers.values()):
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
    """For each component its tensors and adapter_config.json, as PeftModel.save_pretrained writes them."""
    folders = {}
    for component, part in split(layers).items():
        tensors = {}
        for path, layer in part.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = layer.down
            tensors[f"base_model.model.{path}.lora_B.weight"] = layer.up
        config = {"peft_type": "LORA", "base_model_name_or_path": None, "bias": "none", **peft_config(part)}
        folders[component] = tensors, config
    return folders
