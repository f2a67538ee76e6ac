"""FlowEdit (Kulikov et al. 2025): edit a photograph from a source prompt to a target prompt, without inversion.

The paper's models predict a flow from noise to images. In x / sqrt(abar) the noise prediction is such a flow, dx/dsigma = eps
(Karras et al. 2022), and sigma stands for the paper's t.
"""

from functools import wraps

import torch
from torch import Generator, Tensor

from .inversion import NoisePrediction, NoisePreds
from .samplers import StepRule
from .schedule import NoiseSchedule, Steps, Trajectory, randn_like


def flow_source(
    predict: NoisePrediction, schedule: NoiseSchedule, latents: Tensor, steps: Steps, generator: Generator | None = None
) -> tuple[Trajectory, NoisePreds]:
    """Add independent noise to the photograph's `latents` (B, C, h, w) at each t; return them and the noise predicted from them.

    Entry -1 of the first result is the clean latents.
    """
    trajectory: Trajectory = {-1: latents}
    source_pred: NoisePreds = {}
    for t, _ in reversed(steps):  # from the lowest t up: each t has the same noise at every strength
        trajectory[t] = schedule.add_noise(latents, randn_like(latents, generator), torch.tensor(t))
        source_pred[t] = predict(trajectory[t], torch.full(latents.shape[:1], t, device=latents.device))
    return trajectory, source_pred


def flow_edit(rule: StepRule, trajectory: Trajectory, source_pred: NoisePreds) -> StepRule:
    """Return the step rule of FlowEdit (algorithm 1) for the results of flow_source(); a batch holds several paintings.

    Latents and photograph have the same noise at each t, so that they differ by the edit alone. A sampler's rule takes its step
    on this difference, by the difference of the two predictions. Where the prompts agree, the photograph stays as it is.
    """

    @wraps(rule)  # sample() inspects the signature for a `history` argument
    def step(schedule: NoiseSchedule, latents: Tensor, noise_pred: Tensor, t: int, t_prev: int, **history):
        shape = (len(latents) // len(trajectory[t]), 1, 1, 1)
        result = rule(
            schedule, latents - trajectory[t].repeat(shape), noise_pred - source_pred[t].repeat(shape), t, t_prev, **history
        )
        edit, new_history = result if isinstance(result, tuple) else (result, None)
        return trajectory[t_prev].repeat(shape) + edit, new_history

    return step
