"""Names that moved to squares and to the doors; to be removed when nobody imports them from here."""

from ..doors.files import written_whole  # noqa: F401
from ..doors.pictures import (  # noqa: F401
    from_srgb, in_srgb, open_image, open_photo, save_image, to_images, to_rgb, to_tensor, with_profile,
)  # fmt: skip
from .squares import (  # noqa: F401
    Box, colour_matched, cut, cut_turned, fade_inwards, is_grey, paste, seam_report, sheet, square_about, with_detail,
)  # fmt: skip
