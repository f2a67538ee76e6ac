"""The judges' measurements of an evaluation's pictures: a row for each picture, a line for each setting, and statistics."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from PIL import Image

from ..adapters import Adapter, compare, load_adapter
from ..photos.squares import largest_change_outside
from .judges import IdentityJudge, Judges, Vectors
from .painting import Unit
from .people import Reference, Subject
from .settings import AGE_ONLY, CEILING, Setting, spelled
from .tradeoff import age_score, area, harmonic_score, interval, mean_of, spearman

MEANS = ("age_error", "similarity", "face", "psnr")  # prefixes of the columns whose means are in a setting's line
COMPARED = ("age_error", "similarity_input", "similarity_target")
Row = dict[str, Any]


def judged(judges: Judges, unit: Unit, targets: Sequence[int]) -> list[Row]:
    """Return a row for each target age."""
    subject, rows = unit.subject, []
    pictures = [unit.picture(target) for target in targets]
    for target, picture, read in zip(targets, pictures, judges.readings(pictures, subject.mask).tolist()):
        row = identified(unit, target) | ages_read(judges, target, read)
        row |= similarities(judges, subject, judges.vectors(picture, subject.mask), subject.near(target, judges.near))
        row["face"] = float(judges.sees_face(picture, subject.mask))
        if not unit.setting.paints or (unit.folder / f"back{target:02d}.png").is_file():
            back = unit.picture(target, "back")
            for judge, vector, own in zip(judges.identities, judges.vectors(back, subject.mask), subject.vectors):
                row[judges.column("similarity_back", judge)] = mean_similarity(judge, vector, [own])
        row["psnr_inside"] = psnr_inside(subject.image, picture, subject.mask)
        row["largest_change_outside"] = largest_change_outside(subject.image, picture, subject.mask)
        rows.append(row)
    return rows


def ceiling(judges: Judges, unit: Unit, targets: Sequence[int]) -> list[Row]:
    """Return rows for the real photographs near each target age, as if they were painted for that age."""
    rows = []
    for target in targets:
        near = unit.subject.near(target, judges.near)
        for number, reference in enumerate(near):
            row = identified(replace(unit, seed=number), target) | ages_read(judges, target, reference.readings)
            row |= similarities(judges, unit.subject, reference.vectors, near[:number] + near[number + 1 :])
            rows.append(row | {"face": 1.0})
    return rows


def identified(unit: Unit, target: int) -> Row:
    """Return the columns that identify a picture."""
    names = {"setting": unit.setting.name, "person": unit.subject.person.name, "seed": unit.seed}
    return names | {"target": target, "current": unit.subject.current}


def ages_read(judges: Judges, target: int, readings: Sequence[float]) -> Row:
    """Return the age that each judge reads, and its distance to the target and to the judge's mean on real faces of that age."""
    row: Row = {}
    for judge, read in zip(judges.ages, readings):
        expected = judge.expected(target)
        row[judges.column("read", judge)] = read
        row[judges.column("age_error", judge)] = abs(read - target)
        row[judges.column("age_error_real", judge)] = None if expected is None else abs(read - expected)
    return row


def similarities(judges: Judges, subject: Subject, vectors: Vectors, near: Sequence[Reference]) -> Row:
    """Return each identity judge's similarity to the photograph, and to real photographs near the target age."""
    row: Row = {}
    for k, (judge, vector) in enumerate(zip(judges.identities, vectors)):
        row[judges.column("similarity_input", judge)] = mean_similarity(judge, vector, [subject.vectors[k]])
        row[judges.column("similarity_target", judge)] = mean_similarity(judge, vector, [other.vectors[k] for other in near])
    return row


def judge_lines(judges: Judges, subjects: Sequence[Subject]) -> list[Row]:
    """Return each age judge's errors, on the real faces that it was measured on and on the people's photographs."""
    lines = []
    for number, judge in enumerate(judges.ages):
        errors = [abs(other.readings[number] - other.age) for subject in subjects for other in subject.references]
        own = {"references": len(errors), "references_error": float(np.mean(errors)) if errors else None}
        decades = {f"{decade}s": asdict(known) for decade, known in judge.errors.items()}
        lines.append(
            {
                "name": judge.name,
                "mean_error": judge.mean_error,
                "faces": sum(e.faces for e in judge.errors.values()),
                **own,
                "by_decade": decades,
            }
        )
    return lines


def mean_similarity(judge: IdentityJudge, vector: np.ndarray | None, others: Sequence[np.ndarray]) -> float | None:
    """Return the mean similarity to the others; None without others, and 0 for a picture without a face."""
    if not others:
        return None
    return 0.0 if vector is None else float(np.mean([judge.similarity(vector, other) for other in others]))


def psnr_inside(before: Image.Image, after: Image.Image, mask: Image.Image) -> float | None:
    """Return the PSNR in dB of the pixels where the mask is not black; None if nothing has changed."""
    a, b, inside = (np.asarray(x, dtype=np.float64) for x in (before, after, mask))
    error = ((a - b) ** 2)[inside > 0].mean()
    return float(10 * math.log10(255**2 / error)) if error else None


