"""Typed values ↔ MessagePack: `Codec`.

A value comes back equal and of the same type, or `pack` refuses it and names the path to it: nothing changes silently.
One thing is not part of a value: that one list stands in two places. It comes back as two equal lists.

How each kind of value is written stands in `kinds` and `classes`; here they meet the two calls of the C library.

Invariant: what `pack` gives, `unpack` takes; it constructs nothing but library types and the declared classes.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobkit.bounds import MAX_BYTES, MAX_LEVELS, MAX_NODES, decode, is_crowded, is_map, is_too_deep, largest_in
from jobkit.canonical import settled
from jobkit.classes import declared, fields_of, pair, spelled_out
from jobkit.culprit import DEEP, advice, culprit, has_aliased
from jobkit.errors import SerializationError, StateCorrupt
from jobkit.kinds import (
    CLASS,
    LIBRARY,
    MARK,
    WRITERS,
    Marker,
    Outgrown,
    Refused,
    packer,
    read_leaf,
    read_marker,
    write_class,
)
from jobkit.mending import OUTERMOST, Reading, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobkit.bounds import Bytes
    from jobkit.classes import Reader
    from jobkit.kinds import Writer


class Codec:
    """Typed values ↔ MessagePack, for one set of declared types. Immutable; threads may share it.

    Args:
        annotations: The types of what will be packed. Every model, dataclass, enum and NamedTuple reachable from them
            may be stored; no other class can be stored or restored.

    Raises:
        InvalidJob: Two different classes share a bare name.
    """

    def __init__(self, annotations: Iterable[Any] = ()) -> None:
        self._annotations = tuple(annotations)
        self._classes = declared(self._annotations)
        pairs = {kind: pair(kind) for kind in self._classes.values()}
        self._readers: dict[str, Reader] = {kind.__name__: read for kind, (_, read) in pairs.items()}
        self._by_tag = {**LIBRARY, **self._classes}
        tags = {kind: tag for tag, kind in self._by_tag.items()}
        self._lower = _lowering({**WRITERS, **{kind: write for kind, (write, _) in pairs.items()}}, tags)

    @cached_property
    def shapes(self) -> bytes:
        """What the declared types are like, packed: stored beside what they pack, it shows if they have changed."""
        return pack(b"".join(self._shapes.values()), self._lower, "shapes")

    @cached_property
    def _shapes(self) -> dict[str, bytes]:
        fields = {tag: fields_of(kind) for tag, kind in sorted(self._classes.items())}
        fields[OUTERMOST] = {str(place): hint for place, hint in enumerate(self._annotations)}
        return {tag: shape_of(tag, spelled_out(hints)) for tag, hints in fields.items()}

    def changed_since(self, shapes: bytes) -> frozenset[str]:
        """Tell which classes are not what they were, by their tags; `OUTERMOST` stands for the annotations themselves.

        Args:
            shapes: What `shapes` was.

        Returns:
            The tags; none if it was told nothing.

        Raises:
            StateCorrupt: It is not what `shapes` was.
        """
        were = decode(shapes, read_leaf, list)
        if type(were) is not bytes:
            raise StateCorrupt("its shapes are no bytes")
        known = {were[at : at + 4] for at in range(0, len(were), 4)}
        return frozenset(tag for tag, shape in self._shapes.items() if known and shape not in known)

    @property
    def tags(self) -> frozenset[str]:
        """The tags of all declared classes, and `OUTERMOST`."""
        return frozenset(self._shapes)

    def pack(self, value: object, *, path: str = "value") -> bytes:
        """Pack a value; equal sets give equal bytes whatever their order.

        Args:
            value: Any value of the declared types.
            path: What to call it in an error.

        Returns:
            MessagePack.

        Raises:
            SerializationError: It holds something that would not come back equal; `path` leads to it.
        """
        return pack(value, self._lower, path)

    def unpack(
        self, data: Bytes, reading: Reading | None = None, *, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES
    ) -> Any:
        """Give back the packed value: equal, and of the same type at every level.

        Args:
            data: What `pack` returned.
            reading: Tells which classes have changed since, and takes note of fields that they lost.
            max_bytes: Refuse more bytes than these.
            max_nodes: Refuse more maps and arrays than these.

        Returns:
            The value.

        Raises:
            StateCorrupt: It is not what `pack` returned; `Outgrown` if the declared types have no place for it now.
        """
        hooks = _Restoring(self._readers, self._by_tag, reading or Reading())
        value = decode(data, hooks.ext, hooks.array, max_bytes=max_bytes, max_nodes=max_nodes)
        if hooks.unmatched:
            raise StateCorrupt("a marker stands where no array opens")
        return value


def _lowering(writers: Mapping[type, Writer], tags: Mapping[type, str]) -> Writer:
    """Make the hook of the C packer: a value that it does not know becomes one that it does."""
    find = writers.get

    def lower(value: object) -> Any:
        write = find(type(value))
        if write is not None:
            return write(value)
        if isinstance(value, type) and value in tags:
            return write_class(tags[value])
        raise Refused(advice(value))

    return lower


def pack(value: object, lower: Writer, path: str) -> bytes:
    """Pack a value.

    Args:
        value: What to pack.
        lower: The hook for all that the C packer does not know.
        path: What to call the value in an error.

    Returns:
        MessagePack.

    Raises:
        SerializationError: The hook refuses a part of it, or it is more than could be read back.
    """
    try:
        try:
            data: bytes = packer(lower).pack(value)
        except UnicodeEncodeError:  # a lone surrogate: os.listdir gives them for names that are no text
            data = packer(lower, "surrogatepass").pack(value)
    except Exception as fault:  # noqa: BLE001  properties of the job's own classes run in there
        problem = DEEP if "recursion" in str(fault) else f"packing it raised {type(fault).__name__}: {fault}"
        raise culprit(value, lower, path, problem) from None
    if len(data) > MAX_LEVELS:  # fewer bytes hold neither too many levels nor too much of anything else
        _check_bounds(data, path)
    # The headers of packed bytes: only then can a bytearray be among them. Text or a float may hold these bytes too.
    if (b"\xc4" in data or b"\xc5" in data or b"\xc6" in data) and has_aliased(value, lower):
        raise culprit(value, lower, path, "it changed while it was packed: copy it first")
    return settled(data)


def _check_bounds(data: bytes, path: str) -> None:
    if is_too_deep(data):  # the packer goes one level deeper than the unpacker
        raise SerializationError(_heaviest(data, path), DEEP)
    if len(data) > MAX_BYTES or is_crowded(data):
        raise SerializationError(
            _heaviest(data, path),
            f"it has {len(data):,} bytes, or more than {MAX_NODES:,} lists, dicts and objects: keep bulk data "
            f"in a file in ctx.data_dir and its path in the state",
        )


def _heaviest(data: bytes, path: str) -> str:
    return f"{path}.{largest_in(data)}" if is_map(data) else path


class _Restoring:
    """The hooks of one `unpack`. Counts markers, so that none can stand as a value."""

    __slots__ = ("classes", "readers", "reading", "unmatched")

    def __init__(self, readers: Mapping[str, Reader], classes: Mapping[str, type], reading: Reading) -> None:
        self.readers, self.classes, self.reading, self.unmatched = readers, classes, reading, 0

    def ext(self, code: int, data: bytes) -> Any:
        if code == MARK:
            self.unmatched += 1
            return read_marker(data)
        if code == CLASS:
            tag = str(data, "utf-8")
            return self.classes[tag] if tag in self.classes else _unknown(tag)
        return read_leaf(code, data)

    def array(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not Marker:
            return items
        self.unmatched -= 1
        if items[0].read is not None:
            return items[0].read(items)
        read = self.readers.get(items[1]) or _unknown(items[1])
        return read(self.reading, *items[2:])


def _unknown(tag: object) -> Any:
    raise Outgrown(f"the class {tag!r} is not among the declared types now: declare it again")
