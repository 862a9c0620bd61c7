"""Rows in and out of local files, with the line number that an error message needs. Light: pyarrow only for parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import zstandard

from rlhf.errors import InputError, quoted

Made = TypeVar("Made")
FORMATS = (".jsonl", ".json", ".csv", ".txt", ".parquet")
LONGEST_ZSTD_WINDOW = 1 << 31  # bytes; raw Reddit dumps are packed with it, and a reader needs as much memory


def file_format(path: str | os.PathLike[str]) -> str | None:
    """One of FORMATS by the file's name (`.gz` or `.zst` behind it is looked through), or None."""
    name = Path(path).name.lower().removesuffix(".gz").removesuffix(".zst")
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a pipe, a socket or a device: reading it would wait, or not end."""
    file = Path(path)
    return file.exists() and not file.is_file() and not file.is_dir()


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a local file: jsonl, json (an array), csv with a header, txt (a line a row), each also as
    .gz or .zst, or parquet.

    The number is the line (jsonl, csv, txt) or the position in the file (json, parquet), 1-based. A bare text in json
    or jsonl, and a line of txt, is the row {"text": ...}; blank lines are passed over, empty csv cells left out.

    Raises InputError, with file and number: no such file, an unknown suffix, no rows, a line that cannot be read, a
    field or a column that is given twice (the last would win), or a compressed file that ends too early.
    """
    file = Path(path)
    kind = file_format(file)
    if not file.exists():
        raise InputError(f"{file}: there is no such file")
    if is_stream(file):
        raise InputError(f"{file}: is a pipe or a device, which cannot be read twice; name a regular file")
    if file.is_dir() or kind is None:
        raise InputError(
            f"{file}: cannot tell its format; name a file that ends in {', '.join(FORMATS)} (or .gz or .zst of them)"
        )
    rows = 0
    try:
        for number, row in _READERS[kind](file):
            rows += 1
            yield number, _as_object(file, number, row)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: cannot be read after row {rows} ({error}); save it as UTF-8, or name it by what it is"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        way_out = "fetch it again, or name it by what it is"
        raise InputError(f"{file}: cannot be read after row {rows} ({error}); {way_out}") from error
    if rows == 0:
        raise InputError(f"{file}: is empty; there are no rows in it")


def read_as(path: str | os.PathLike[str], make: Callable[[dict[str, Any]], Made]) -> list[Made]:
    """What `make` makes of each row of a file, in its order. InputError, of the row or of the file, names the place."""
    found = []
    for number, row in read_rows(path):
        try:
            found.append(make(row))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    return found


def read_json(file: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; ValueError where it holds none, is nested too deeply to be read, or is a pipe."""
    if is_stream(file):
        raise ValueError(f"{os.fspath(file)} is a pipe or a device")
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{os.fspath(file)} is nested too deeply to be read") from None


class AsDict(Protocol):
    """A row that says itself how it is written."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by name."""
        ...


Row = Mapping[str, Any] | AsDict


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Write one JSON object a line (gzipped where the name ends in .gz); return how many."""
    count = 0
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _create(file) as stream:
        for row in rows:
            plain = row if isinstance(row, Mapping) else row.to_dict()
            stream.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count


def _create(file: Path) -> TextIO:
    if file.suffix != ".gz":
        return file.open("w", encoding="utf-8")
    return io.TextIOWrapper(gzip.GzipFile(file, "wb", mtime=0), encoding="utf-8")


def _open(file: Path) -> TextIO:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    if file.suffix.lower() == ".zst":
        return io.TextIOWrapper(io.BufferedReader(_Frames(file)), encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


class _Frames(io.RawIOBase):
    """What a .zst file holds, of one frame or several; EOFError where the last is cut off, as gzip has it."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=LONGEST_ZSTD_WINDOW)
        self._frame: Any = None
        self._compressed, self._found = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._found:
            chunk = self._compressed or self._file.read(1 << 13)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end of its last frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._found = memoryview(self._frame.decompress(chunk))
            self._compressed = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._found))
        buffer[:count] = self._found[:count]
        self._found = self._found[count:]
        return count


def _as_object(file: Path, number: int, row: Any) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        shown = quoted(row if isinstance(row, list) else str(row))
        way_out = "; a list of rows goes into a .json file of its own" if isinstance(row, list) else ""
        raise InputError(f"{file}:{number}: must be an object with named fields, got {shown}{way_out}")
    return row


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    with _open(file) as stream:
        yield from _lines(file, stream)


def _lines(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_once)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{file}:{number}: not valid JSON ({error.msg} at column {error.colno}); a line holds one row"
                ) from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file}:{number}: {_limit(error)}") from error


class _GivenTwiceError(ValueError):
    pass


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields, of which the last would win where one is given twice."""
    found = dict(fields)
    if len(found) < len(fields):
        raise _GivenTwiceError(twice(name for name, _ in fields))
    return found


def twice(names: Iterable[str]) -> str | None:
    """The first of the names that stands there more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _limit(error: Exception) -> str:
    """What is not taken, though it is JSON."""
    if isinstance(error, RecursionError):
        return "is nested too deeply to be read"
    if isinstance(error, _GivenTwiceError):
        return f"has the field {quoted(error.args[0])} twice; leave one out"
    return "has a number of more digits than can be read; write it as a text, or leave the row out"


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows of an array; or of lines, as many sets have them under this name."""
    with _open(file) as stream:
        text = stream.read()
    try:
        content = json.loads(text, object_pairs_hook=_once) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _lines(file, io.StringIO(text))
            return
        raise InputError(f"{file}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: {_limit(error)}") from error
    if not isinstance(content, list):
        raise InputError(
            f"{file}: must be a JSON array of rows, [row, ...], or a row a line in a .jsonl file, got {quoted(content)}"
        )
    yield from enumerate(content, start=1)


def _csv(file: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(1 << 30)
    with _open(file) as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            if (name := twice(reader.fieldnames or ())) is not None:
                raise InputError(f"{file}: has the column {quoted(name)} twice; leave one out")
            for row in reader:
                if None in row:
                    raise InputError(f"{file}:{reader.line_num}: has more cells than the header names")
                yield reader.line_num, {key: value for key, value in row.items() if value}
        except csv.Error as error:
            raise InputError(f"{file}:{reader.line_num + 1}: not valid CSV ({error})") from error


def _txt(file: Path) -> Iterator[tuple[int, Any]]:
    with _open(file) as stream:
        yield from ((number, line.strip()) for number, line in enumerate(stream, start=1) if line.strip())


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        if (name := twice(table.schema_arrow.names)) is not None:
            raise InputError(f"{file}: has the column {quoted(name)} twice; leave one out")
        yield from enumerate((row for batch in table.iter_batches() for row in _plain(file, batch)), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from error


def _plain(file: Path, batch: Any) -> list[dict[str, Any]]:
    """Rows of a batch of columns as Python's values, which do not hold all that a column may, such as dates far off."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError, KeyError) as error:
            raise InputError(
                f"{file}: a value of its column {quoted(name)} cannot be read ({error}); leave that column out"
            ) from error
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _txt, ".parquet": _parquet}
