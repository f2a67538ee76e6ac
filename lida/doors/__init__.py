"""The doors: errors, files, JSON, arguments, pictures and tensors.

Each kind of input has one door. What has passed through it is sound, and nobody checks it again.
"""

from .errors import InputError, run
from .files import locked, output_folder, regular_file, write_bytes, write_json, write_text, written_whole
from .json import Range, parse_json, read_json, typed

__all__ = ["InputError", "Range", "locked", "output_folder", "parse_json", "read_json", "regular_file", "run", "typed"]
__all__ += ["write_bytes", "write_json", "write_text", "written_whole"]
