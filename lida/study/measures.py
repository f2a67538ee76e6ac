"""What the judges say of an evaluation's pictures: a row a picture, a line a setting, and what follows from them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..adapters import Adapter, load_adapter
from ..doors.pictures import open_photo
from ..photos.squares import seam_report
from ..adapters.comparison import MEASURES, compare
from .judges import IDENTITY_CONTEXT, AgeJudge, IdentityJudge, square_of
from .people import Sitter
from .settings import Setting
from .tradeoff import age_score, area, harmonic_score, interval, mean_of, spearman

MEANS = ("age_error", "cosine", "face", "psnr")  # beginnings of the columns that a setting's line has the means of
COMPARED = ("age_error", "cosine_input", "cosine_target")


class Bench:
    """The judges, side by side."""

    def __init__(self, ages: Sequence[AgeJudge], identity: IdentityJudge, near: float):
        self.ages, self.identity, self.near = ages, identity, near

    def judged(self, sitter: Sitter, setting: Setting, seed: int, targets: Sequence[int], folder: Path | None) -> list[dict]:
        """A row for each target age: what is said of the picture in the folder, or of the photograph itself without one."""
        pictures, backs = [sitter.image] * len(targets), [sitter.image] * len(targets)
        if folder is not None:
            pictures = [open_photo(folder / f"age{target:02d}.png") for target in targets]
            paths = [folder / f"back{target:02d}.png" for target in targets]
            backs = [open_photo(path) if path.is_file() else None for path in paths]
        squares = [square_of(picture, sitter.mask) for picture in pictures]
        readings = np.stack([judge(squares) for judge in self.ages], axis=1)  # (targets, judges)
        rows = []
        for target, picture, back, read in zip(targets, pictures, backs, readings.tolist()):
            square = square_of(picture, sitter.mask, IDENTITY_CONTEXT)
            vector, near = self.identity(square), [other.vector for other in sitter.near(target, self.near)]
            row = self.row(sitter, setting, seed, target, read) | {"face": float(self.identity.sees_face(square))}
            row |= {"cosine_input": cosine(vector, [sitter.vector]), "cosine_target": cosine(vector, near)}
            if back is not None:
                returned = self.identity(square_of(back, sitter.mask, IDENTITY_CONTEXT))
                row["cosine_back"] = cosine(returned, [sitter.vector])
            row["psnr_inside"] = psnr_inside(sitter.image, picture, sitter.mask)
            change = seam_report(sitter.image, picture, sitter.mask)["largest_change_outside"]
            rows.append(row | {"largest_change_outside": change})
        return rows

    def ceiling(self, sitter: Sitter, setting: Setting, targets: Sequence[int]) -> list[dict]:
        """Rows for the real photographs near each target, as if they were pictures of that age."""
        rows = []
        for target in targets:
            near = sitter.near(target, self.near)
            for number, reference in enumerate(near):
                others = [other.vector for other in near if other is not reference]
                row = self.row(sitter, setting, number, target, reference.readings) | {"face": 1.0}
                row |= {"cosine_input": cosine(reference.vector, [sitter.vector])}
                rows.append(row | {"cosine_target": cosine(reference.vector, others)})
        return rows

    def row(self, sitter: Sitter, setting: Setting, seed: int, target: int, readings: Sequence[float]) -> dict:
        """Which picture it is, and what each judge reads and how far that is off."""
        row = {"setting": setting.name, "person": sitter.person.name, "seed": seed, "target": target}
        row["current"] = sitter.current
        for number, (judge, read) in enumerate(zip(self.ages, readings)):
            suffix, expected = "" if number == 0 else f":{judge.name}", judge.expected(target)
            row |= {f"read{suffix}": read, f"age_error{suffix}": abs(read - target)}
            row[f"age_error_real{suffix}"] = None if expected is None else abs(read - expected)
        return row

    def told(self, sitters: Sequence[Sitter]) -> list[dict]:
        """Of each judge of age: its errors on the real faces that it was measured on, and on the people's photographs."""
        lines = []
        for number, judge in enumerate(self.ages):
            pairs = [(other.readings[number], other.age) for sitter in sitters for other in sitter.references]
            decades = {f"{d}s": {"mean_error": e, "bias": b, "faces": n} for d, (e, b, n) in judge.known.items()}
            lines.append({
                "name": judge.name, "mean_error": judge.mean_error, "faces": sum(n for *_, n in judge.known.values()),
                "references": len(pairs), "by_decade": decades,
                "references_error": float(np.mean([abs(read - age) for read, age in pairs])) if pairs else None,
            })  # fmt: skip
        return lines


def cosine(vector: np.ndarray | None, others: Sequence[np.ndarray]) -> float | None:
    """The mean with the others; 0 for a picture without a face, so that no rule gains by losing it; None without others."""
    if not others:
        return None
    return 0.0 if vector is None else float(np.mean([vector @ other for other in others]))


def psnr_inside(before: Image.Image, after: Image.Image, mask: Image.Image) -> float | None:
    """Of the pixels where the mask is not black, in dB; None where nothing has changed."""
    a, b, inside = (np.asarray(x, dtype=np.float64) for x in (before, after, mask))
    error = ((a - b) ** 2)[inside > 0].mean()
    return float(10 * math.log10(255**2 / error)) if error else None


