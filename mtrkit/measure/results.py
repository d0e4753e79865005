"""A file of measured rows that survives interruption: written after every row, continued by a second run."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrkit.errors import InputError

Row = dict[str, Any]
KEY = "key"


def configuration_key(configuration: Mapping[str, object]) -> str:
    """Sixteen hex digits that identify what was measured, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Results:
    """Rows, in memory or also in a file; each row stands alone, with machine and versions.

    Args:
        path: A ``.json`` or ``.csv`` file, which may have rows of an earlier run; ``None`` for no file.
            Values read back from CSV are strings.

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
        """Take rows in, and write the file if there is one; a row with a key that is there replaces it."""
        keys = {row[KEY] for row in rows if KEY in row}
        self.rows = [row for row in self.rows if row.get(KEY) not in keys or KEY not in row] + list(rows)
        if self.path is not None:
            text = _as_json(self.rows) if self.path.suffix == ".json" else _as_csv(self.rows)
            part = self.path.with_name(f"{self.path.name}.part")
            part.write_text(text, encoding="utf-8", newline="")
            os.replace(part, self.path)


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
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        rows = error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and KEY in row for row in rows):
        raise InputError(f"{path} is there already and holds no results of mtrkit; choose another file or remove it")
    return rows
