"""How a face is repainted: the strength, detail and prompt that follow from the age asked for and the current age."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..photos.captions import NO_AGE, Captioning, Prompt, with_article
from .stable_diffusion import StableDiffusion

METHODS = ("flow_edit", "ddim_inversion", "inpaint")
LEAST_STRENGTH, MOST_STRENGTH, FULL_GAP = 0.5, 0.8, 25  # strength for a difference of 0 years, and of 25 or more
PLAIN_STRENGTH = 0.5  # for prompts without an age


@dataclass(frozen=True)
class Edit:
    """How a photograph is repainted.

    `method` says how: flow_edit integrates the difference of the predictions for the target and the source prompt,
    ddim_inversion takes DDIM's steps backwards first, inpaint draws noise (SDEdit, Meng et al. 2022). `strength`, above 0 and
    up to 1, is the share of the steps to take. `detail`, 0 to 1, is the share of the detail lost in the autoencoder that is added
    back. `source_prompt` describes the photograph; method inpaint ignores it. `negative_prompt` is the prompt of the unconditional
    prediction. Where one of these four is None, plan_ages() sets it for the ages of a face, and without_age() for any other
    prompt. The square around the mask is `context` times as long as the mask. Raises ValueError for a value out of range.
    """

    method: str = "flow_edit"
    strength: float | None = None
    detail: float | None = None
    source_prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    context: float = 1.2
    match_colour: bool = True

    def __post_init__(self):
        for prompt in (self.source_prompt, self.negative_prompt):
            if not isinstance(prompt, str | Mapping | None):
                raise TypeError(f"a prompt must be a text or a mapping of texts to shares, not a {type(prompt).__name__}")
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and up to 1, not {self.strength}")
        if self.detail is not None and not 0 <= self.detail <= 1:
            raise ValueError(f"detail must lie between 0 and 1, not {self.detail}")
        if not 1 <= self.context <= 100:
            raise ValueError(f"context must lie between 1 and 100, not {self.context}")

    def of_face(self, captioning: Captioning, subject: str, current: float) -> "Edit":
        """Return the edit for a face that looks `current` years old: prompts that are None become the caption of that age.

        Asking for the current age then leads back to the photograph, and guidance changes the age alone. For method inpaint,
        which has no source prompt, the negative prompt becomes empty.
        """
        caption = captioning.prompt(subject, current)
        return self.filled(source_prompt=caption, negative_prompt="" if self.method == "inpaint" else caption)

    def towards(self, age: float, current: float) -> "Edit":
        """Return the edit for an age: a strength or detail that is None follows from the difference in years.

        The strength rises with the difference, as Cradle2Cane's noise does. The detail becomes 1, but 0 for method inpaint, which
        paints another face: the photograph's detail would not fit it.
        """
        share = min(abs(age - current), FULL_GAP) / FULL_GAP
        strength = LEAST_STRENGTH + (MOST_STRENGTH - LEAST_STRENGTH) * share
        return self.filled(strength=strength, detail=0.0 if self.method == "inpaint" else 1.0)

    def without_age(self) -> "Edit":
        """Return the edit for a prompt without an age: None becomes strength 0.5, detail 0 and empty prompts."""
        return self.filled(strength=PLAIN_STRENGTH, detail=0.0, source_prompt="", negative_prompt="")

    def filled(self, **values) -> "Edit":
        """Return the edit with these values for those of its fields that are None."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def target(self, prompt: Prompt) -> "Target":
        """Return the target of a prompt. The edit must have a strength and a detail."""
        assert self.strength is not None and self.detail is not None
        return Target(prompt, self.strength, self.detail)


@dataclass(frozen=True)
class Target:
    """One painting of a photograph: its prompt, its strength, and the share of detail that is added back."""

    prompt: Prompt
    strength: float
    detail: float = 0.0

    def __post_init__(self):
        Edit(strength=self.strength, detail=self.detail)  # raises ValueError for a value out of range


@dataclass(frozen=True)
class Plan:
    """How one face is repainted: the edit, with the strength of the strongest target, and a target for each picture."""

    edit: Edit
    targets: Sequence[Target]


def plan_ages(sd: StableDiffusion, ages: Sequence[float], current: float, subject: str = "a person", edit: Edit = Edit()) -> Plan:
    """Return the plan for a face that looks `current` years old: a target for each age.

    Its prompt is that of Captioning.prompt_from(), in the words of the merged Age-LoRA, for a `subject` such as "man" or "sks
    man". By method inpaint of an inpainting model all targets have the highest strength. Raises ValueError unless there are ages
    and all are finite.
    """
    if not isinstance(subject, str) or not isinstance(edit, Edit):
        raise TypeError(f"give a subject such as 'a man' and an Edit, not {subject!r:.60} and {type(edit).__name__}")
    if not subject.strip():
        raise ValueError("the subject is blank; give one such as 'a man'")
    if not len(ages) or not all(math.isfinite(age) for age in (*ages, current)):
        raise ValueError(f"ages must be finite numbers, one or more, not {ages} of a face of {current}")
    subject = with_article(subject)
    targets = [edit.towards(age, current).target(sd.captioning.prompt_from(subject, age, current)) for age in ages]
    strength = max(target.strength for target in targets)
    if sd.unet.inpaints and edit.method == "inpaint":
        targets = [replace(target, strength=strength) for target in targets]
    return Plan(replace(edit.of_face(sd.captioning, subject, current), strength=strength), targets)


def plan_prompt(prompt: Prompt, subject: str = "a person", edit: Edit = Edit()) -> Plan:
    """Return the plan for a prompt without an age: one target. The photograph's caption names the subject alone."""
    edit = edit.filled(source_prompt=NO_AGE.format(subject=with_article(subject))).without_age()
    return Plan(edit, [edit.target(prompt)])
