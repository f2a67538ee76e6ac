"""The page: a form, and the same pictures that infer.py makes of a photograph."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import gradio as gr
import numpy as np
import torch
from PIL import ImageOps

from ..adapters import load_adapter
from ..aging import Edit, StableDiffusion, plan_ages
from ..aging.photograph import ADULT, SEED, UNDER_AGE, Photograph, made_with, open_photograph, repaint_faces, save_row
from ..diffusion import Sampling
from ..doors.errors import InputError, faults_of, one_line
from ..photos.ages import AgeEstimator
from ..shipped import AGE_WEIGHT, IDENTITY_WEIGHT

ROW = (-40, -20, 20, 40)  # years older or younger
LONGEST_SUBJECT = 60  # characters
ABOUT = """# lida
Age a face in a photograph and keep the person. Age only people who agreed to it. An aged face is a guess, and its PNG says that
it is synthetic. Photographs are deleted after an hour, and when the page is stopped."""


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show errors of the input in one line, without the server's folders. Other exceptions, which are bugs, pass."""
    try:
        yield
    except Exception as error:
        if not (faults := faults_of(error)):
            raise
        message = re.sub(r"(?<!\w)/\S*/", "", one_line(faults[0]))
        raise gr.Error(message, duration=None, print_exception=False) from None


class Painter:
    """A model, its adapters' files by role ("age" and "identity", or None), an age estimator, and the folder to write into."""

    def __init__(self, model: str, files: Mapping[str, str | None], age_estimator: str, sampling: Sampling, folder: Path):
        self.model, self.sampling, self.folder = model, sampling, folder
        self.adapters = {role: path for role, path in files.items() if path}
        self.sd = StableDiffusion.load(model, device="cuda" if torch.cuda.is_available() else "cpu")
        self.estimator = AgeEstimator(age_estimator)
        self.merge({"age": AGE_WEIGHT, "identity": IDENTITY_WEIGHT})  # refuses a bad file at the start

    def open(self, path: str, face: int | str = "all", subject: str = "person") -> Photograph:
        """Open a photograph and find its faces, the largest first, or one by its number. Raises InputError for no face."""
        photo, name = open_photograph(Path(path), subject, face=face, estimator=self.estimator), Path(path).name
        return replace(photo, path=Path(name), files={name: photo.files[str(Path(path))]})

    def merge(self, weights: Mapping[str, float], uploaded: str | None = None) -> list[str]:
        """Merge the adapters; an uploaded one replaces that of its role. Return them in the spelling of --adapter."""
        files = dict(self.adapters)
        if uploaded:
            files["age" if load_adapter(uploaded).metadata.get("role") == "age" else "identity"] = uploaded
        self.sd.set_adapters([], [])
        self.sd.adapters.clear()
        names = {role: Path(path).name if path == uploaded else path for role, path in files.items()}
        for role, path in files.items():
            self.sd.load_adapter(names[role], path)
        self.sd.set_adapters(list(names.values()), [weights[role] for role in names])
        return [f"{name}={weights[role]}" for role, name in names.items()]

    @shown_errors()
    def look(self, path: str | None):
        """Return the photograph with its faces outlined, and a choice if there are several."""
        if path is None:
            return None, gr.Radio(visible=False)
        photo = self.open(path)
        choices = [(f"{number}: looks {age:.0f}", number) for number, age in enumerate(photo.ages, 1)]
        small, *masks = (ImageOps.contain(picture, (480, 480)) for picture in (photo.image, *photo.masks))
        edges = [4 * white * (1 - white) for white in (np.asarray(mask) / 255 for mask in masks)]  # masks have soft edges
        outlines = [(edge, name) for edge, (name, _) in zip(edges, choices)]
        return (small, outlines), gr.Radio(choices=choices, value=1, visible=len(choices) > 1)

    @shown_errors()
    def paint(self, path, face, subject, age_weight, identity_weight, adapter, years, row, progress=gr.Progress()):
        """Return the photograph before and after, a sheet, and the files, which `infer.py --reproduce` can reproduce."""
        if path is None or not 0 < len(subject.strip()) <= LONGEST_SUBJECT:
            raise InputError(f"give a photograph, and a subject of up to {LONGEST_SUBJECT} characters such as man or woman")
        progress(0, desc="looking at the photograph")
        photo = self.open(path, face, subject.strip())
        merged = self.merge({"age": age_weight, "identity": identity_weight}, adapter)
        current = photo.ages[0]
        wanted = [self.sd.captioning.nearest(current + more) for more in (years, *(ROW if row else ()))]
        ages = sorted(set(wanted))
        if min(current, *ages) < ADULT:
            gr.Warning(UNDER_AGE)
        plans = [plan_ages(self.sd, ages, current, photo.subject)]
        steps = partial(progress.tqdm, desc="painting")
        pictures = repaint_faces(self.sd, photo, plans, self.sampling, progress=steps)
        arguments = {
            "photo": [photo.path.name], "face": face, "ages": ages, "current_age": current, "subject": [photo.subject],
            "pretrained_model_name_or_path": self.model, "adapter": merged, "seed": SEED,
            "num_inference_steps": self.sampling.num_inference_steps, "guidance_scale": self.sampling.guidance_scale,
            "method": Edit.method,
        }  # fmt: skip
        names, settings = [f"{photo.path.stem}-age{age:02d}" for age in ages], {**made_with(self.sd), "arguments": arguments}
        labels = [f"age {age}, looks {self.estimator.of(new, photo.masks[0]):.0f}" for age, new in zip(ages, pictures)]
        files = save_row(photo, plans, pictures, names, labels, self.folder / uuid4().hex, settings)
        for file in files:
            file.with_suffix(".json").unlink()  # the picture holds the settings
        return (photo.image, pictures[ages.index(wanted[0])]), str(files[-1]), [str(file) for file in files]


