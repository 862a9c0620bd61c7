"""The SQLite file under a store: opened by many processes, changed in transactions, with settings of its own."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.annotation.store.schema import require_schema
from rlhf.errors import InputError

LEASE_SECONDS = 900.0
BUSY_SECONDS = 30.0


class Database:
    """A file of pairs and judgements; made where there is none. Threads may share one; processes open one each.

    Args:
        path: the SQLite file (WAL: two more files lie beside it while it is open). Only its owner may read it.
        durable: a judgement also survives a power cut (a few milliseconds each); off, it survives a kill.
        lease_seconds: how long a pair waits for the annotator that it was shown to.
        clock: seconds now.

    Raises:
        InputError: the file is no such store, or one of a newer version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = False,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self._lease_seconds, self._clock, self._lock = lease_seconds, clock, threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); name another file") from error
        self._sql = sqlite3.connect(self.path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            with self._transaction():
                require_schema(self._sql, self.path)
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._sql.execute("PRAGMA foreign_keys = ON")
        except (sqlite3.DatabaseError, InputError) as error:
            self._sql.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: is no store of judgements ({error}); name another file") from error

    def close(self) -> None:
        with self._lock:
            self._sql.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._sql.execute(query, values).fetchall()

    def setting(self, name: str, default: Callable[[], str]) -> str:
        """A text kept in the file, e.g. the secret of its page; made by `default` the first time it is asked for."""
        with self._transaction():
            self._sql.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default()))
            return str(self._sql.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()[0])