def summary(rows: Sequence[dict], settings: Sequence[Setting]) -> list[dict]:
    """A line of the table for each setting that has pictures: means over them, and the largest change outside of the mask."""
    table = []
    for setting in settings:
        own = [row for row in rows if row["setting"] == setting.name]
        if not own:
            continue
        line = {"setting": setting.name, "family": setting.family, "control": setting.control, "identity": setting.identity}
        line |= {"age": setting.age, "pictures": len(own)}
        line |= {column: mean_of(own, column) for column in own[0] if column.startswith(MEANS)}
        line["largest_change_outside"] = max(row.get("largest_change_outside", 0) for row in own)
        near = [row for row in own if row["cosine_target"] is not None]
        line["hcs"] = harmonic_score(line["age_error"], line["cosine_input"])
        line["hcs_target"] = harmonic_score(*(mean_of(near, c) for c in ("age_error", "cosine_target"))) if near else None
        table.append(line | response(own))
    return table


def response(rows: Sequence[dict]) -> dict[str, float]:
    """Of the first judge's readings on the ages asked for: rank correlation and slope, means over the rows of pictures."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["person"], row["seed"]), []).append(row)
    found = []
    for group in groups.values():
        targets, read = [row["target"] for row in group], [row["read"] for row in group]
        if len(set(targets)) > 2:
            found.append({"spearman": spearman(targets, read), "years_per_year": float(np.polyfit(targets, read, 1)[0])})
    return {column: mean_of(found, column) for column in ("spearman", "years_per_year")}


def areas(rows: Sequence[dict], settings: Sequence[Setting]) -> list[dict]:
    """What each family's settings dominate together, by either cosine and the age score, with intervals over people."""
    found = []
    for family in dict.fromkeys(setting.family for setting in settings if not setting.control):
        names = [setting.name for setting in settings if setting.family == family and not setting.control]
        for column in ("cosine_input", "cosine_target"):
            own = [row for row in rows if row["setting"] in names and row[column] is not None]
            people = sorted({row["person"] for row in own})
            points = {}  # of each person, (settings, 2)
            for person in people:
                parts = [[r for r in own if r["person"] == person and r["setting"] == name] for name in names]
                points[person] = np.array([[mean_of(part, column), mean_of(part, "age_error")] for part in parts])

            def dominated(chosen: Sequence[str]) -> float:
                return area([(x, age_score(error)) for x, error in np.mean([points[p] for p in chosen], axis=0)])

            if people:
                low, high = interval(people, dominated)
                line = {"family": family, "identity": column, "area": dominated(people), "low": low, "high": high}
                found.append(line | {"people": len(people)})
    return found


def differences(rows: Sequence[dict], settings: Sequence[Setting]) -> list[dict]:
    """Each setting less the first, person by person: means, with bootstrap intervals over people."""
    first, found = settings[0].name, []
    for name in (setting.name for setting in settings[1:] if setting.name != "ceiling"):
        for column in COMPARED:
            pairs = by_person(rows, name, first, column)
            if pairs:
                low, high = interval(pairs, lambda chosen: float(np.mean([a - b for a, b in chosen])))
                line = {"setting": name, "less": first, "column": column}
                line["difference"] = float(np.mean([a - b for a, b in pairs]))
                found.append(line | {"low": low, "high": high, "people": len(pairs)})
    return found


def by_person(rows: Sequence[dict], one: str, other: str, column: str) -> list[tuple[float, float]]:
    """Each person's means of a column at two settings, of those who have both."""
    pairs = []
    for person in dict.fromkeys(row["person"] for row in rows):
        own = [row for row in rows if row["person"] == person and row[column] is not None]
        pair = tuple(mean_of([row for row in own if row["setting"] == name], column) for name in (one, other))
        if all(map(math.isfinite, pair)):
            pairs.append(pair)
    return pairs


def interference(rows: Sequence[dict], settings: Sequence[Setting], sitters: Sequence[Sitter], age: Adapter) -> list[dict]:
    """Does what lida.adapters.comparison measures of a person's adapter and the age's foretell the years lost by adding the former?

    The loss is a setting's age error less that of the age adapter alone; for each pair of weights in a plain sum, its rank
    correlation with each measure over all people and their adapters, where these are five at least.
    """
    measured = {
        (sitter.person.name, name): compare(load_adapter(path), age)["all"]
        for sitter in sitters
        for name, path in sitter.person.identity.items()
    }
    plain = [s for s in settings if s.rule == "sum" and s.has_identity and not (s.control or s.within or s.against)]
    found = []
    for weights in dict.fromkeys((s.identity, s.age) for s in plain):
        pairs = []
        for setting in (s for s in plain if (s.identity, s.age) == weights):
            for sitter in sitters:
                own = [row for row in rows if row["person"] == sitter.person.name]
                error, alone = (
                    mean_of([row for row in own if row["setting"] == name], "age_error") for name in (setting.name, "age only")
                )
                pairs.append((measured[sitter.person.name, setting.adapter], error - alone))
        if len(pairs) >= 5:
            losses = [loss for _, loss in pairs]
            correlations = {name: spearman([known[name] for known, _ in pairs], losses) for name in MEASURES}
            found.append({"weights": " and ".join(weights), "pairs": len(pairs), **correlations})
    return found
