"""Files written whole or not at all, folders for one process, paths that must be regular files."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from .errors import InputError

# Messages about a full disk, from the system, from safetensors (Rust) and from torch.save (C++)
FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large|os error (27|28|122)\b|iostream error")
PATIENCE = 20  # seconds to wait for another process
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that cannot flush a folder


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. What is written there replaces `path` at the end, or is removed on any failure.

    A reader finds the complete old or the complete new file, even after a power cut; of several writers the last one wins. An
    existing file keeps its permissions, and a link stays a link. Raises InputError if the file cannot be written.
    """
    target = output_file(path)
    mode = target.stat().st_mode if target.exists() else None
    with replacing(path, target) as part:
        yield part
        if mode is not None and os.stat(part).st_nlink == 1:  # the other name of a hard link would change too
            os.chmod(part, stat.S_IMODE(mode))


@contextmanager
def folder_written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`. It becomes `path` at the end, or is removed on any failure.

    Raises InputError if the path already holds anything: nothing is replaced.
    """
    target = Path(os.path.realpath(path))
    if os.path.islink(path) and not target.exists():
        raise InputError(f"{path}: is a link to a folder that does not exist; give the name of a new folder")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{path}: is {'not empty' if target.is_dir() else 'not a folder'}; give the name of a new folder")
    output_folder(target.parent, "the folder")
    with replacing(path, target) as part:
        part.mkdir()
        yield part


@contextmanager
def replacing(path: str | Path, target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, the resolved `path`. It replaces `target`, or is removed on any failure."""
    part = target.with_name(f".lida-{os.getpid()}-{secrets.token_hex(6)}.part")
    try:
        yield part
        sync(part)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            remove = shutil.rmtree if part.is_dir() else os.unlink
            remove(part)
        if reason := why_not_written(error, part):
            raise InputError(f"{path}: cannot be written ({reason}); make room or give another place") from error
        raise
    sync(target.parent)


def why_not_written(error: BaseException, part: Path) -> str | None:
    """Return the system's reason for not writing the file; None for an error with another cause."""
    if isinstance(error, Exception) and (found := FULL.search(f"{error} {error.__context__}")):  # libraries' own errors, too
        return found[0]
    return error.strerror if isinstance(error, OSError) and str(error.filename or part) == str(part) else None


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk, where the file system can."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(number)


def append_text(path: str | Path, text: str) -> None:
    """Write a text to the end of a file, in UTF-8. Raises InputError where it cannot be written."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room or give another place") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole."""
    with written_whole(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8, with its line endings unchanged."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object, indent: int | None = 2) -> None:
    """Write a JSON file whole. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def output_file(path: str | Path) -> Path:
    """Return the path of an output file, with links resolved.

    Raises InputError, before any long work, if its folder is missing, if something other than a file is there, or for NUL in the
    name.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: cannot be written, its name holds NUL; give another place")
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir() or (target.exists() and not target.is_file()):
        fault = "it is not a regular file" if target.parent.is_dir() else "its folder does not exist"
        raise InputError(f"{path}: cannot be written, {fault}; give another place")
    return target


def output_folder(path: str | Path, flag: str = "--output_dir") -> Path:
    """Return the folder, created if needed. Raises InputError, before any long work, if nothing can be written there."""
    if os.path.islink(path) and not os.path.exists(path):
        raise InputError(f"{flag} {path}: is a link to a folder that does not exist; make that folder or give another one")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except (OSError, ValueError) as error:  # the second for NUL in the name
        raise InputError(f"{flag} {path}: {getattr(error, 'strerror', error)}; give a folder that can be written to") from None
    return Path(path)


def free_folder(folder: Path, names: Collection[str], overwrite: bool = False, inputs: Collection[Path] = ()) -> Path:
    """Return `folder`, or its first numbered subfolder without a file of these names (with or without endings).

    With `overwrite`, existing files may be replaced, but not the `inputs`.
    """
    chosen, number, kept = folder, 1, {os.path.realpath(path) for path in inputs}
    stays = lambda path: not overwrite or os.path.realpath(path) in kept or not path.is_file()  # noqa: E731
    while chosen.is_dir() and any({path.stem, path.name} & set(names) and stays(path) for path in chosen.iterdir()):
        number += 1
        chosen = folder / f"{number}"
    return output_folder(chosen)


@contextmanager
def claimed_folder(folder: Path, names: Collection[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield free_folder(). Other processes that claim a folder there wait until the block ends, so no file is overwritten."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output_folder(folder), PATIENCE))
        except InputError as error:  # a training run locks its folder for hours, and writes other names
            warnings.warn(str(error))
        yield free_folder(folder, names, overwrite)


@contextmanager
def locked(folder: str | Path, patience: float = 0) -> Iterator[None]:
    """Keep other processes out of the folder while the block runs.

    Raises InputError if another process stays in it for `patience` seconds.
    """
    import fcntl  # POSIX only

    number, deadline = os.open(folder, os.O_RDONLY), monotonic() + patience
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if monotonic() >= deadline:
                os.close(number)
                raise InputError(f"{folder}: in use by another process; wait until it ends or give another folder") from None
            sleep(0.05)
        except OSError as error:
            warnings.warn(f"{folder}: cannot be locked ({error.strerror}); let no other process write to it")
            break
    try:
        yield
    finally:
        os.close(number)


def regular_file(path: str | Path, what: str = "file") -> Path:
    """Return the path of a regular file. Raises InputError for folders, pipes, devices and dangling links."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        state = "is a link to a file that does not exist" if os.path.islink(path) else "no such file"
        raise InputError(f"{path}: {state}; give a {what}") from None
    except (OSError, ValueError) as error:  # such as a name too long, or NUL in it
        raise InputError(f"{path}: {getattr(error, 'strerror', error)}; give a {what}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}; give a {what}")
    return Path(path)


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with open(regular_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
