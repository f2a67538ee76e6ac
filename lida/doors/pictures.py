"""Pictures: opened from many kinds of files, converted between PIL and tensors, and saved whole."""

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from .errors import InputError
from .files import regular_file, written_whole

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF")  # not EPS, for which Pillow runs Ghostscript
# endings of their files
PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}
LARGE = 4_000_000  # pixels; larger PNGs are compressed less, in a fraction of the time
LONGEST = 64  # longest side, in shorter sides; a narrower picture shows no face


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Yield a picture file, opened but not decoded: its format, size and info. Pillow bounds the pixels and a PNG's text.

    Raises InputError for a file that is not a picture, and for errors while the block reads it.
    """
    path = regular_file(path, "photograph")
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise InputError(f"{path}: is {image.width}x{image.height} pixels, too narrow for a photograph; crop it")
            yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers of broken files raise anything
        heic = path.suffix.lower() in (".heic", ".heif") and not find_spec("pillow_heif")
        cure = "it wants pillow-heif: pip install lida-aging[heic]" if heic else "save it as PNG or JPEG"
        raise InputError(f"{path}: not an image that Pillow can read ({error}); {cure}") from None


def open_photo(path: str | Path, background: str = "white") -> Image.Image:
    """Return a photograph as viewers display it, in RGB: upright, the first frame, over `background` where transparent.

    An RGB picture keeps its colour profile, as `icc_profile` in its info; any other kind is converted to sRGB. EXIF stays in the
    info as `exif`. 16-bit channels are reduced to their upper 8 bits. Raises InputError for a file that is not a picture.
    """
    with opened(path) as image:
        image.load()
        try:
            Image.Exif().load(image.info.get("exif", b""))
        except Exception as error:  # Pillow's reader raises anything
            warnings.warn(f"{path}: its EXIF cannot be read ({error}) and is left out")
            del image.info["exif"]
        return to_rgb(ImageOps.exif_transpose(image), path, background)


def open_image(path: str | Path, background: str = "white") -> Image.Image:
    """Return open_photo()'s picture in sRGB."""
    return in_srgb(open_photo(path, background), path)


def to_rgb(image: Image.Image, path: str | Path, background: str) -> Image.Image:
    """Return a picture of any mode in RGB, with its EXIF, and with its profile if that converts RGB to sRGB and back."""
    profile, exif = image.info.get("icc_profile"), image.getexif()
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, and which of them is white is not recorded")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), rgba)
    if image.mode in ("RGBA", "P", "PA", "1"):
        image = image.convert("RGB")
    image = with_profile(image, profile)
    if image.mode != "RGB" or not leads_back(profile):
        image = in_srgb(image, path)  # the profiles of grey, CMYK and other modes do not fit RGB
    if exif:
        image.info["exif"] = exif.tobytes()
    return image


def with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the picture with this colour profile, or none, as its only info."""
    image.info = {"icc_profile": profile} if profile else {}
    return image


def leads_back(profile: bytes | None) -> bool:
    """Return whether RGB colours can be converted from the profile to sRGB and back."""
    with suppress(ImageCms.PyCMSError, OSError):
        known, srgb = profile_of(profile), ImageCms.createProfile("sRGB")
        return known is None or all(ImageCms.buildTransform(a, b, "RGB", "RGB") for a, b in ((known, srgb), (srgb, known)))
    return False


def in_srgb(image: Image.Image, path: str | Path = "the picture") -> Image.Image:
    """Return the picture converted from its profile to sRGB; without one, and with sRGB's own, the values do not change."""
    try:
        profile = profile_of(image.info.get("icc_profile"))
        if profile is not None:
            image = cast(Image.Image, ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"))
    except (ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"{path}: its colour profile cannot be used ({error}), so its colours are taken as sRGB")
    return with_profile(image.convert("RGB"), None)


def from_srgb(image: Image.Image, like: Image.Image) -> Image.Image:
    """Return an sRGB picture converted to the profile of the picture `like`."""
    data = like.info.get("icc_profile")
    profile = profile_of(data) if data and leads_back(data) else None
    if profile is None:
        return image
    return cast(Image.Image, ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), profile))


def profile_of(data: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """Return the colour profile of its bytes; None without one, and for sRGB's."""
    if not data:
        return None
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    return None if "sRGB" in ImageCms.getProfileDescription(profile) else profile


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as pixel_values (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def to_images(pixel_values: Tensor) -> list[Image.Image]:
    """Return pixel_values (B, 3, H, W), clamped to [-1, 1], as RGB pictures."""
    pixels = (pixel_values.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray((p * 255).round().astype(np.uint8)) for p in pixels]


def save_image(image: Image.Image, path: str | Path, **options) -> None:
    """Write a picture whole, in the format of the path's ending; `options` are Pillow's. Raises InputError if that fails."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path}: its ending is not that of a picture format; use .png, .jpg or .webp")
    if kind == "PNG" and image.width * image.height > LARGE:
        options = {"compress_level": 1, **options}
    with written_whole(path) as part:
        try:
            image.save(part, format=kind, **options)
        except (ValueError, OSError) as error:  # such as sides too long for the format
            if getattr(error, "errno", None):
                raise
            raise InputError(f"{path}: cannot be saved as {kind} ({error}); use .png") from None


def photographs(sources: Sequence[str | Path]) -> list[Path]:
    """Return the given pictures, and those in the given folders, without hidden files.

    Raises InputError for a folder without pictures, and if two have the same stem, because it names the pictures made of them.
    """
    paths: list[Path] = []
    for path in map(Path, sources):
        inside = sorted(path.iterdir()) if os.path.isdir(path) else []
        found = [p for p in inside if p.suffix.lower() in PICTURES and p.name[0] != "."] if os.path.isdir(path) else [path]
        if not found:
            raise InputError(f"{path}: has no photographs in it; give a folder that does")
        paths += found
    stem, times = Counter(path.stem for path in paths).most_common(1)[0]
    if times > 1:
        raise InputError(f"{stem}: is the name of two photographs, whose results would have the same name; rename one")
    return paths
