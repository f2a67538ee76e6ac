"""The page of `lida app`, in a real browser and through its client: a photograph in, an aged one out, bad files refused."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from lida.app import __main__ as command
from lida.diffusion import Sampling
from lida.doors.errors import InputError
from lida.photos.marking import read_settings

WEIGHTS = ROOT / "weights"
PHOTO, ADAPTER = WEIGHTS / "demo" / "person-a.png", WEIGHTS / "person-a.safetensors"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.filterwarnings("ignore:::gradio")  # of the server's threads
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed: lida-aging[app]")
needs_browser = pytest.mark.skipif(
    find_spec("playwright") is None or CHROMIUM is None, reason="playwright or Debian's chromium is not installed"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The page on the shipped model with few steps, and uploads of at most 1 MB, on a port of its own."""
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        from lida.app.page import Painter, serve

        adapters, estimator = {"age": str(WEIGHTS / "age.safetensors")}, str(WEIGHTS / "age-estimator")
        painter = Painter(str(WEIGHTS / "lida-tiny"), adapters, estimator, Sampling(6), folder)
        page = serve(painter, (str(PHOTO), str(ADAPTER), "sks"), max_file_size="1mb")
        yield page.local_url
        page.close(verbose=False)


@pytest.fixture
def two_faces(tmp_path) -> Path:
    """A photograph of a face of 200 pixels, and of a smaller one to its right."""
    with Image.open(PHOTO) as portrait:
        picture = Image.new("RGB", (400, 300), "grey")
        picture.paste(portrait.resize((200, 200)), (10, 20))
        picture.paste(portrait.resize((120, 120)), (260, 150))
    path = tmp_path / "two faces.png"
    picture.save(path)
    return path


@needs_gradio
@needs_browser
def test_a_photograph_is_aged_in_a_browser(address, two_faces, tmp_path):
    """The second of two faces; its picture is downloaded. A broken file is refused in one line. No other host is asked."""
    from playwright.sync_api import expect, sync_playwright

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked = browser.new_page(), []
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        drop = page.locator("input[type=file]").first
        drop.set_input_files(two_faces)
        page.get_by_role("radio", name=re.compile("2: looks")).click()
        page.get_by_role("spinbutton", name="Years older or younger").fill("30")
        page.get_by_role("button", name="Age", exact=True).click()
        with page.expect_download() as download:
            page.locator("a[download*='-age']").click()
        download.value.save_as(tmp_path / "aged.png")
        drop = page.locator("input[type=file]").first
        page.get_by_role("button", name="Clear").first.click()
        drop.set_input_files(broken)
        message = page.locator(".toast-body")
        expect(message).to_contain_text("broken.png: not an image that Pillow can read")
        assert "/" not in message.inner_text() and "Traceback" not in message.inner_text()
        browser.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    told = read_settings(tmp_path / "aged.png")
    assert told["arguments"]["face"] == 2 and told["arguments"]["ages"] == [round(told["current_age"] + 30)]
    with Image.open(two_faces) as before, Image.open(tmp_path / "aged.png") as after:
        changed = (np.asarray(before) != np.asarray(after.convert("RGB"))).any(-1)
    assert changed[150:270, 260:380].mean() > 0.3 and not changed[:, :220].any()  # the first face lies left of it


@pytest.fixture
def ask(address):
    """Send an order to the page, as its button does; return the paths of the sheet and of the files that come back."""
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, analytics_enabled=False)

    def ask(photo: Path, face: int = 1, subject: str = "sks", adapter: Path = ADAPTER, row: bool = False) -> tuple:
        form = (handle_file(photo), face, subject, 1.0, 0.9, handle_file(adapter), 40, row)
        return client.predict(*form, api_name="/paint")[1:]

    yield ask
    client.close()


@needs_gradio
def test_the_row_is_made_again_by_infer(ask, script, tmp_path):
    """The sheet and the pictures are those of infer.py, from the settings in them."""
    sheet, files = ask(PHOTO, row=True)
    assert [Path(file).name for file in files][-1] == "person-a-sheet.png" and len(files) == 5
    with Image.open(sheet) as image:
        assert image.height > 300 and image.width > 5 * 300
    for file in (*files, PHOTO, ADAPTER):
        shutil.copy(file, script.folder)
    code, _, err = script("infer.py", "--reproduce", Path(files[0]).name)
    assert code == 0, err
    for file in files[:-1]:
        with Image.open(file) as made, Image.open(script.folder / "outputs" / Path(file).name) as again:
            assert np.abs(np.asarray(made, dtype=int) - np.asarray(again)).max() <= 2
            assert read_settings(file)["whole_prompt"] == read_settings(again.filename)["whole_prompt"]


@needs_gradio
@pytest.mark.parametrize("case", ["no face", "no such face", "subject", "adapter"])
def test_what_cannot_be_used_is_refused_in_one_line(ask, tmp_path, case):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no tensors")
    Image.new("RGB", (64, 64)).save(tmp_path / "grey.png")
    order, message = {
        "no face": ({"photo": tmp_path / "grey.png"}, "no face is found in the photograph"),
        "no such face": ({"photo": PHOTO, "face": 2}, "not in the list of choices"),
        "subject": ({"photo": PHOTO, "subject": "x" * 500}, "a subject of up to 60 characters"),
        "adapter": ({"photo": PHOTO, "adapter": other}, "^other.safetensors: "),
    }[case]
    with pytest.raises(Exception, match=message) as error:
        ask(**order)
    assert "\n" not in str(error.value) and "/" not in str(error.value)


@needs_gradio
def test_a_large_upload_is_refused(address):
    import httpx

    for size, code in ((1000, 200), (2_000_000, 413)):
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b"x" * size)})
        assert answer.status_code == code


def test_a_missing_gradio_is_named(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lida app"])
    with pytest.raises(InputError, match=r'pip install "lida-aging\[app\]"'):
        command.main()


def test_help_comes_without_torch():
    code = "import sys; sys.argv = ['lida', 'app', '--help']\nimport lida.scripts.cli, atexit\n"
    code += "atexit.register(lambda: print('torch' in sys.modules)); lida.scripts.cli.main()"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "--server_name" in out and out.endswith("False\n")


@needs_gradio
@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_leaves_nothing_behind(tmp_path, number):
    options = {"env": {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-m", "lida.app"], **options)
    assert "http://127.0.0.1:" in server.stdout.readline() and list(tmp_path.glob("lida-app-*"))
    server.send_signal(number)
    server.communicate(timeout=60)
    assert not list(tmp_path.glob("lida-app-*"))
