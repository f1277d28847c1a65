"""Files that are whole or not there, also after a power cut; errors of a full disk."""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

# what a disk is that takes no more, and what to do about it
REFUSALS = {
    errno.ENOSPC: ("full", "make room"),
    errno.EDQUOT: ("full up to your quota", "make room"),
    errno.EROFS: ("read-only", "make it writable"),
}
# Windows has other numbers for them, which reach a safetensors error as they are
_WINDOWS = {39: errno.ENOSPC, 112: errno.ENOSPC, 1295: errno.EDQUOT, 19: errno.EROFS}
UNFINISHED = ".unfinished"
# bytes: far more than any text that is read whole
_LONGEST_TEXT = 2**26


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says in one sentence, whichever library writes, that the disk takes no more.

    Raises:
        OSError: if the folder's disk, or the share of it one may use, is full, or if it
            is read-only.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, folder)
        if reason not in REFUSALS:
            raise
        state, remedy = REFUSALS[reason]
        raise OSError(
            f"The disk of {folder} is {state}: {remedy} and run again, which goes on "
            "from what was saved."
        ) from error


def _reason(error: Exception, folder: Path) -> int | None:
    """The system's number of the error, if a failed write has one."""
    if isinstance(error, OSError):
        return error.errno
    if told := re.search(r"(?:os error |code: )(\d+)", str(error)):
        number = int(told[1])
        return _WINDOWS.get(number, number) if sys.platform == "win32" else number
    # torch's RuntimeError tells nothing, but what it wrote still fills the disk
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**20))
    except OSError as refusal:
        return refusal.errno
    return None


def may_pass(error: Exception) -> bool:
    """Whether a disk failed, rather than that a file is missing or of another kind.

    Asked again, the disk of a cloud or a network may give the file.
    """
    told = None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP
    return isinstance(error, OSError) and error.errno not in told


def prepare(path: Path) -> None:
    """Makes sure, before long work, that its file can be written, and makes its folder.

    Raises:
        OSError: if the path is a folder, or its own folder can't be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file to write.")
    with writing(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise OSError(
                f"{path} can't be written ({error.strerror}): name another place."
            ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name, for a file or a folder, that becomes `path` if all goes well.

    If the block fails, the process dies or the power goes, what was at `path` before is
    untouched: a disk may write a new name before the content, unless it is told to
    write the content first.
    """
    # a folder, as safetensors writes yet another file beside the one it is given
    unfinished = path.with_name(path.name + UNFINISHED)
    with writing(path.parent):
        try:
            # a link in its place would have us write elsewhere
            remove(unfinished)
            unfinished.mkdir()
            yield unfinished / path.name
            flush(unfinished / path.name)
            _make_way(path, (unfinished / path.name).is_dir())
            os.replace(unfinished / path.name, path)
            _flush_one(path.parent)
        finally:
            remove(unfinished)


def _make_way(path: Path, for_folder: bool) -> None:
    """Sets aside what no new file or folder can replace."""
    folder = path.is_dir() and not path.is_symlink()
    if folder and for_folder and not any(path.iterdir()):
        return
    if folder or (for_folder and os.path.lexists(path)):
        set_aside(path)


def flush(path: Path) -> None:
    """Waits until a file, or a folder with all it holds, is on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            flush(inside)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    # Windows opens no folders, and flushes no file that is open for reading alone
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some disks of networks and virtual machines flush files, but no folders
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link (not what it leads to) or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes the table without its index, all or nothing."""
    with replacing(path) as unfinished:
        table.to_csv(unfinished, index=False, encoding="utf-8")


def write_text(text: str, path: Path) -> None:
    """Writes a text in UTF-8, whatever the machine's default is, all or nothing."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def regular(path: Path) -> Path:
    """The path, if a regular file is there: anything else may hang or never end.

    Raises:
        FileNotFoundError, OSError: naming what is there instead.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise OSError(f"{path} is {kind}, not a file.")
    return path


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        FileNotFoundError, OSError: if it is no regular file.
        ValueError: if it is not UTF-8, or so long that it would fill the memory.
    """
    if (size := regular(path).stat().st_size) > _LONGEST_TEXT:
        raise ValueError(f"{path} has {size / 2**20:,.0f} MB, too many for a text.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}).") from error


def set_aside(path: Path, word: str = "old") -> Path:
    """Renames a file or a folder to `<name>.<word>-N`, the first that is free."""
    numbered = (path.with_name(f"{path.name}.{word}-{n}") for n in range(1, 9999))
    free = next(p for p in numbered if not p.exists() and not p.is_symlink())
    return path.rename(free)
