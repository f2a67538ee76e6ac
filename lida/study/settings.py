"""The settings that an evaluation compares: how two adapters are combined and how faces are painted with them."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..adapters.merging import Weight, varies
from ..adapters.spelling import parse_weight
from ..aging.edit import Edit
from ..aging.flags import GUIDANCE, STRENGTH
from ..diffusion.samplers import Sampling
from ..doors import arguments
from ..doors.errors import InputError
from ..photos.captions import NO_AGE
from ..shipped import AGE_WEIGHT
from .rules import NamedRule, parse_rule

# The prompts that guidance leads away from, by name: none, the caption without an age (of {subject}), or the caption of the
# current age, as in infer.py. The first two have the caption without an age as source prompt.
NEGATIVES: dict[str, dict[str, Any]] = {
    "nothing": {"source_prompt": NO_AGE, "negative_prompt": ""},
    "neutral": {"source_prompt": NO_AGE, "negative_prompt": NO_AGE},
    "age": {"source_prompt": None, "negative_prompt": None},
}
NOTHING, AGE_ONLY, CEILING = "do nothing", "age only", "ceiling"
MEANINGS = {
    NOTHING: "the photograph itself, counted as the aged picture",
    "prompt only": "the base model without adapters, and the caption of the age",
    CEILING: "real photographs of the person near each age, counted as aged pictures",
}


@dataclass(frozen=True)
class Setting:
    """How the two adapters are combined and how faces are painted with them.

    `name` is the folder of the pictures, `family` the curve on which the setting is a point. `identity` and `age` are the merge
    weights of the person's adapter, which `adapter` chooses among several, and of the age adapter. `within` above 0 restricts the
    person's adapter to this share of the mask's width and height. `edit` may have {subject} in its prompts. A control may replace
    one adapter, "identity" or "age", by a `random` one of equal norm; `paints` is False if it needs no pictures. Raises
    ValueError for a value that cannot be applied.
    """

    name: str
    family: str
    identity: Weight = 1.0
    age: Weight = 0.2
    rule: NamedRule = parse_rule("sum")
    adapter: str = ""
    within: float = 0.0
    sampling: Sampling = Sampling()
    edit: Edit = Edit()
    control: bool = False
    random: str = ""
    paints: bool = True

    def __post_init__(self):
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"the name {self.name!r} cannot be a folder's name; put another before the colon")
        if not 0 <= self.within <= 1 or (self.within and varies(self.identity)):
            raise ValueError("within is a share of the mask, for an identity weight that does not change by timestep")

    @property
    def has_identity(self) -> bool:
        """Return whether the person's adapter, or a random one in its place, is used."""
        return self.identity != 0

    def edit_for(self, subject: str) -> Edit:
        """Return the edit with the subject in its prompts."""
        prompts = {name: getattr(self.edit, name) for name in ("source_prompt", "negative_prompt")}
        return replace(self.edit, **{name: text and text.replace("{subject}", subject) for name, text in prompts.items()})

    def record(self) -> dict:
        """Return everything that decides the pictures, as JSON values."""
        values = {name: getattr(self, name) for name in ("name", "adapter", "within", "random")}
        weights = {"identity": spelled(self.identity), "age": spelled(self.age), "rule": self.rule.spelling}
        return values | weights | {"sampling": asdict(self.sampling), "edit": asdict(self.edit)}

    @property
    def meaning(self) -> str:
        """Return what the setting does, in words."""
        names = [f"a random {x} adapter of equal norm" if self.random == x else f"the {x} adapter" for x in ("identity", "age")]
        names[0] += f" {self.adapter}" if self.adapter and not self.random else ""
        inside = f" in the middle {self.within:.0%} of the mask" if self.within else ""
        merged = f"{names[0]} at {spelled(self.identity)}{inside} and {names[1]} at {spelled(self.age)}, by {self.rule.spelling}"
        away = {"": "the empty prompt", "None": "the caption of the current age"}
        negative = away.get(str(self.edit.negative_prompt), "the prompt without an age")
        detail = "1" if self.edit.detail is None else f"{self.edit.detail:g}"
        text = f"{merged}; {self.edit.method}; guidance {self.sampling.guidance_scale:g} away from {negative}; detail {detail}"
        return MEANINGS.get(self.name, text)


