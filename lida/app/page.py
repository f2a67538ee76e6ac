"""The page: a form, and what it makes."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr
from PIL import Image

from ..doors.errors import faults_of, one_line
from .painter import LONGEST_SUBJECT, Order, Painter, outlined

MOST_YEARS = 40
ROW = (-40, -20, 20, 40)  # the years of the row
ABOUT = """# lida
Age a face in a photograph and keep the person. Age only people who agreed to it. An aged face is a guess, and its PNG says that it is
synthetic. Photographs are deleted after an hour, and when the page is stopped."""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from the network


def in_one_line(act: Callable) -> Callable:
    """Show what is wrong with the input in one line, without the server's paths. Other exceptions are bugs, and are raised."""

    @functools.wraps(act)
    def shown(*values, **options):
        try:
            return act(*values, **options)
        except Exception as error:
            faults = faults_of(error) or [error] * isinstance(error, ValueError)
            if not faults:
                raise
            message = one_line(faults[0]).removeprefix("--mask auto: ")
            for path in (value for value in values if isinstance(value, str) and value.startswith("/")):
                message = message.replace(path, Path(path).name)
            raise gr.Error(message, duration=None, print_exception=False) from None

    return shown


def build(painter: Painter, folder: Path, demo: tuple[str, str, str]) -> gr.Blocks:
    """Return the page, which writes into `folder`. `demo` has a photograph, an adapter and a subject to try."""

    @in_one_line
    def look(photo: str | None):
        """Show the faces of a photograph, and the choice among several."""
        image, masks, looks = painter.find(photo) if photo else (None, [], [])
        choices = [(f"{number}: looks {age:.0f}", number) for number, age in enumerate(looks, 1)] or [("1", 1)]
        return image and outlined(image, masks), gr.Radio(choices=choices, value=1, visible=len(choices) > 1)

    def order(form: tuple, years: tuple, progress: gr.Progress) -> tuple:
        progress(0, desc="leading the photograph up to the noise")
        return painter.paint(Order(*form), years, folder, lambda step, steps: progress((step, steps), "painting"))

    @in_one_line
    def paint(*values, progress=gr.Progress()):
        """Paint one age, and show it beside the photograph."""
        image, paths, labels = order(values[:-1], (int(values[-1]),), progress)
        with Image.open(paths[0]) as picture:
            return (image, picture.convert("RGB")), labels[0], list(map(str, paths))

    @in_one_line
    def paint_row(*form, progress=gr.Progress()):
        """Paint the row, and show its sheet."""
        _, paths, _ = order(form, ROW, progress)
        return str(paths[-1]), list(map(str, paths))

    with gr.Blocks(title="lida", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2):
                photo = gr.File(label="Photograph", file_types=["image"], height=120)
                found = gr.Image(label="Found", format="png", height=240, interactive=False, buttons=[])
                face = gr.Radio([1], value=1, label="Face", visible=False)
                label = "Subject: man, woman, person, or the name that an identity adapter learnt"
                subject = gr.Textbox("person", label=label, max_length=LONGEST_SUBJECT)
                years = gr.Slider(-MOST_YEARS, MOST_YEARS, value=20, step=1, label="Years older or younger")
                roles = ("age", "identity")
                weights = [gr.Slider(0, 1.5, value=1.0, step=0.05, label=f"Weight of the {role} adapter") for role in roles]
                adapter = gr.File(label="Adapter of your own (.safetensors)", file_types=[".safetensors"], height=100)
                try_it = gr.Button("Try an invented person", size="sm")
            with gr.Column(scale=3):
                with gr.Row():
                    one, row = gr.Button("Age", variant="primary"), gr.Button(f"Row of {len(ROW)} ages")
                pair = gr.ImageSlider(label="Before and after", format="png", interactive=False, max_height=430)
                label = gr.Textbox(label="Asked for, and what the age estimator reads", interactive=False)
                strip = gr.Image(label="Row", format="png", interactive=False, buttons=["download", "fullscreen"])
                files = gr.File(label="Download: PNG with its settings", file_count="multiple", height=160, interactive=False)
        form = [photo, face, subject, *weights, adapter]
        options = {"concurrency_id": "painter", "concurrency_limit": 1}  # one order at a time, from whatever button
        photo.change(look, photo, [found, face], **options)
        try_it.click(lambda: demo, None, [photo, adapter, subject])
        one.click(paint, [*form, years], [pair, label, files], show_progress_on=pair, **options)
        row.click(paint_row, form, [strip, files], show_progress_on=strip, **options)
    return page.queue(max_size=16)


def launch(page: gr.Blocks, server_name: str, server_port: int | None, max_file_size: str, allowed: Sequence[str]) -> str:
    """Serve the page from a thread, without a public link, and return its address. `allowed` are files that it may show."""
    page.launch(
        server_name=server_name, server_port=server_port, max_file_size=max_file_size, allowed_paths=list(allowed), share=False,
        theme=gr.themes.Default(**FONTS), footer_links=[], enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
        quiet=True, prevent_thread_lock=True,
    )  # fmt: skip
    return page.local_url
