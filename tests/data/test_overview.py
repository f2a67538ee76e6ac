"""A contact sheet shows pictures of a dataset, evenly spread, with their masks' outlines and their captions."""

import numpy as np
from conftest import box_mask, noise_image
from PIL import Image

from lida.data import overview
from lida.data.folder import Example
from lida.data.overview import SIDE, outlined, write_overview
from lida.photos.squares import sheet


def test_a_mask_is_outlined_by_the_pixels_of_its_border(tmp_path):
    noise_image(100, 80).save(tmp_path / "a.png")
    box_mask(100, 80, (20, 30, 60, 70)).save(tmp_path / "mask.png")
    expected = np.asarray(noise_image(100, 80)).copy()
    inside = expected[31:69, 21:59].copy()
    expected[30:70, 20:60] = (0, 255, 0)
    expected[31:69, 21:59] = inside
    example = Example(tmp_path / "a.png", "", (100, 80), tmp_path / "mask.png")
    assert np.array_equal(np.asarray(outlined(example)), expected)


def test_the_sheet_lies_beside_the_folder_and_has_its_pictures_evenly_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "COUNT", 3)
    (tmp_path / "data").mkdir()
    examples = []
    for i in range(5):
        path = tmp_path / "data" / f"{i}.png"
        noise_image(2 * SIDE, SIDE, i).save(path)
        examples.append(Example(path, f"{'a very old man ' * 9}{i}", (2 * SIDE, SIDE), row={"age": 70} if i == 2 else {}))
    path = write_overview(examples, tmp_path / "data")
    assert path == tmp_path / "data-sheet.png" and [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]
    lines = "\n".join(["a very old man a very old", "man a very old man a very", "old man a very old man a"])
    aged = "\n".join(["70: a very old man a very", "old man a very old man a", "very old man a very old"])
    expected = sheet([outlined(examples[i]) for i in (0, 2, 4)], [lines, aged, lines], SIDE, columns=10, size=11)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(expected))