def compared_settings(plain: Setting, grid: Sequence[Setting], more: Sequence[str], adapters: Sequence[str]) -> list[Setting]:
    """Return the grid, the settings of the texts `more`, infer.py's default (the Age-LoRA alone), and the controls.

    These settings and the controls start from `plain`; `adapters` are the names of the people's adapters. Raises InputError for
    a setting that cannot be read or applied, and if two settings have one name.
    """
    settings = [*grid, *(read_setting(text, plain) for text in more)]
    if not settings:
        raise InputError("no setting is given; add --identity_weights and --age_weights, or --setting")
    sampling = replace(plain.sampling, guidance_scale=Sampling().guidance_scale)
    edit = Edit(plain.edit.method, plain.edit.strength)
    default = replace(plain, name="default", family="default", identity=0.0, age=AGE_WEIGHT, sampling=sampling, edit=edit)
    if not any(replace(setting, name="default", family="default") == default for setting in settings):
        settings.append(default)
    for setting in settings:
        if adapters and setting.adapter not in adapters:
            raise InputError(f"{setting.name}: no adapter {setting.adapter!r}; the people have {', '.join(adapters)}")
        if not adapters and setting.has_identity:
            raise InputError(f"{setting.name}: no identity adapter is given; add --identity_adapter, or make its weight 0")
    settings += controls(plain, settings[0])
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two settings are called {name!r}; give each weight and rule once, each --setting its own name")
    return settings


def grid_of(
    plain: Setting, identities: Sequence[Weight], ages: Sequence[Weight], rules: Sequence[NamedRule], adapters: Sequence[str]
) -> list[Setting]:
    """Return every combination of weights, rules and adapters; each rule with an adapter is a family."""
    settings = []
    for rule, adapter in ((rule, adapter) for rule in rules for adapter in adapters or [""]):
        family = f"{rule.spelling}, {adapter}" if len(adapters) > 1 else rule.spelling
        for identity, age in ((identity, age) for identity in identities for age in ages):
            name = f"{family} {spelled(identity)} {spelled(age)}"
            settings.append(replace(plain, name=name, family=family, identity=identity, age=age, rule=rule, adapter=adapter))
    return settings


def controls(plain: Setting, first: Setting) -> list[Setting]:
    """Return the controls of every table. Random adapters have the weights of the first setting."""
    weights = {"identity": first.identity, "age": first.age}
    changes: dict[str, dict] = {
        NOTHING: {"paints": False}, "prompt only": {}, AGE_ONLY: {"age": 1.0}, "identity only": {"identity": 1.0},
        "random identity": {"random": "identity", **weights}, "random age": {"random": "age", **weights},
        CEILING: {"paints": False},
    }  # fmt: skip
    nothing = replace(plain, identity=0.0, age=0.0, control=True)
    return [replace(nothing, name=name, family=name, **values) for name, values in changes.items()]


def guidance_interval(text: str) -> tuple[float, float]:
    """Return two noise levels of a text such as 0.3-2."""
    low, _, high = text.partition("-")
    return arguments.non_negative(low), arguments.non_negative(high)


def negative(text: str) -> dict[str, Any]:
    """Return the prompts of a name in NEGATIVES."""
    if text not in NEGATIVES:
        raise ValueError(f"negative {text!r} is not one of {', '.join(NEGATIVES)}")
    return NEGATIVES[text]


# Parsers of the values of --setting, by the field of Setting, Sampling or Edit; `negative` sets Edit's two prompts
READERS: dict[str, Callable[[str], object]] = {
    "family": str, "identity": parse_weight, "age": parse_weight, "rule": parse_rule, "adapter": str, "within": arguments.share,
    "guidance_scale": GUIDANCE, "guidance_rescale": arguments.share, "guidance_interval": guidance_interval, "scheduler": str,
    "eta": arguments.share, "method": str, "strength": STRENGTH, "negative": negative,
    "detail": lambda text: None if text == "years" else arguments.share(text),
}  # fmt: skip


def read_setting(text: str, plain: Setting) -> Setting:
    """Return the setting of "NAME: identity=1.0 age=0.5 rule=sum": `plain` with this name and these fields. Raises InputError."""
    name, _, rest = text.partition(":")
    given = dict(part.partition("=")[::2] for part in rest.split())
    try:
        if unknown := given.keys() - READERS.keys():
            raise ValueError(f"{min(unknown)!r} is not one of {', '.join(READERS)}")
        values: dict = {key: READERS[key](value) for key, value in given.items()}
        values |= values.pop("negative", {})
        parts = {part: {f.name for f in fields(getattr(plain, part))} & values.keys() for part in ("sampling", "edit")}
        for part, names in parts.items():
            values[part] = replace(getattr(plain, part), **{name: values.pop(name) for name in names})
        return replace(plain, **{"name": name.strip(), "family": name.strip(), **values})
    except (ValueError, ArgumentTypeError) as error:
        raise InputError(f'--setting {text!r}: {error}; write "NAME: identity=1.0 age=0.5 ..."') from None


def spelled(weight: Weight) -> str:
    """Return a weight as the command line spells it."""
    if not isinstance(weight, Mapping):
        return str(weight)
    return ",".join([str(weight["default"]), *(f"{block}={value}" for block, value in weight.items() if block != "default")])
