"""Save pictures marked as synthetic, with the settings that reproduce them, and read these settings."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin
from PIL.PngImagePlugin import PngInfo

from ..doors.errors import InputError
from ..doors.files import file_hash, write_text
from ..doors.json import as_object, parse_json, read_json
from ..doors.pictures import opened, save_image

# IPTC's terms for pictures that a trained model made, and for pictures that it changed
PAINTED, REPAINTED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{source}"/></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
KEY = "lida"  # the key of the settings in a PNG
FILES = ("photo", "mask", "face_models", "age_estimator", "pretrained_model_name_or_path", "adapter")  # arguments


@dataclass(frozen=True)
class Encoding:
    """A picture format: the ending of its file names, and Pillow's options for saving."""

    suffix: str = ".png"
    options: dict[str, Any] = field(default_factory=dict)


def encoding_of(path: str | Path) -> Encoding:
    """Return the encoding of a JPEG, WebP or PNG file; that of a JPEG includes its quantization tables and subsampling.

    Raises InputError for a file in another format.
    """
    with opened(path) as image:
        if isinstance(image, JpegImagePlugin.JpegImageFile):  # an MPO too, a JPEG with further pictures
            tables = {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
            return Encoding(".jpg", tables if image.mode == "RGB" else {"quality": 95})  # others are saved in RGB
        if image.format == "WEBP":
            return Encoding(".webp", {"quality": 95})
        if image.format != "PNG":
            raise InputError(f"--format same: {path} is {image.format}, not JPEG, WebP or PNG; leave the flag out for PNG")
        return Encoding()


def save_marked(image: Image.Image, path: Path, settings: dict, source: str = REPAINTED, encoding: Encoding = Encoding()) -> Path:
    """Write a picture with its colour profile and EXIF, marked as synthetic in XMP, and its settings as JSON beside it.

    `path` has no ending. A PNG also holds the settings, as JSON under the key "lida". Returns the path written to.
    """
    text, xmp = json.dumps(settings, indent=2), XMP.format(source=source)
    path = path.with_name(path.name + encoding.suffix)
    options = {"icc_profile": image.info.get("icc_profile"), "exif": image.info.get("exif", b""), **encoding.options}
    if encoding.suffix == ".png":
        options["pnginfo"] = info = PngInfo()
        info.add_itxt(KEY, text)
        info.add_itxt("XML:com.adobe.xmp", xmp)
    else:
        options["xmp"] = xmp.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path, **options)
    write_text(path.with_suffix(".json"), text + "\n")
    return path


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return a picture's settings, from the PNG itself or the .json beside it.

    Raises InputError if there are none, or if they are not a JSON object.
    """
    path = Path(path)
    try:
        with opened(path) as image:
            text = image.info.get(KEY)
        settings = read_json(path.with_suffix(".json")) if text is None else parse_json(text, path)
        return as_object(settings, path)
    except InputError as error:
        raise InputError(f"{path}: has no settings of lida's in it or beside it ({error}); give a picture by lida") from None


def made_in(folder: Path) -> dict[str, str]:
    """Return, as `made_in`, the path from the output folder to the working folder; origin() resolves it."""
    return {"made_in": os.path.relpath(".", os.path.realpath(folder))}


def origin(settings: dict[str, Any], path: str | Path) -> Path | None:
    """Return the folder from which the picture's relative paths resolve, or None for the working folder.

    `made_in` of the settings is the path to that folder from the picture's own. It is used if it holds at
    least one of the files that the arguments name, and all of those that the working folder holds.
    """
    made_in, recorded = settings.get("made_in"), settings.get("arguments")
    if not isinstance(made_in, str) or not isinstance(recorded, dict):
        return None
    there, values = Path(os.path.realpath(path)).parent / made_in, [recorded.get(name) for name in FILES]
    texts = [str(text) for value in values for text in (value if isinstance(value, list) else [value])]
    texts += [text.rpartition("=")[0] for text in texts]  # an adapter's has its weight behind it
    names = {text for text in texts if text and not os.path.isabs(text)}
    found, here = ({name for name in names if os.path.exists(folder / name)} for folder in (there, Path()))
    return there if found and found >= here and not os.path.samefile(there, ".") else None


def recorded_arguments(settings: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the arguments in a picture's settings. Raises InputError if a file that it was made from has changed.

    Pictures may come from strangers: a file without a hash and a model that would have to be downloaded are refused, too.
    """
    recorded, files = settings.get("arguments"), settings.get("files") or {}
    if not isinstance(recorded, dict) or not isinstance(files, dict):
        raise InputError(f"--reproduce {path}: does not say how it was made; it may be from an older version")
    for file, digest in files.items():
        if not Path(file).is_file() or file_hash(file) != digest:
            raise InputError(f"--reproduce {path}: {file} is not the file that it was made from; put that file back")
    photos, mask = recorded.get("photo") or [], Path(str(recorded.get("mask")))
    nothing = not photos and recorded.get("prompt") is None
    if nothing or not isinstance(photos, list) or set(map(str, photos + [mask] * mask.is_file())) - set(files):
        raise InputError(f"--reproduce {path}: its settings have no hash of its photograph; it may be from an older version")
    for name in ("pretrained_model_name_or_path", "age_estimator"):
        if (model := str(recorded.get(name, ""))) and not Path(model).exists():
            raise InputError(f"--reproduce {path}: {model!r} is not on this disk, and a picture cannot ask to fetch a model")
    return recorded
