"""The settings that an evaluation compares: how two adapters are put together, spelt as on the command line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..adapters.merging import Weight, parse_weight, varies
from ..doors.errors import InputError
from .rules import parse_rule

# What stands in every table: the weights of identity and age, or None for those whose pictures are not painted. The random
# adapters of equal norm stand in the place of one of the two, at the first setting's weights.
CONTROLS = {
    "do nothing": None, "prompt only": ("0", "0"), "age only": ("0", "1.0"), "identity only": ("1.0", "0"),
    "random identity": (), "random age": (), "ceiling": None,
}  # fmt: skip


NUMBERS = ("guidance_scale", "guidance_rescale", "within")  # fields of a setting


@dataclass(frozen=True)
class Setting:
    """How the two adapters are put together; `name` is the pictures' folder, `family` the curve that it is a point of."""

    name: str
    family: str
    identity: str = "1.0"  # weights, as parse_weight reads them
    age: str = "0.2"
    rule: str = "sum"
    adapter: str = ""  # which of the person's adapters
    guidance_scale: float = 3.0
    against: str = ""  # what guidance leads away from: nothing said, or `neutral`, the same person at no age
    guidance_rescale: float = 0.0
    guidance_interval: str = ""  # noise levels that guidance acts between, such as 0.3-2; everywhere by default
    detail: str = "0"  # share given back of what the autoencoder loses of the photograph; `years`: by these, as infer.py
    within: float = 0.0  # above 0: the identity adapter acts in this share of the mask's width and height alone
    control: bool = False

    @property
    def weights(self) -> tuple[Weight, Weight]:
        """Of the identity's and of the age's adapter."""
        return parse_weight(self.identity), parse_weight(self.age)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The noise levels of guidance_interval."""
        if not self.guidance_interval:
            return None
        low, high = (float(number) for number in self.guidance_interval.split("-"))
        return low, high

    @property
    def share(self) -> float | None:
        """Return the detail for an Edit: None leaves it to the years between."""
        return None if self.detail == "years" else float(self.detail)

    @property
    def paints(self) -> bool:
        """Whether pictures are made for it."""
        return CONTROLS.get(self.name, ()) is not None

    @property
    def has_identity(self) -> bool:
        """Whether the person's adapter, or a random one in its place, is in it at all."""
        return self.weights[0] != 0


# What infer.py does when nothing is said, docs/tradeoff.md says why
DEFAULT = Setting("default", "default", age="1.0", guidance_scale=4.0, against="neutral", detail="years")


def settings_of(
    identity_weights: Sequence[str],
    age_weights: Sequence[str],
    rules: Sequence[str],
    more: Iterable[str],
    adapters: Sequence[str],
    guidance_scale: float,
) -> list[Setting]:
    """The grid of weights, rules and adapters, what `more` adds as read_setting reads it, infer.py's default, and the controls.

    Raises InputError for what cannot be read or applied, and where two are called the same.
    """
    settings = []
    for rule in rules:
        for adapter in adapters or [""]:
            family = f"{rule}, {adapter}" if len(adapters) > 1 else rule
            for identity in identity_weights:
                for age in age_weights:
                    name = f"{family} {identity} {age}"
                    settings.append(Setting(name, family, identity, age, rule, adapter, guidance_scale))
    first = adapters[0] if adapters else ""
    settings += [read_setting(text, Setting("", "", adapter=first, guidance_scale=guidance_scale)) for text in more]
    if not settings:
        raise InputError("no setting is given; add --identity_weights and --age_weights, or --setting")
    default = replace(DEFAULT, adapter=first, identity=DEFAULT.identity if adapters else "0")
    if not any(replace(setting, name=default.name, family=default.family) == default for setting in settings):
        settings.append(default)
    for setting in settings:
        check(setting, adapters)
    for name, weights in CONTROLS.items():
        identity, age = weights or (settings[0].identity, settings[0].age) if weights is not None else ("0", "0")
        settings.append(Setting(name, name, identity, age, "sum", first, guidance_scale, control=True))
    names = [setting.name for setting in settings]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"--setting: two settings are called {twice!r}; rename one")
    return settings


def read_setting(text: str, default: Setting) -> Setting:
    """ "NAME: identity=1.0 age=0.5 rule=sum": the default with a name and these fields; raises InputError."""
    name, _, rest = text.partition(":")
    values: dict = dict(part.partition("=")[::2] for part in rest.split())
    try:
        values |= {key: float(values[key]) for key in NUMBERS if key in values}
        if not name.strip() or values.keys() & {"name", "control"}:
            raise ValueError("it has no name" if not name.strip() else "its name stands before the colon")
        return replace(default, **{"name": name.strip(), "family": name.strip(), **values})
    except (TypeError, ValueError) as error:
        raise InputError(f'--setting {text!r}: {error}; write "NAME: identity=1.0 age=0.5 ..."') from None


def check(setting: Setting, adapters: Sequence[str]) -> None:
    """Raise InputError for a setting that cannot be painted."""
    try:
        (identity, _), _, _ = setting.weights, setting.interval, setting.share
        parse_rule(setting.rule)
    except ValueError as error:
        raise InputError(f"{setting.name}: {error}") from None
    if adapters and setting.adapter not in adapters:
        raise InputError(f"{setting.name}: no adapter {setting.adapter!r}; the people have {', '.join(adapters)}")
    if not adapters and setting.has_identity:
        raise InputError(f"{setting.name}: no identity adapter is given; add --identity_adapter, or make its weight 0")
    if setting.against not in ("", "neutral"):
        raise InputError(f"{setting.name}: against {setting.against!r} is not neutral; leave it out for nothing")
    if not 0 <= setting.within <= 1 or (setting.within and varies(identity)):
        raise InputError(f"{setting.name}: within is a share of the mask, for a weight that does not change by timestep")
    if "/" in setting.name or setting.name.startswith("."):
        raise InputError(f"{setting.name}: cannot be a folder's name; take another")
