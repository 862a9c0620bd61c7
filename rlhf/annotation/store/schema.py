"""The tables of a store, and how a file of an older version becomes one of this version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import InputError

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, labels INTEGER NOT NULL, asked TEXT NOT NULL,
    scale TEXT NOT NULL DEFAULT 'preference'
);
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches (number),
    id TEXT NOT NULL,
    pair TEXT NOT NULL,               -- the Pair as JSON
    labels INTEGER NOT NULL DEFAULT 0,
    places INTEGER NOT NULL CHECK (places >= 0),  -- judgements still wanted; the triggers below count
    withdrawn INTEGER NOT NULL DEFAULT 0,
    UNIQUE (batch, id)
);
CREATE INDEX open_items ON items (number) WHERE places > 0 AND NOT withdrawn;
CREATE INDEX counted ON items (batch, withdrawn, places, labels);
CREATE TABLE judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    choice TEXT, strength TEXT, chosen_safe INTEGER, rejected_safe INTEGER, shown_left TEXT, seconds REAL,
    skipped TEXT NOT NULL,
    kept_at REAL NOT NULL,
    undone_at REAL
);
CREATE UNIQUE INDEX one_judgement ON judgements (item, annotator) WHERE undone_at IS NULL;
CREATE INDEX judgements_of ON judgements (annotator, number) WHERE undone_at IS NULL;
CREATE TABLE leases (
    item INTEGER NOT NULL REFERENCES items (number), annotator TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (item, annotator)
);
CREATE INDEX leases_of ON leases (annotator);
CREATE TRIGGER place_taken AFTER INSERT ON judgements BEGIN
    UPDATE items SET places = places - 1, labels = labels + 1 WHERE number = new.item;
END;
CREATE TRIGGER place_free AFTER UPDATE OF undone_at ON judgements
WHEN old.undone_at IS NULL AND new.undone_at IS NOT NULL BEGIN
    UPDATE items SET places = places + 1, labels = labels - 1 WHERE number = new.item;
END;
"""

ENTRIES = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,         -- made by the page, so that what is sent twice is there once
    kind TEXT NOT NULL,
    annotator TEXT NOT NULL,
    content TEXT NOT NULL,            -- [messages, answer, domain, about] as JSON
    violation INTEGER,
    better TEXT NOT NULL DEFAULT '',
    seconds REAL,
    kept_at REAL NOT NULL
);
CREATE INDEX entries_of ON entries (annotator, kind, number);
"""

# from the version before to this one; a file keeps all it has
MIGRATIONS = {
    2: "ALTER TABLE batches ADD COLUMN scale TEXT NOT NULL DEFAULT 'preference';",
    3: ENTRIES,
}
VERSION = 3


def require_schema(sql: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file, and bring those of an older version up to this one.

    Raises:
        InputError: the file is another kind of database, or of a newer version.
    """
    version = sql.execute("PRAGMA user_version").fetchone()[0]
    tables = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version > VERSION or (not version and tables):
        raise InputError(f"{path}: is no store of judgements of version {VERSION}; name another file")
    scripts = [SCHEMA, ENTRIES] if not version else [MIGRATIONS[step] for step in range(version + 1, VERSION + 1)]
    for statement in (one for script in scripts for one in _statements(script)):
        sql.execute(statement)
    sql.execute(f"PRAGMA user_version = {VERSION}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole (`executescript` would end the transaction)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
