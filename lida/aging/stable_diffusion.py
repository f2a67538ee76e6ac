"""StableDiffusion: the parts that belong together, and the adapters that are merged into them."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ..adapters.adapter import Adapter, check_fits, load_adapter, submodule
from ..checkpoints.models import (
    load_schedule,
    load_text_encoder,
    load_unet,
    load_vae,
    save_model,
    save_schedule,
    save_text_encoder,
)
from ..adapters.merging import Rule, Weight, varies, weight_at, weighted_sum
from ..adapters.dialects import TEXT
from ..diffusion.schedule import NoiseSchedule
from ..doors.errors import InputError
from ..nn.layers import Prompt
from ..photos.masks import mask_to_latents
from ..diffusion.samplers import guided
from ..checkpoints.sources import MOVED
from ..nn.text import TextEncoder, encode_prompts
from ..nn.unet import UNet
from ..nn.vae import VAE

Words = str | Mapping[str, float]  # a prompt, or several with the shares that their embeddings are mixed by


@dataclass
class StableDiffusion:
    """A UNet, a VAE, a text encoder and a noise schedule that belong together, and adapters by name."""

    unet: UNet
    vae: VAE
    text_encoder: TextEncoder
    schedule: NoiseSchedule
    name: str = ""  # of the folder, file or hub id that it came from
    adapters: dict[str, Adapter] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)  # of the adapters that are merged
    rule: Rule = weighted_sum  # that they are merged by
    merged: dict[str, tuple[float, ...]] = field(default_factory=dict)  # each path's weights, as numbers
    base_weights: dict[str, Tensor] = field(default_factory=dict)  # of the modules that these changed, untouched

    @classmethod
    def load(
        cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "StableDiffusion":
        """Load a folder in diffusers' layout, a single .safetensors file, or a model of the hub by its id.

        The VAE stays in float32 where `dtype` is float16, in which its activations can overflow. Raises InputError that
        names the file and what is amiss with it.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {device}: {str(error).splitlines()[0]}; cpu always works") from None
        unet, text_encoder = load_unet(source, dtype, device), load_text_encoder(source, dtype, device)
        vae = load_vae(source, torch.float32 if dtype == torch.float16 else dtype, device)
        widths = {"latent channels": (unet.config.out_channels, vae.config.latent_channels)}
        widths["text width"] = (unet.config.cross_attention_dim, text_encoder.width)
        if not unet.inpaints:
            widths["input channels"] = (unet.config.in_channels, unet.config.out_channels)
        for what, (a, b) in widths.items():
            if a != b:
                raise InputError(f"{source}: the UNet's {what}, {a}, should be {b}; the parts are not of one model")
        name = Path(source).resolve().name if Path(source).exists() else MOVED.get(str(source), str(source))
        return cls(unet, vae, text_encoder, load_schedule(source), name)

    @property
    def base(self) -> dict[str, str]:
        """Which model this is, for what is made with it to say: its name, and the fingerprint of each part."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder.model, "vae": self.vae}
        return {"name": self.name, **{part: model.fingerprint for part, model in parts.items()}}

    @property
    def resolution(self) -> int:
        """The side in pixels of the squares that the UNet was trained on."""
        size = self.unet.config.sample_size or 64
        if self.unet.inpaints and size == 32:  # a slip in the inpainting model's config, which diffusers corrects too
            size = 64
        return size * self.vae.factor

    @property
    def device(self) -> torch.device:
        """Where the UNet lies."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's floating-point type."""
        return self.unet.conv_in.weight.dtype

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the model, with what is merged into it, as a folder in diffusers' layout."""
        for part in ("unet", "vae"):
            save_model(getattr(self, part), Path(folder, part), dtype)
        save_text_encoder(self.text_encoder, folder, dtype)
        save_schedule(self.schedule, folder)

    def module(self, path: str) -> nn.Module | None:
        """The module that an adapter's path means, of the UNet or behind `text_encoder.`; None where there is none."""
        if not path.startswith(TEXT):
            return submodule(self.unet, path)
        inner = getattr(self.text_encoder.model, "text_model", self.text_encoder.model)  # transformers 5.6 flattened it
        return submodule(inner, path.removeprefix(TEXT))

    def load_adapter(self, name: str, source: str | Path | Adapter) -> Adapter:
        """Read an adapter under a name, changing no weights; raises InputError where it does not fit the model."""
        adapter = source if isinstance(source, Adapter) else load_adapter(source)
        check_fits(adapter, self.module, str(name if isinstance(source, Adapter) else source))
        base = adapter.metadata.get("base")
        if isinstance(base, dict) and base.get("unet", self.unet.fingerprint) != self.unet.fingerprint:
            warnings.warn(
                f"adapter {name}: was trained on another base ({base.get('name')}), its effect may differ", stacklevel=2
            )
        if name in self.weights:
            raise ValueError(f"adapter {name!r} is merged; set_adapters without it before it is replaced")
        self.adapters[name] = adapter
        return adapter

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; where it was merged, the others stay so. Raises ValueError for a name that was not loaded."""
        if name not in self.adapters:
            raise ValueError(f"adapter {name!r} is not loaded; loaded are {sorted(self.adapters)}")
        if name in self.weights:
            others = {other: weight for other, weight in self.weights.items() if other != name}
            self.set_adapters(list(others), list(others.values()), self.rule)
        del self.adapters[name]

    @torch.no_grad()
    def set_adapters(self, names: Sequence[str], weights: Sequence[Weight], rule: Rule = weighted_sum) -> None:
        """Merge: W + sum_i w_i (alpha_i / r_i) B_i A_i in each weight, from the base and never from the last merge.

        A weight may be a number, a function of the timestep (any from 999 to 0), or a dict of either by block; `rule` may be
        another of lida.adapters.merging's. Where no weight depends on the timestep, sampling costs what the bare model costs.
        set_adapters([], []) is the base, bit for bit; `weights` has what is merged. Raises ValueError, and changes nothing,
        for a name that was not loaded, for another number of weights than names, and for a weight that cannot be applied.
        """
        unknown = [name for name in names if name not in self.adapters]
        if unknown:
            raise ValueError(f"adapter {unknown[0]!r} is not loaded; loaded are {sorted(self.adapters)}")
        if len(names) != len(weights) or len(set(names)) != len(names):
            raise ValueError(f"one weight for each name, each name once: {list(names)}, {list(weights)}")
        before = self.weights, self.rule
        self.weights, self.rule = dict(zip(names, weights)), rule
        self.merged.clear()
        try:
            self.merge(self.schedule.config.num_train_timesteps - 1)
        except Exception:
            self.weights, self.rule = before
            self.merged.clear()
            self.merge(self.schedule.config.num_train_timesteps - 1)
            raise

    @torch.no_grad()
    def merge(self, t: int) -> None:
        """Put the adapters into the weights as they stand at timestep t; only what has changed is computed."""
        parts: dict[str, list] = {}
        for name, weight in self.weights.items():
            for path, layer in self.adapters[name].layers.items():
                parts.setdefault(path, []).append((layer, weight_at(weight, path, None if path.startswith(TEXT) else t)))
        for path in self.base_weights.keys() - parts.keys():
            self.module(path).weight.copy_(self.base_weights.pop(path))
        for path, layers in parts.items():
            numbers = tuple(weight for _, weight in layers)
            if self.merged.get(path) == numbers:
                continue
            weight = self.module(path).weight
            if path not in self.base_weights:
                self.base_weights[path] = weight.detach().clone()
            base = self.base_weights[path]
            weight.copy_(base.float() + self.rule(path, layers).to(base.device).reshape(base.shape))
            self.merged[path] = numbers

    def encode(self, prompts: Sequence[Words]) -> Tensor:
        """encoder_hidden_states (B, M, C) of prompts; of a mixture, the sum of its prompts' by their shares."""
        mixtures = [{prompt: 1.0} if isinstance(prompt, str) else prompt for prompt in prompts]
        hidden = encode_prompts(self.text_encoder, [prompt for mixture in mixtures for prompt in mixture])
        parts = hidden.split([len(mixture) for mixture in mixtures])
        return torch.stack([torch.einsum("k,kmc->mc", hidden.new_tensor(list(m.values())), p) for m, p in zip(mixtures, parts)])

    def predictor(
        self,
        prompts: Sequence[Words],
        negative_prompt: str | Sequence[str],
        guidance_scale: float,
        known: Tensor | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided noise prediction for these prompts, as a function of latents and timesteps.

        One negative prompt stands for all, or there is one for each; any other number raises ValueError. `known`
        (1, 5, h, w), for an inpainting model, goes along with the latents: mask and the masked picture's latents. Guidance
        acts where the noise level sigma lies in `guidance_interval`.
        """
        negative = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if len(negative) != len(prompts):
            raise ValueError(f"{len(negative)} negative prompts for {len(prompts)} pictures; give one, or one for each")
        cond = self.encode(prompts)  # (B, M, C)
        uncond = self.encode(negative) if guidance_scale > 1 else None
        changing = any(varies(weight) for weight in self.weights.values())
        low, high = guidance_interval or (0.0, math.inf)
        kept: dict[int, Prompt] = {}  # guided() comes with two tensors, over and over

        def unet(latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            context = encoder_hidden_states
            if changing:
                self.merge(int(timesteps[0]))
            else:
                context = kept.setdefault(id(context), Prompt(context))
            if known is not None:
                latents = torch.cat([latents, known.expand(len(latents), -1, -1, -1)], dim=1)  # (B, 9, h, w)
            return self.unet(latents, timesteps, context)

        return guided(unet, cond, uncond, guidance_scale, guidance_rescale, lambda t: low <= self.schedule.sigma(t) <= high)

    def known(self, pixel_values: Tensor, mask: Tensor, latent_mask: Tensor, generator: Generator | None = None) -> Tensor:
        """What an inpainting model is told of a picture (1, 3, H, W): the mask, and the latents of the rest, the mask grey."""
        size = pixel_values.shape[2:]
        kept = mask_to_latents(mask, size) == 0
        masked = self.vae.encode(pixel_values * kept.to(pixel_values), generator)
        return torch.cat([(latent_mask > 0).to(masked), masked], dim=1).to(self.device, self.dtype)
