"""StableDiffusion: the parts of a model, and the adapters that are merged into them."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ..adapters.adapter import TEXT, Adapter, check_fits, submodule
from ..adapters.files import load_adapter
from ..adapters.merging import Merger, Rule, Weight, varies, weighted_sum
from ..checkpoints import load_schedule, load_text_encoder, load_unet, load_vae, save_pipeline
from ..checkpoints.sources import MOVED
from ..diffusion.blending import mask_to_latents
from ..diffusion.guidance import guided
from ..diffusion.inversion import NoisePrediction
from ..diffusion.samplers import Sampling
from ..diffusion.schedule import NoiseSchedule
from ..doors.errors import InputError
from ..doors.tensors import FLOATS, check_device
from ..nn.layers import CachedContext
from ..nn.lora import LoRALinear
from ..nn.text import TextEncoder
from ..nn.unet import UNet
from ..nn.vae import VAE
from ..photos.captions import Captioning, Prompt, captioning_of


class StableDiffusion:
    """The UNet, VAE, text encoder and noise schedule of a model, and adapters by name.

    `adapters` has all that are loaded, `weights` the weights of those that are merged.
    """

    def __init__(self, unet: UNet, vae: VAE, text_encoder: TextEncoder, schedule: NoiseSchedule, name: str = ""):
        self.unet, self.vae, self.text_encoder, self.schedule, self.name = unet, vae, text_encoder, schedule, name
        self.adapters: dict[str, Adapter] = {}
        self.merger = Merger(self.module)

    def __repr__(self) -> str:
        merged = ", ".join(f"{name}={weight}" for name, weight in self.weights.items()) or "no adapters"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"StableDiffusion({self.name or 'unnamed'}, {self.resolution} px, {dtype} on {self.device}, {merged})"

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "StableDiffusion":
        """Load a folder in diffusers' layout, a single .safetensors file, or a model of the hub by its id.

        The VAE stays in float32 if `dtype` is float16, in which its activations can overflow. Raises InputError
        that names the fault.
        """
        if dtype not in FLOATS:
            raise ValueError(f"{dtype} is not a floating-point dtype; give one such as torch.float16")
        check_device(device)
        unet, text_encoder = load_unet(source, dtype, device), load_text_encoder(source, dtype, device)
        vae = load_vae(source, torch.float32 if dtype == torch.float16 else dtype, device)
        wanted = {"out_channels": vae.config.latent_channels, "cross_attention_dim": text_encoder.width}
        wanted |= {} if unet.inpaints else {"in_channels": unet.config.out_channels}
        for name, value in wanted.items():
            if getattr(unet.config, name) != value:
                found = getattr(unet.config, name)
                raise InputError(f"{source}: the UNet's {name} is {found}, not {value}: the parts belong to different models")
        name = Path(source).resolve().name if Path(source).exists() else MOVED.get(str(source), str(source))
        return cls(unet, vae, text_encoder, load_schedule(source), name)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the weights of the merged adapters, by name."""
        return self.merger.weights

    @property
    def captioning(self) -> Captioning:
        """Return how the captions of the merged adapters write ages."""
        return captioning_of({name: self.adapters[name].metadata for name in self.weights})

    @property
    def base(self) -> dict[str, str]:
        """Return the model's name and the fingerprint of each part, which pictures and adapters record."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder.model, "vae": self.vae}
        return {"name": self.name, **{part: str(model.fingerprint) for part, model in parts.items()}}

    @property
    def resolution(self) -> int:
        """Return the side in pixels of the squares that the UNet was trained on."""
        size = self.unet.config.sample_size or 64
        if self.unet.inpaints and size == 32:  # an error in the inpainting model's config; diffusers corrects it too
            size = 64
        return size * self.vae.factor

    @property
    def device(self) -> torch.device:
        """Return the UNet's device."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the UNet's floating-point type."""
        return self.unet.conv_in.weight.dtype

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the model, with what is merged into it, as a folder in diffusers' layout.

        Raises ValueError for a model that is being trained, for merge weights that depend on the timestep, and for a schedule
        made from betas; InputError for a folder that is not empty, and for weights that are not finite in `dtype`.
        """
        if any(isinstance(module, LoRALinear) for part in (self.unet, self.text_encoder) for module in part.modules()):
            raise ValueError("the model is being trained (inject_lora); save its adapter, and call eject_lora first")
        if timed := [name for name, weight in self.weights.items() if varies(weight)]:
            raise ValueError(
                f"adapter {timed[0]!r}: its weight depends on the timestep, and a file has one weight; merge a number"
            )
        save_pipeline(folder, self.unet, self.vae, self.text_encoder, self.schedule, dtype)

    def module(self, path: str) -> nn.Module | None:
        """Return the module of an adapter's path, in the UNet or behind `text_encoder.`; None if there is none."""
        if not path.startswith(TEXT):
            return submodule(self.unet, path)
        return submodule(self.text_encoder.layers, path.removeprefix(TEXT))

    def load_adapter(self, name: str, source: str | Path | Adapter) -> Adapter:
        """Load an adapter under a name, without merging it. Raises InputError if it does not fit the model."""
        adapter = source if isinstance(source, Adapter) else load_adapter(source)
        check_fits(adapter, self.module, str(name if isinstance(source, Adapter) else source))
        base = adapter.metadata.get("base")
        if isinstance(base, dict) and base.get("unet", self.unet.fingerprint) != self.unet.fingerprint:
            warnings.warn(f"adapter {name}: was trained on another base ({base.get('name')}); its effect may differ")
        if name in self.weights:
            raise ValueError(f"adapter {name!r} is merged; call set_adapters without it before it is replaced")
        self.adapters[name] = adapter
        return adapter

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter; the others stay merged. Raises ValueError for a name that is not loaded."""
        if name not in self.adapters:
            raise ValueError(f"adapter {name!r} is not loaded; loaded are {sorted(self.adapters)}")
        others = {other: weight for other, weight in self.weights.items() if other != name}
        self.set_adapters(list(others), list(others.values()), self.merger.rule)
        del self.adapters[name]

    def set_adapters(self, names: Sequence[str], weights: Sequence[Weight], rule: Rule = weighted_sum) -> None:
        """Merge: W + sum_i w_i (alpha_i / r_i) B_i A_i in each weight, always from the base.

        A weight is a number, a function of the timestep (999 to 0), or a dict of either by block; `rule` is a function of
        a layer's path and changes. set_adapters([], []) restores the base, bit for bit. Raises ValueError, and changes
        nothing, for a name that was not loaded, another number of weights than names, and a weight that cannot be applied.
        """
        unknown = [name for name in names if name not in self.adapters]
        if unknown:
            raise ValueError(f"adapter {unknown[0]!r} is not loaded; loaded are {sorted(self.adapters)}")
        if not hasattr(weights, "__len__") or len(names) != len(weights) or len(set(names)) != len(names):
            raise ValueError(f"one weight for each name, each name once: {list(names)}, {weights}")
        self.merger.merge(self.adapters, dict(zip(names, weights)), rule, len(self.schedule) - 1)

    def merge_files(self, pairs: Sequence[tuple[str, Weight]]) -> None:
        """Load each file as an adapter that is named by its path, and merge them at their weights, as set_adapters() does."""
        for path, _ in pairs:
            self.load_adapter(path, path)
        self.set_adapters([path for path, _ in pairs], [weight for _, weight in pairs])

    def merge_at(self, t: int) -> None:
        """Merge the adapters as they are at a timestep, if a weight depends on it."""
        if any(varies(weight) for weight in self.weights.values()):
            self.merger.merge(self.adapters, self.weights, self.merger.rule, t)

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return encoder_hidden_states (B, M, C) of prompts; a mixture is the sum of its prompts, weighted by their shares."""
        mixtures = [{prompt: 1.0} if isinstance(prompt, str) else prompt for prompt in prompts]
        texts = sorted({text for mixture in mixtures for text in mixture})  # each is encoded once
        hidden = self.text_encoder(texts)
        shares = hidden.new_tensor([[mixture.get(text, 0.0) for text in texts] for mixture in mixtures])
        return torch.einsum("bt,tmc->bmc", shares, hidden)

    def predictor(
        self, prompts: Sequence[Prompt], negative_prompt: Prompt | list[Prompt] | tuple[Prompt, ...] = "",
        sampling: Sampling = Sampling(), condition: Tensor | None = None,
    ) -> NoisePrediction:  # fmt: skip
        """Return the guided noise prediction for these prompts, as a function of latents (B, C, h, w) and timesteps (B,).

        There is one negative prompt for all, or one for each; any other number raises ValueError. `condition` is the result of
        inpainting_condition(). The prompts are encoded now; the UNet has the weights that are merged when the prediction runs.
        Weights that depend on the timestep are merged at each call, and stay so; see painting().
        """
        negative = [*negative_prompt] if isinstance(negative_prompt, list | tuple) else [negative_prompt] * len(prompts)
        if len(negative) != len(prompts):
            raise ValueError(f"{len(negative)} negative prompts for {len(prompts)} pictures; give one, or one for each")
        cond = self.encode(prompts)  # (B, M, C)
        uncond = self.encode(negative) if sampling.guidance_scale > 1 else None
        low, high = sampling.guidance_interval or (0.0, math.inf)
        contexts: dict[tuple[int, int], CachedContext] = {}  # guided() passes the same two tensors at every step

        def merged_unet(latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            self.merge_at(int(timesteps[0]))
            key = id(encoder_hidden_states), self.merger.version
            if key not in contexts:  # other weights have other keys and values
                contexts.clear()
                contexts[key] = CachedContext(encoder_hidden_states)
            if condition is not None:
                latents = torch.cat([latents, condition.expand(len(latents), -1, -1, -1)], dim=1)  # (B, 9, h, w)
            return self.unet(latents, timesteps, contexts[key])

        return guided(
            merged_unet, cond, uncond, sampling.guidance_scale, sampling.guidance_rescale,
            lambda t: bool(low <= self.schedule.sigma(t) <= high),
        )  # fmt: skip

    def inpainting_condition(
        self, pixel_values: Tensor, mask: Tensor, latent_mask: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Return the additional channels (1, 5, h, w) of an inpainting model's input: the mask and the masked picture's latents.

        pixel_values (1, 3, H, W), mask (1, 1, H', W'), latent_mask (1, 1, h, w).
        """
        outside = mask_to_latents(mask, (pixel_values.shape[2], pixel_values.shape[3])) == 0
        masked = self.vae.encode(pixel_values * outside.to(pixel_values), generator)
        return torch.cat([(latent_mask > 0).to(masked), masked], dim=1).to(self.device, self.dtype)
