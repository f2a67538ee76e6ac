"""The mathematics of diffusion: schedule, loss, samplers, FlowEdit, inversion, guidance and blending; one equation a function.

Everything here is a function of tensors and of a callable that predicts noise. Nothing knows a UNet class, a tokenizer or a file.
"""

from .blending import Blend, mask_to_latents
from .flow_edit import flow_edit, flow_source
from .guidance import guided
from .inversion import ddim_inverse_step, ddim_invert
from .loss import mask_weights, noise_prediction_loss
from .samplers import SCHEDULERS, Sampling, ddim_step, dpmpp_2m_step, euler_step, sample
from .schedule import NoiseSchedule, NoiseScheduleConfig

__all__ = [
    "SCHEDULERS", "Blend", "NoiseSchedule", "NoiseScheduleConfig", "Sampling", "ddim_inverse_step", "ddim_invert", "ddim_step",
    "dpmpp_2m_step", "euler_step", "flow_edit", "flow_source", "guided", "mask_to_latents", "mask_weights",
    "noise_prediction_loss", "sample",
]  # fmt: skip
