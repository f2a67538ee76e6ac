"""What a picture says of itself: that it is synthetic, and the settings that make it again."""

import hashlib
import json
from pathlib import Path

from PIL import Image, JpegImagePlugin
from PIL.PngImagePlugin import PngInfo

from ..doors.errors import InputError
from ..doors.files import write_text
from ..doors.json import parse_json, read_json
from ..doors.pictures import opened, save_image

# IPTC's terms for pictures that a trained model made, or had a part in
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/{}"
PAINTED, REPAINTED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_marked(image: Image.Image, path: Path, settings: dict, source: str = REPAINTED, like: Path | None = None) -> Path:
    """Write a picture with its profile and EXIF, marked as synthetic (XMP), and its settings in a .json beside it.

    A PNG has the settings too, as JSON under the key "lida", and is without loss. `like` is a JPEG or WebP file whose format
    is kept, a JPEG with the same tables and sampling; then pixels are as exact as that encoder. Returns the path. Raises
    InputError where `like` is of another format.
    """
    text, xmp = json.dumps(settings, indent=2), XMP.format(source=SOURCE.format(source)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"icc_profile": image.info.get("icc_profile"), "exif": image.info.get("exif", b"")}
    if like is None:
        info = PngInfo()
        info.add_itxt("lida", text)
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        path = path.with_name(path.name + ".png")
        save_image(image, path, pnginfo=info, **known)
    else:
        with opened(like) as original:
            if (original.format or "").lower() not in FORMATS:
                choices = "JPEG, WebP and PNG"
                raise InputError(f"--format same: {like} is {original.format}, and {choices} are kept; leave it out for PNG")
            suffix, options = FORMATS[original.format.lower()], {"quality": 95}
            if original.format == "JPEG" and original.mode == "RGB":
                options = {"qtables": original.quantization, "subsampling": JpegImagePlugin.get_sampling(original)}
        if suffix == ".png":
            return save_marked(image, path, settings, source)
        path = path.with_name(path.name + suffix)
        save_image(image, path, xmp=xmp, **options, **known)
    write_text(path.with_suffix(".json"), text + "\n")
    return path


def read_settings(path: str | Path) -> dict:
    """The settings that a picture was made with, from its PNG or the .json beside it; raises InputError where it has none."""
    path = Path(path)
    try:
        with opened(path) as image:
            text = image.info.get("lida")
        settings = read_json(path.with_suffix(".json")) if text is None else parse_json(text, path)
    except InputError as error:
        raise InputError(
            f"{path}: has no settings of lida's in it or beside it ({error}); give a picture that lida made"
        ) from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: its settings are no object; give a picture that lida made")
    return settings


def check_format(path: Path) -> None:
    """Raise InputError if a photograph's format cannot be kept."""
    with opened(path) as image:
        if (image.format or "").lower() not in FORMATS:
            raise InputError(f"--format same: {path} is {image.format}; only JPEG, WebP and PNG are kept; leave it out for PNG")


def recorded_arguments(settings: dict, path: str) -> dict:
    """Return the arguments in a picture's settings. Raises InputError if a file that it was made from has changed.

    A picture cannot name a file to read without its hash, nor a model to fetch.
    """
    recorded, files = settings.get("arguments"), settings.get("files") or {}
    if not isinstance(recorded, dict) or not isinstance(files, dict):
        raise InputError(f"--reproduce {path}: does not say how it was made; it may be of an older version")
    for file, digest in files.items():
        if not Path(file).is_file() or file_hash(file) != digest:
            raise InputError(f"--reproduce {path}: {file} is not the file that it was made from; put that in its place")
    photos = recorded.get("photo") or []
    if not isinstance(photos, list) or set(map(str, photos)) - set(files):
        raise InputError(f"--reproduce {path}: its settings have no hash of its photograph; it may be of an older version")
    model = str(recorded.get("pretrained_model_name_or_path", ""))
    if model and not Path(model).exists():
        raise InputError(f"--reproduce {path}: its model {model!r} is not on this disk, and a picture cannot ask to fetch one")
    return recorded