def serve(painter: Painter, demo: tuple[str, str, str], **options) -> gr.Blocks:
    """Serve the page from a thread, without a public link, and return it; its address is `local_url`.

    `demo` has a photograph, an adapter and a subject to try. `options` are those of Gradio's launch().
    """
    with gr.Blocks(title="lida", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2):
                photo = gr.File(label="Photograph", file_types=["image"], height=120)
                found = gr.AnnotatedImage(label="Found", height=280, buttons=[])
                face = gr.Radio([1], value=1, label="Face", visible=False)
                learnt = "man, woman, person; with an identity adapter the name before it: sks man"
                subject = gr.Textbox("person", label="Subject", info=learnt, max_length=LONGEST_SUBJECT)
                weight = partial(gr.Slider, 0, 1.5, step=0.05)
                weights = [
                    weight(value=AGE_WEIGHT, label="Weight of the age adapter"),
                    weight(value=IDENTITY_WEIGHT, label="Weight of the identity adapter"),
                ]
                adapter = gr.File(label="Adapter of your own (.safetensors)", file_types=[".safetensors"], height=100)
                try_it = gr.Button("Try an invented person", size="sm")
            with gr.Column(scale=3):
                years = gr.Slider(-40, 40, value=20, step=1, label="Years older or younger")
                row = gr.Checkbox(label=f"A row of ages too: {', '.join(f'{years:+d}' for years in ROW)} years")
                button = gr.Button("Age", variant="primary")
                pair = gr.ImageSlider(label="Before and after", format="png", interactive=False, max_height=430)
                sheet = gr.Image(label="Sheet", format="png", interactive=False, buttons=["download", "fullscreen"])
                files = gr.File(label="Download: PNG with its settings", file_count="multiple", height=160, interactive=False)
        form, made = [photo, face, subject, *weights, adapter, years, row], [pair, sheet, files]
        photo.change(painter.look, photo, [found, face], concurrency_id="painter")
        try_it.click(lambda: demo, None, [photo, adapter, subject])
        button.click(painter.paint, form, made, show_progress_on=pair, concurrency_id="painter")
    page.queue(max_size=16, default_concurrency_limit=1)  # the painter does one thing at a time
    options |= {"allowed_paths": list(demo[:2]), "share": False, "enable_monitoring": False}
    page.launch(quiet=True, prevent_thread_lock=True, **options)
    return page
