"""Photographs, without the diffusion model: squares, masks, faces, ages, captions and marking.

OpenCV, for the face finder, and transformers, for the age estimator, are imported at their first use.
"""

from .captions import Captioning, caption, captioning_of, noun_of, with_article
from .marking import Encoding, encoding_of, read_settings, save_marked
from .masks import Outline, mask_from_landmarks, mask_to_tensor, open_mask, read_masks
from .squares import colour_matched, cut, paste, sheet, square_about

__all__ = ["Captioning", "Encoding", "Outline", "caption", "captioning_of", "colour_matched", "cut", "encoding_of"]
__all__ += ["mask_from_landmarks", "mask_to_tensor", "noun_of", "open_mask", "paste", "read_masks"]
__all__ += ["read_settings", "save_marked", "sheet", "square_about", "with_article"]
