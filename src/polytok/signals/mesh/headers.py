"""What mesh files claim about themselves, checked against their size before anything is parsed."""

from __future__ import annotations

import bisect
import re
import struct
from pathlib import Path

from polytok.core.errors import SignalError
from polytok.signals.mesh import gltf

_MARK = b"\xef\xbb\xbf"
"""What some programs begin a text in UTF-8 with."""

_PLY = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64", "int64", "uint64"), 8),
}

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)


def check_header(path: Path, suffix: str) -> None:
    """Refuse files that are missing, empty, cut short or claim more than they hold.

    Raises:
        SignalError: with the path and what is wrong.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SignalError(f"{path}: {error.strerror or error}") from error
    if size == 0:
        raise SignalError(f"{path}: the file is empty")
    try:
        _CHECKS[suffix](path, size)
    except SignalError as error:
        raise SignalError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise SignalError(f"{path}: not a readable {suffix} file") from error


def extras(path: Path, suffix: str) -> tuple[str, ...]:
    """Name the things beside geometry that a file holds."""
    check_header(path, suffix)
    if suffix in (".glb", ".gltf"):
        found = gltf.extras(path)
    elif suffix == ".obj":
        lines = {w for line in path.read_bytes().splitlines() for w in line[:9].split()[:1]}
        found = {"materials": b"usemtl" in lines, "texture coordinates": b"vt" in lines}
    else:
        head = path.read_bytes()[:4096].lower()
        found = {"vertex colours": suffix == ".ply" and b" red" in head}
    return tuple(name for name, is_there in found.items() if is_there)


def contents(path: Path, suffix: str) -> bytes:
    """Read an OBJ, OFF, PLY or STL file; what is text in it comes as UTF-8 in plain lines."""
    data = path.read_bytes()
    if suffix == ".stl":
        return data if _is_binary_stl(data[:84], len(data)) else _text(data)
    if suffix == ".ply":
        header = re.search(rb"end_header[^\n]*\n", data)
        end = header.end() if header else len(data)
        if b"format ascii" not in data[:end]:
            return _text(data[:end]) + data[end:]
        # Its reader takes blank lines for rows.
        return re.sub(rb"\n\s*\n", b"\n", _text(data))
    data = re.sub(rb"#[^\n]*", b"", _text(data))
    return _obj_text(data) if suffix == ".obj" else data


def _text(data: bytes) -> bytes:
    """Turn text of any encoding into UTF-8, whose lines end with a newline and nothing else."""
    data = data.removeprefix(_MARK)
    try:
        data.decode()
    except UnicodeDecodeError:
        # Names and comments only; every byte means something in this encoding.
        data = data.decode("latin-1").encode()
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _obj_text(data: bytes) -> bytes:
    """Put one statement on each line, with spaces between its words and none before it."""
    data = b"\n" + data.replace(b"\\\n", b" ").replace(b"\t", b" ") + b"\n"
    data = re.sub(rb"\n +", b"\n", data)
    if zero := re.search(rb"\nf (?:[^\n]* )?-?0+(?=[ /\n])[^\n]*", data):
        line = " ".join(zero[0].decode().split())[:60]
        raise SignalError(f"a face names vertex 0, but OBJ counts from 1: {line!r}")
    if re.search(rb"\nf (?:[^\n]* )?-\d", data):
        return _counted_from_first(data)
    return data


def _counted_from_first(data: bytes) -> bytes:
    """Number vertices from the first that faces number back from their own line."""
    starts = [found.start() for found in re.finditer(rb"\nv ", data)]

    def renumber(face: re.Match[bytes]) -> bytes:
        before = bisect.bisect(starts, face.start())

        def number(back: re.Match[bytes]) -> bytes:
            if int(back[1]) > before:
                raise SignalError(f"a face names vertex -{int(back[1])} of {before} before it")
            return b" %d" % (before + 1 - int(back[1]))

        return re.sub(rb" -(\d+)", number, face[0])

    return re.sub(rb"\nf [^\n]*", renumber, data)


def claimed_faces(path: Path, suffix: str) -> int:
    """How many faces the header of a PLY or OFF file claims; 0 for other files."""
    if suffix == ".off":
        return _off_counts(path)[1]
    if suffix == ".ply":
        return sum(count for name, count, _ in _ply_elements(path)[0] if name == "face")
    return 0


def _ply_elements(path: Path) -> tuple[list[tuple[str, int, int]], int]:
    """Name, count and least bytes per row of a PLY file's elements, and where its body starts."""
    with path.open("rb") as file:
        head = file.read(1 << 16).removeprefix(_MARK)
    end = head.find(b"end_header")
    if not head.startswith(b"ply") or end < 0:
        raise SignalError("not a PLY file: its header is missing or truncated")
    is_text = b"format ascii" in head[:end]
    elements: list[tuple[str, int, int]] = []
    for line in head[:end].decode("latin-1").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), 0))
        elif words[:1] == ["property"] and elements:
            # A list has at least its length; text has at least one digit and a space.
            least = 2 if is_text else _PLY[words[2 if words[1] == "list" else 1]]
            name, count, row = elements[-1]
            elements[-1] = (name, count, row + least)
    return elements, end + len("end_header")


