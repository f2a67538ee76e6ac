"""The verdict of a report: what the numbers say, in plain words."""

from .settings import CEILING, NOTHING

FEW = 5  # results of fewer people say little about others


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return "1 person", "2 people"."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def verdict(findings: dict) -> list[str]:
    """Return sentences on the setting with the best harmonic score: does it age, is it the same person, may it be chance?"""
    lines = {line["setting"]: line for line in findings["table"]}
    nothing, tried = lines[NOTHING], [line for line in lines.values() if not line["control"]]
    best = max(tried, key=lambda line: line["hcs"])
    name, ceiling, slope = best["setting"], lines.get(CEILING), best["years_per_year"]
    than = "" if best["hcs"] > nothing["hcs"] else "; that is no better than to leave the photograph as it is"
    sentences = [
        f"Of {counted(len(tried), 'setting')}, {name!r} balances age and identity best: its harmonic score is {best['hcs']:.1f} "
        f"of 100, that of doing nothing {nothing['hcs']:.1f}{than}.",
        f"Does it age? Its faces miss the age asked for by {best['age_error']:.1f} years on average, the photograph itself by "
        f"{nothing['age_error']:.1f}"
        + (f", real photographs near those ages by {ceiling['age_error']:.1f}." if ceiling else "."),
    ]
    if slope is not None:
        how = "follow it" if slope > 0.6 else "follow it in part" if slope > 0.2 else "hardly follow it"
        sentences.append(f"Asked for an age one year higher, they look {slope:.2f} years older: they {how}.")
    for number, judge in enumerate(findings["identity_judges"]):
        column = "similarity_input" if number == 0 else f"similarity_input:{judge['name']}"
        answer = "" if judge["same"] is None else "Yes" if best[column] >= judge["same"] else "No"
        text = (
            f"{answer}, on average: " * bool(answer)
            + f"{judge['name']} sees a similarity of {best[column]:.2f} to the photograph"
        )
        text += f" and counts {judge['same']} or more as the same person" * bool(answer)
        real = f"; real photographs near those ages have {ceiling[column]:.2f}." if ceiling else "."
        sentences.append(f"Is it still the same person? {text}{real}")
    sentences += [chance(line) for line in findings["differences"] if (line["setting"], line["column"]) == (name, "age_error")]
    people = len({row["person"] for row in findings["rows"]})
    if people < FEW:
        sentences.append(f"Only {counted(people, 'person was', 'people were')} aged, which says little about others.")
    error = findings["judges"][0]["mean_error"]
    if error is not None:
        sentences.append(f"The age judge's mean error on real faces is {error:.1f} years; smaller differences mean little.")
    return sentences


def chance(line: dict) -> str:
    """Return how far a setting's age error is from the first setting's, and whether that may be chance."""
    side = "nearer to" if line["difference"] < 0 else "further from"
    text = f"Its faces are {abs(line['difference']):.1f} years {side} the age asked for than those of {line['less']!r}"
    if line["people"] == 1:
        return f"{text}, in one person."
    sure = "which leaves out zero" if line["low"] * line["high"] > 0 else "which includes zero, so that it may be chance"
    return f"{text}; the 95 % interval of that difference is {line['low']:+.1f} to {line['high']:+.1f}, {sure}."
