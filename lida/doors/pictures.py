"""Pictures: opened from files of every kind, between PIL and tensors, saved whole."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from .errors import InputError
from .files import regular_file, written_whole

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF")  # no EPS, for which Pillow runs Ghostscript
NARROWEST = 1 / 64  # of the longer side; no face, mask or sheet of pictures is as narrow
LARGEST_EXIF = 65533  # bytes that a JPEG has place for


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Yield a picture file, opened but not yet decoded. Raises InputError, also for what fails in the block.

    Pillow bounds the number of pixels and the text that a PNG unpacks.
    """
    path = regular_file(path, "photograph")
    register_heif(path)
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if min(image.size) < NARROWEST * max(image.size):
                raise InputError(f"{path}: is {image.width}x{image.height} pixels, too narrow for a photograph; crop it")
            yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers of broken files raise anything
        raise InputError(f"{path}: not an image that Pillow can read ({error}); save it as PNG or JPEG") from None


def register_heif(path: Path) -> None:
    """Let Pillow read HEIC, which only the package pillow-heif can, where the file is one."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] not in (b"avif", b"avis"):
        if find_spec("pillow_heif") is None:
            raise InputError(f"{path}: pillow-heif is not installed, which reads it: pip install lida-aging[heic]")
        import pillow_heif

        pillow_heif.register_heif_opener()


def open_photo(path: str | Path, background: str = "white") -> Image.Image:
    """Return a photograph as viewers display it, in RGB: upright, the first frame, over `background` where transparent.

    An RGB picture keeps the colours of its own profile, which stays in its info as `icc_profile`, beside its `exif`; any
    other kind comes out in sRGB. Of 16 bits a channel the upper eight are kept. Raises InputError for what is no picture.
    """
    with opened(path) as image:
        image.load()
        try:
            exif = image.getexif()
            upright = ImageOps.exif_transpose(image)
            exif = upright.getexif().tobytes()
            if len(exif) > LARGEST_EXIF:
                raise ValueError(f"{len(exif)} bytes are too many")
        except Exception as error:  # as of broken files
            warnings.warn(f"{path}: its EXIF cannot be used ({error}) and is ignored, with the turn that it may ask for")
            upright, exif = image, b""
        image = to_rgb(upright, path, background)
        if exif:
            image.info["exif"] = exif
        return image


def open_image(path: str | Path, background: str = "white") -> Image.Image:
    """Return open_photo()'s picture in sRGB."""
    return in_srgb(open_photo(path, background), path)


def to_rgb(image: Image.Image, path: str | Path, background: str) -> Image.Image:
    """Return a picture of any mode in RGB, in its own profile where that is one for RGB and leads back to it."""
    profile = image.info.get("icc_profile")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, of which nothing says what is white")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), rgba)
    if image.mode in ("RGB", "RGBA", "P", "PA", "1") and leads_back(profile):
        return with_profile(image.convert("RGB"), profile)
    if image.mode in ("RGBA", "P", "PA", "1"):
        image = image.convert("RGB")
    return in_srgb(with_profile(image, profile), path)  # grey, CMYK and others have profiles of their own


def with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the picture with this colour profile, or none, as the only thing in its info."""
    image.info = {"icc_profile": profile} if profile else {}
    return image


def leads_back(profile: bytes | None) -> bool:
    """Return whether RGB colours can go through the profile to sRGB and back."""
    try:
        known, srgb = profile_of(profile), ImageCms.createProfile("sRGB")
        if known is not None:
            ImageCms.buildTransform(known, srgb, "RGB", "RGB")
            ImageCms.buildTransform(srgb, known, "RGB", "RGB")
        return True
    except (ImageCms.PyCMSError, OSError):
        return False


def in_srgb(image: Image.Image, path: str | Path = "the picture") -> Image.Image:
    """Return the picture in sRGB, through its profile; without one, and with sRGB's own, its values stay."""
    try:
        profile = profile_of(image.info.get("icc_profile"))
        if profile is not None:
            srgb = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return with_profile(srgb, None)
    except (ImageCms.PyCMSError, OSError) as error:
        warnings.warn(f"{path}: its colour profile cannot be used ({error}), so that its colours are taken for sRGB")
    return with_profile(image.convert("RGB"), None)


def from_srgb(image: Image.Image, like: Image.Image) -> Image.Image:
    """Return an sRGB picture in the colours of another one's profile."""
    try:
        profile = profile_of(like.info.get("icc_profile"))
    except (ImageCms.PyCMSError, OSError):
        profile = None
    return image if profile is None else ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), profile)


def profile_of(data: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """Return the colour profile; None without one, and for sRGB's."""
    if not data:
        return None
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    return None if "sRGB" in ImageCms.getProfileDescription(profile) else profile


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as pixel_values (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def to_images(pixel_values: Tensor) -> list[Image.Image]:
    """Return pixel_values (B, 3, H, W) in [-1, 1], clamped, as RGB pictures."""
    pixels = (pixel_values.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray((p * 255).round().astype(np.uint8)) for p in pixels]


def save_image(image: Image.Image, path: str | Path, **options) -> None:
    """Write a picture whole, in the format of the path's ending; `options` are Pillow's. Raises InputError if it cannot."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path}: the ending says no format of pictures; use .png, .jpg or .webp")
    with written_whole(path) as part:
        try:
            image.save(part, format=kind, **options)
        except ValueError as error:  # as of sides that the format has no place for
            raise InputError(f"{path}: cannot be saved as {kind} ({error}); use .png") from None
