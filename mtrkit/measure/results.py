"""A file of measured rows that survives interruption: written after every row, continued by a second run."""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from mtrkit.errors import InputError

Row = dict[str, Any]
KEY = "key"


def configuration_key(configuration: Mapping[str, object]) -> str:
    """Sixteen hex digits that identify what was measured, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Results:
    """Rows, in memory or also in a file; each row stands alone, with machine and versions.

    Several processes, on one machine or on several that share the folder, may write to one file: each adds its rows to
    those that are there, one process at a time (``.NAME.lock`` beside the file is their lock), and a reader sees the
    file before or after that. A symbolic link stays one.

    Args:
        path: A ``.json`` or ``.csv`` file, which may have rows of an earlier run; ``None`` for no file.
            Values read back from CSV are strings, but for lists.

    Raises:
        InputError: Another suffix, no folder to write in, or a file that holds something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.rows: list[Row] = []
        if self.path is None:
            return
        if self.path.suffix not in (".json", ".csv"):
            raise InputError(f"{self.path}: results are written as .json or .csv; give one of these suffixes")
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path.parent} is not a folder; make it first, or write elsewhere")
        if self.path.exists():
            self.rows = _read(self.path)

    def find(self, key: str) -> Row | None:
        """The finished row with this key."""
        return next((row for row in self.rows if row.get(KEY) == key), None)

    def add(self, *rows: Row) -> None:
        """Take rows in, and write the file if there is one; a row with a key that is there replaces it.

        Raises:
            InputError: Something else was put in the file's place meanwhile.
        """
        if self.path is None:
            self.rows = _merged(self.rows, rows)
            return
        file = Path(os.path.realpath(self.path))  # a symbolic link is followed, not replaced
        with FileLock(file.with_name(f".{file.name}.lock")):
            written = _read(self.path) if file.exists() else []
            self.rows = _merged(_merged(self.rows, written), rows)
            _replace(file, _as_json(self.rows) if self.path.suffix == ".json" else _as_csv(self.rows))


def _merged(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """All of them, where two have one key that of ``others``, in order of first appearance."""
    return [*({row[KEY]: row for row in rows} | {row[KEY]: row for row in others}).values()]


def _replace(file: Path, text: str) -> None:
    """Write a file in one step; what cannot be encoded, such as a name that is not UTF-8, as an escape of JSON."""
    part = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as opened:
            opened.write(text.encode(errors="backslashreplace"))
        if file.exists():
            shutil.copymode(file, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _as_json(rows: list[Row]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(v) if isinstance(v, list | dict | tuple) else v for name, v in row.items()})
    return text.getvalue()


def _read(path: Path) -> list[Row]:
    """The rows of a file that :class:`Results` wrote."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file")
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else _read_csv(text)
    except (ValueError, RecursionError, csv.Error) as error:  # no text, no JSON, no table
        rows = error
    if not isinstance(rows, list) or not rows or not all(map(_is_ours, rows)):
        raise InputError(f"{path} is there already and holds no results of mtrkit; choose another file or remove it")
    return rows


def _read_csv(text: str) -> list[Row]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{k: json.loads(v) if isinstance(v, str) and v.startswith("[") else v for k, v in r.items()} for r in rows]


def _is_ours(row: Any) -> bool:
    """Whether a row has a key as :func:`configuration_key` makes them."""
    return isinstance(row, dict) and re.fullmatch("[0-9a-f]{16}", str(row.get(KEY))) is not None
