"""How a face is repainted: the strength, detail and prompt that follow from the age asked for and the current age."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .stable_diffusion import Prompt, StableDiffusion

METHODS = ("ddim_inversion", "inversion", "inpaint")
LEAST_STRENGTH, MOST_STRENGTH, FULL_GAP = 0.3, 0.6, 60  # strength for a difference of 0 years, and of 60 or more
NO_DETAIL = 40  # for ages this many years younger, or more, none of the photograph's fine detail is added again
PLAIN_STRENGTH = 0.5  # for prompts without an age


@dataclass(frozen=True)
class Edit:
    """How a photograph is repainted.

    `method` says how it becomes noise: ddim_inversion takes DDIM's steps backwards, inversion (edit-friendly DDPM) finds noise
    that leads back to it, inpaint draws noise. `strength`, above 0 and up to 1, is the share of the steps to take. `detail`, 0
    to 1, is the share of the autoencoder's loss that is added again. If either is None, it follows from the ages.
    `source_prompt` describes the photograph to an inversion; guidance leads away from `negative_prompt`. The square about the
    mask is `context` times as long as the mask. Raises ValueError for a value out of range.
    """

    method: str = "ddim_inversion"
    strength: float | None = None
    detail: float | None = None
    source_prompt: str = ""
    negative_prompt: str | Sequence[str] = ""
    context: float = 1.5
    match_colour: bool = True

    def __post_init__(self):
        "".join([self.source_prompt, *self.negative_prompt])  # raises TypeError for what is no text
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and up to 1, not {self.strength}")
        if self.detail is not None and not 0 <= self.detail <= 1:
            raise ValueError(f"detail must lie between 0 and 1, not {self.detail}")
        if not 1 <= self.context <= 100:
            raise ValueError(f"context must lie between 1 and 100, not {self.context}")

    def towards(self, age: float, current: float) -> "Edit":
        """Return the edit with the strength and detail for an age in the place of None.

        The strength rises with the difference in years, as Cradle2Cane's noise does. The detail is 1 for the same age and older
        ones, and less for younger ones, whose skin does not have the photograph's wrinkles.
        """
        share = min(abs(age - current), FULL_GAP) / FULL_GAP
        strength = LEAST_STRENGTH + (MOST_STRENGTH - LEAST_STRENGTH) * share
        detail = min(max(1 - (current - age) / NO_DETAIL, 0.0), 1.0) if self.method != "inpaint" else 0.0
        return self.filled(strength, detail)

    def without_age(self) -> "Edit":
        """Return the edit with the strength and detail for a prompt without an age in the place of None."""
        return self.filled(PLAIN_STRENGTH, 0.0)

    def filled(self, strength: float, detail: float) -> "Edit":
        """Return the edit with these in the place of None."""
        strength = strength if self.strength is None else self.strength
        return replace(self, strength=strength, detail=detail if self.detail is None else self.detail)

    def target(self, prompt: Prompt) -> "Target":
        """Return the target of a prompt, for an edit whose strength and detail are given."""
        assert self.strength is not None and self.detail is not None
        return Target(prompt, self.strength, self.detail)


def aging_edit(subject: str = "a person", **options) -> Edit:
    """Return an Edit for ages: the subject's caption without an age inverts the photograph, and is the negative prompt too.

    `options` are Edit's other fields. Noise that is drawn (method inpaint) has no negative prompt.
    """
    source = options.pop("source_prompt", f"a portrait photo of {subject}")
    negative = "" if options.get("method") == "inpaint" else source
    return Edit(**{"source_prompt": source, "negative_prompt": negative, **options})


@dataclass(frozen=True)
class Target:
    """One painting of a photograph: its prompt, its strength, and the share of detail that is added again."""

    prompt: Prompt
    strength: float
    detail: float = 0.0

    def __post_init__(self):
        Edit(strength=self.strength, detail=self.detail)  # raises ValueError for a value out of range


def age_targets(
    sd: StableDiffusion, ages: Sequence[float], current: float, subject: str = "a person", edit: Edit = Edit()
) -> list[Target]:
    """Return what to paint for each age of a face that looks `current` years old.

    Each age is asked for by the caption of its decade, or a mixture of two, as the merged Age-LoRA's captions have it, for a
    `subject` such as "a man" or "sks". An inpainting model paints all at the highest strength.
    """
    if not isinstance(subject, str) or not isinstance(edit, Edit):
        raise TypeError(f"give a subject such as 'a man' and an Edit, not {subject!r:.60} and {type(edit).__name__}")
    if not len(ages) or not all(math.isfinite(age) for age in (*ages, current)):
        raise ValueError(f"ages must be finite numbers, one or more, not {ages} of a face of {current}")
    prompts = [sd.captioning.prompt(subject, min(max(round(age), 0), 99)) for age in ages]
    targets = [edit.towards(age, current).target(prompt) for prompt, age in zip(prompts, ages)]
    if sd.unet.inpaints:
        targets = [replace(target, strength=max(other.strength for other in targets)) for target in targets]
    return targets
