"""Training data: folders of captioned pictures and their checks, All-Age-Faces, albums of one person.

`aaf` and `album` are commands: `python -m lida.data.aaf` and `python -m lida.data.album`.
"""

from .folder import Example, data_fingerprint, read_captioning, read_examples

__all__ = ["Example", "data_fingerprint", "read_captioning", "read_examples"]
