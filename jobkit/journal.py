"""The journal: what a job has brought behind it that is not in its state.

Steps and their results, sleeps and when they end, signals that were taken, children that were spawned, how far a loop
has come. Each entry has a name, unique within the job, and is stored in the same envelope as the state, so the two can
never be of different moments. Names, not positions: a deploy may change the order of calls, and only a name that has
come to mean something else is a conflict.

Invariant: an entry that was saved is never changed but by the call that made it, and that call is made once an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from jobkit.codec import Codec
from jobkit.envelope import EMPTY_MAP
from jobkit.errors import JournalConflict, StateCorrupt

if TYPE_CHECKING:
    from collections.abc import Mapping

EntryKind: TypeAlias = Literal["step", "sleep", "signal", "child", "children", "cursor"]
"""What an entry is of."""

_CALLS: Final[Mapping[str, str]] = {
    "step": "step",
    "sleep": "sleep",
    "signal": "wait_for",
    "child": "spawn",
    "children": "gather",
    "cursor": "track",
}
"""How the context's method is called that makes such an entry."""

_CODEC: Final = Codec()


class Journal:
    """The entries of one job, as one attempt sees and extends them.

    Args:
        packed: What the last attempt saved; nothing for a new job.

    Raises:
        StateCorrupt: It is no journal.
    """

    def __init__(self, packed: bytes = EMPTY_MAP) -> None:
        self._packed: bytes | None = packed
        self._entries: dict[str, list[Any]] = {} if packed == EMPTY_MAP else _read(packed)
        self._used: set[str] = set()

    @property
    def packed(self) -> bytes:
        """The entries as a MessagePack map."""
        if self._packed is None:
            self._packed = _CODEC.pack(self._entries, path="journal") if self._entries else EMPTY_MAP
        return self._packed

    def enter(self, name: str, kind: EntryKind) -> list[Any] | None:
        """Begin a named call, and answer what it has left behind in an earlier attempt.

        Args:
            name: The call's name.
            kind: What it is.

        Returns:
            Its entry's values; None if there is no entry.

        Raises:
            JournalConflict: The name was used before in this attempt, or the entry is of another kind.
            TypeError: The name is no text.
        """
        if type(name) is not str:
            problem = f"{_CALLS[kind]}() takes a name as its first argument, a text that is unique within the job"
            raise TypeError(problem)
        if name in self._used:
            raise JournalConflict(
                name, f"{_CALLS[kind]}({name!r}) uses a name for the second time: put a counter into it, as in a loop"
            )
        entry = self._entries.get(name)
        if entry is not None and entry[0] != kind:
            was = _CALLS.get(str(entry[0]), str(entry[0]))
            raise JournalConflict(
                name,
                f"{_CALLS[kind]}({name!r}) meets what {was}({name!r}) had left behind before the code was changed: "
                f"give the new call another name",
            )
        self._used.add(name)
        return None if entry is None else entry[1:]

    def note(self, name: str, kind: EntryKind, *values: object) -> None:
        """Write or rewrite an entry; it is stored with the next checkpoint."""
        self._entries[name] = [kind, *values]
        self._packed = None

    def forget(self, name: str) -> None:
        """Take an entry back that could not be stored."""
        self._entries.pop(name, None)
        self._used.discard(name)
        self._packed = None

    def close(self, scope: str) -> None:
        """Drop the entries under a scope: what was begun in the body of a loop is of no use once the body has ended."""
        inner = [name for name in self._entries if name.startswith(scope)]
        for name in inner:
            del self._entries[name]
        if inner:
            self._packed = None
        self._used = {name for name in self._used if not name.startswith(scope)}


def _read(packed: bytes) -> dict[str, list[Any]]:
    entries = _CODEC.unpack(packed)
    for name, entry in entries.items():
        if not isinstance(name, str) or not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
            raise StateCorrupt("its journal is damaged")
    return cast("dict[str, list[Any]]", entries)