def _ply(path: Path, size: int) -> None:
    elements, start = _ply_elements(path)
    for name, count, _ in elements:
        if count < 0:
            raise SignalError(f"the header claims {count} rows of {name!r}")
    need = start + sum(count * max(row, 1) for _, count, row in elements)
    if need > size:
        raise SignalError(f"truncated: the header claims at least {need} bytes, {size} there")
    header, _, body = contents(path, ".ply").partition(b"end_header")
    if b"format ascii" in header:
        _check_rows(body, sum(count for _, count, row in elements if row))


def _check_rows(body: bytes, claimed: int) -> None:
    """Refuse text that has another number of lines, blank ones aside, than its header says."""
    there = len(re.findall(rb"(?m)^[ \t]*\S", body))
    if there < claimed:
        raise SignalError(f"truncated: {claimed} rows claimed, {there} there")
    if there > claimed:
        raise SignalError(f"the header claims {claimed} rows, but {there} are there")


def _stl(path: Path, size: int) -> None:
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - 1024))
        tail = file.read()
    if _is_binary_stl(head, size):
        return
    text = head.removeprefix(_MARK).lstrip().lower()
    if not (text.startswith(b"solid") and b"facet" in text):
        count = struct.unpack("<I", head[80:84])[0] if size >= 84 else 0
        raise SignalError(f"truncated or not an STL file: {count} faces in {size} bytes")
    if b"endsolid" not in tail.lower():
        raise SignalError("truncated: the text does not end with 'endsolid'")


def _is_binary_stl(head: bytes, size: int) -> bool:
    """Whether the size is that of a binary STL file with as many faces as its head counts."""
    return size >= 84 and size == 84 + 50 * struct.unpack("<I", head[80:84])[0]


def _off_counts(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        head = file.read(1 << 16).decode("latin-1")
    words = " ".join(line.split("#")[0] for line in head.splitlines()).split()
    if not words or not words[0].endswith("OFF"):
        raise SignalError("not an OFF file: it does not start with 'OFF'")
    return int(words[1]), int(words[2])


def _off(path: Path, size: int) -> None:
    vertices, faces = _off_counts(path)
    if min(vertices, faces) < 0 or 6 * vertices + 8 * faces > size + 8:
        raise SignalError(f"claims {vertices} vertices and {faces} faces in {size} bytes")
    # The counts stand on the first line or on one of their own.
    first, _, rest = contents(path, ".off").lstrip().partition(b"\n")
    if len(first.split()) == 1:
        rest = rest.lstrip().partition(b"\n")[2]
    _check_rows(rest, vertices + faces)


def _obj(path: Path, size: int) -> None:
    with path.open("rb") as file:
        file.seek(max(0, size - 4096))
        lines = file.read().splitlines() or [b""]
    last = lines[-1].split(b"#")[0].split()
    if last[:1] in ([b"v"], [b"f"]) and len(last) < 4:
        raise SignalError(f"truncated: the last line has {len(last) - 1} of at least 3 entries")


_CHECKS = {
    ".glb": gltf.check,
    ".gltf": gltf.check,
    ".obj": _obj,
    ".off": _off,
    ".ply": _ply,
    ".stl": _stl,
}
