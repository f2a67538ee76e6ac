"""Take docs/app.png, the page of `lida app` with the invented person: `python docs/app.py`, with playwright and chromium."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from lida import shipped
from lida.app.page import Painter, serve
from lida.diffusion import Sampling
from lida.shipped import path_of

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights"
sys.path.append(str(WEIGHTS / "recipe"))
from check import hash_of, save_picture  # noqa: E402


def take(address: str, path: Path) -> None:
    """Age the demo's person by 40 years and at a row of ages, and save a picture of the page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(address)
        page.get_by_role("button", name="Try an invented person").click()
        page.locator("img[src*='file=']").first.wait_for()  # the face is found
        page.get_by_role("spinbutton", name="Years older or younger").fill("40")
        page.get_by_role("checkbox", name=re.compile("row of ages")).check()
        page.get_by_role("button", name="Age", exact=True).click()
        page.locator("a[download*='sheet']").first.wait_for(timeout=120_000)
        page.mouse.move(5, 5)
        page.wait_for_timeout(2000)  # until what fades in has done so
        page.screenshot(path=path, full_page=True)
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        painter = Painter(
            path_of(shipped.MODEL),
            {"age": path_of(shipped.AGE_ADAPTER)},
            path_of(shipped.AGE_ESTIMATOR),
            Sampling(),
            Path(folder),
        )
        page = serve(painter, (path_of(shipped.DEMO_PHOTO), path_of(shipped.DEMO_ADAPTER), shipped.DEMO_SUBJECT))
        shot = Path(folder, "shot.png")
        take(page.local_url, shot)
        page.close()
        picture = Image.open(shot).convert("RGB")
        picture = picture.crop((104, 0, 1096, picture.height))
        colours = picture.quantize(255, method=Image.Quantize.MAXCOVERAGE)  # a third of the bytes
        small = picture.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG)
        save_picture(small, ROOT / "docs" / "app.png", hash_of(painter.sd.base))


if __name__ == "__main__":
    main()