def picked(rows: Sequence[Row], **values: object) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def summary(rows: Sequence[Row], settings: Sequence[Setting]) -> list[Row]:
    """Return a line for each setting that has pictures: means over them, and the largest change outside of the mask."""
    table = []
    for setting in settings:
        own = picked(rows, setting=setting.name)
        if own:
            line: Row = {"setting": setting.name, "family": setting.family, "control": setting.control}
            line |= {"identity": spelled(setting.identity), "age": spelled(setting.age), "pictures": len(own)}
            line |= {column: mean_of(own, column) for column in own[0] if column.startswith(MEANS)}
            line["largest_change_outside"] = max(row.get("largest_change_outside", 0) for row in own)
            near = [row for row in own if row["similarity_target"] is not None]
            line["hcs"] = harmonic_score(line["age_error"], line["similarity_input"])
            line["hcs_target"] = harmonic_score(*(mean_of(near, c) for c in ("age_error", "similarity_target"))) if near else None
            table.append(line | response(own))
    return table


def response(rows: Sequence[Row]) -> dict[str, float]:
    """Return rank correlation and slope of the first judge's readings over the target ages, averaged over people and seeds."""
    found = []
    for person, seed in dict.fromkeys((row["person"], row["seed"]) for row in rows):
        group = picked(rows, person=person, seed=seed)
        targets, read = [row["target"] for row in group], [row["read"] for row in group]
        if len(set(targets)) > 2:
            found.append({"spearman": spearman(targets, read), "years_per_year": float(np.polyfit(targets, read, 1)[0])})
    return {column: mean_of(found, column) for column in ("spearman", "years_per_year")}


def areas(rows: Sequence[Row], settings: Sequence[Setting]) -> list[Row]:
    """Return the area that each family's settings dominate in similarity and age score, with intervals over people."""

    def dominated(points: Sequence[np.ndarray]) -> float:
        return area([(x, age_score(error)) for x, error in np.mean(points, axis=0)])

    found: list[Row] = []
    families: dict[str, list[str]] = {setting.family: [] for setting in settings if not setting.control}
    for setting in settings:
        families.get(setting.family, []).append(setting.name)
    for family, names in families.items():
        for column in COMPARED[1:]:
            own = [row for row in rows if row["setting"] in names and row[column] is not None]
            points = []  # of each person, (settings, 2)
            for person in sorted({row["person"] for row in own}):
                parts = [picked(own, person=person, setting=name) for name in names]
                points.append(np.array([[mean_of(part, column), mean_of(part, "age_error")] for part in parts]))
            if points:
                low, high = interval(points, dominated)
                line = {"family": family, "identity": column, "area": dominated(points), "low": low, "high": high}
                found.append(line | {"people": len(points)})
    return found


def differences(rows: Sequence[Row], settings: Sequence[Setting]) -> list[Row]:
    """Return each setting minus the first, person by person: means, with bootstrap intervals over people."""
    found, people, first = [], list(dict.fromkeys(row["person"] for row in rows)), settings[0].name
    for name in (setting.name for setting in settings[1:] if setting.name != CEILING):
        for column in COMPARED:
            means = [[mean_of(picked(rows, person=person, setting=x), column) for x in (name, first)] for person in people]
            gaps = [a - b for a, b in means if math.isfinite(a - b)]
            if gaps:
                low, high = interval(gaps, lambda chosen: float(np.mean(chosen)))
                line = {"setting": name, "less": first, "column": column, "difference": float(np.mean(gaps))}
                found.append(line | {"low": low, "high": high, "people": len(gaps)})
    return found


def interference(rows: Sequence[Row], settings: Sequence[Setting], subjects: Sequence[Subject], age: Adapter) -> list[Row]:
    """Return how well the cosine of a person's and the age adapter predicts the loss of age accuracy.

    The loss is a setting's age error minus that of the age adapter alone. For each pair of weights in a plain sum, the result is
    the loss's rank correlation with the cosine, over all people and their adapters, if there are at least five.
    """
    losses: dict[str, list[tuple[float, float]]] = {}
    for subject in subjects:
        cosines = {name: compare(load_adapter(path), age)["all"]["cosine"] for name, path in subject.person.identity.items()}
        alone = mean_of(picked(rows, person=subject.person.name, setting=AGE_ONLY), "age_error")
        for setting in settings:
            special = setting.control or setting.within or setting.edit.negative_prompt != ""
            if setting.rule.spelling == "sum" and setting.has_identity and not special:
                error = mean_of(picked(rows, person=subject.person.name, setting=setting.name), "age_error")
                weights = f"{spelled(setting.identity)} and {spelled(setting.age)}"
                losses.setdefault(weights, []).append((cosines[setting.adapter], error - alone))
    return [
        {"weights": weights, "pairs": len(pairs), "cosine": spearman([x for x, _ in pairs], [loss for _, loss in pairs])}
        for weights, pairs in losses.items()
        if len(pairs) >= 5
    ]
