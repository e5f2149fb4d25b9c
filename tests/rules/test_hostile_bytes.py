"""G18: data is not code. Stored bytes that somebody forged, checksum and all, make declared types or one error."""

# ruff: noqa: E501  # tables: one row a kind of bytes

from __future__ import annotations

import dataclasses
import enum
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Secret

from jobkit import StateCorrupt, StateVersionError
from jobkit.classes import declared
from jobkit.envelope import NO_SHAPES, seal, unseal
from jobkit.jobtype import JobType
from jobkit.kinds import LIBRARY, MARK, WRITERS
from tests.rules.kinds import ALL_CHANGED, JOB_ID, KINDS, Beside, Tree, holding
from tests.rules.small_stack import on_small_stack

EVERYTHING = [hint for _, hint, _ in KINDS]
KIND: JobType = holding(dict[str, reduce(or_, [hint for hint in EVERYTHING if hint is not None], Any)])  # type: ignore[misc]
DECLARED = {*declared([*EVERYTHING, Beside]).values(), *LIBRARY.values()}
VALUES = [value for _, _, values in KINDS for value in values if len(str(value)) < 200]
HONEST = b"\x80"  # the parameters


def packed(value: Any) -> bytes:
    """Pack a state as an attempt does."""
    job: Any = KIND.cls()
    job.anything = value
    return KIND.pack_state(job)


def load(state: bytes, shapes: bytes = NO_SHAPES) -> list[Any]:
    """Load a state whose envelope was forged to fit it; answers what it made, if anything."""
    try:
        envelope = unseal(seal(JOB_ID, 1, state, shapes=shapes))
        job: Any = KIND.restore(HONEST, envelope.state, shapes=envelope.shapes)
    except (StateCorrupt, StateVersionError):
        return []
    return [job.field, job.anything, job.beside]


def parts(value: Any) -> Iterator[Any]:
    """Walk a value, from the top."""
    todo = [value]
    while todo:
        one = todo.pop()
        yield one
        if isinstance(one, BaseModel):
            todo += [one.__dict__, one.__pydantic_extra__, one.__pydantic_private__]
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            todo += [getattr(one, field.name, None) for field in dataclasses.fields(one)]
        elif isinstance(one, dict):
            todo += [*one.keys(), *one.values(), getattr(one, "default_factory", None)]
        elif isinstance(one, (list, tuple, set, frozenset)) or type(one).__name__ == "deque":
            todo += one
        elif isinstance(one, Secret):
            todo.append(one.get_secret_value())


def is_declared(one: Any) -> bool:
    """Tell whether a value, or a class that is one, is of what may be constructed."""
    return (one if isinstance(one, type) else type(one)) in DECLARED


def in_time(body: Callable[[], Any]) -> Any:
    """Run something that may take a second of this thread's processor time."""
    began = time.thread_time()
    found = body()
    assert time.thread_time() - began < 1
    return found


def ext(code: int, data: bytes = b"") -> Any:
    """Make an extension as the codec writes it."""
    return msgpack.ExtType(code, data)


def marked(code: int, *items: Any) -> bytes:
    """Make an array that opens with a marker."""
    return bytes(msgpack.packb([ext(MARK, bytes([code])), *items]))


TAGS = [kind.__name__.encode() for kind in DECLARED] + [b"eval", b"os.system", b"builtins.exec", b"=eval", b"", b"=int"]
PIECES = (
    st.binary(min_size=1, max_size=4)
    | st.sampled_from([bytes([0xD4, MARK, code]) for code in range(130)])  # a marker
    | st.sampled_from([bytes([0xD4 + size, code]) for code in range(20) for size in range(5)])  # a leaf
    | st.sampled_from([bytes([0xC7, 3, code]) for code in range(20)])
    | st.sampled_from([b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x0d", b"\xdb\xff\xff\xff\xf0"])
    | st.sampled_from([msgpack.packb(tag.decode()) for tag in TAGS])
    | st.sampled_from([msgpack.packb(msgpack.ExtType(15, tag)) for tag in TAGS])
)  # fmt: skip


@st.composite
def cut_and_pasted(draw: st.DrawFn) -> bytes:
    """Take sound bytes, cut pieces out and put others in."""
    chosen = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=3))
    state = packed([chosen, dict(enumerate(chosen))])
    for _ in range(draw(st.integers(1, 4))):
        at, width = draw(st.integers(1, len(state))), draw(st.integers(0, 6))
        state = state[:at] + draw(PIECES | st.just(b"")) + state[at + width :]
    return state


class Pairs(tuple[tuple[Any, Any], ...]):
    """A map as MessagePack alone sees it, whose keys may be arrays and maps."""

    __slots__ = ()


def unpacked(data: bytes) -> Any:
    """See packed bytes as MessagePack alone does."""
    return msgpack.unpackb(
        data,
        ext_hook=ext,
        object_pairs_hook=Pairs,
        strict_map_key=False,
        use_list=False,
        unicode_errors="surrogatepass",
    )


def packed_again(one: Any) -> bytes:
    """Undo `unpacked`."""
    packer = msgpack.Packer(unicode_errors="surrogatepass")
    if type(one) is Pairs:
        return bytes(packer.pack_map_header(len(one))) + b"".join(
            map(packed_again, [part for pair in one for part in pair])
        )
    if type(one) is tuple:
        return bytes(packer.pack_array_header(len(one))) + b"".join(map(packed_again, one))
    return bytes(packer.pack(one))


def inner(one: Any) -> list[Any]:
    """List what stands in a value, with itself."""
    return [one, *(part for each in one for part in inner(each))] if type(one) in {tuple, Pairs} else [one]


STEMS = [unpacked(packed(value)) for value in VALUES]
GRAFTS = (
    [part for stem in STEMS for part in inner(stem)] + [tag.decode() for tag in TAGS] + [ext(15, tag) for tag in TAGS]
)


@st.composite
def grafted(draw: st.DrawFn) -> bytes:
    """Put parts of sound values where others stood: every kind of value in every place, in well-formed MessagePack."""

    def graft(one: Any) -> Any:
        if draw(st.integers(0, 9)) == 9:
            return draw(st.sampled_from(GRAFTS))
        if type(one) is Pairs:
            return Pairs((graft(key), graft(value)) for key, value in one)
        return tuple(map(graft, one)) if type(one) is tuple else one

    return packed_again(Pairs((name, graft(value)) for name, value in draw(st.sampled_from(STEMS))))


@pytest.mark.parametrize("forged", [cut_and_pasted(), grafted()], ids=["cut and pasted", "grafted"])
def test_forged_states_make_declared_types_or_one_error(forged: st.SearchStrategy[bytes]) -> None:
    """Whatever the bytes: no other class is made, none is imported, nothing crashes, even on a small stack, or takes long."""

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(forged, st.sampled_from([NO_SHAPES, ALL_CHANGED, KIND.shapes]))
    def load_any(state: bytes, shapes: bytes) -> None:
        made = in_time(lambda: load(state, shapes))
        event("made" if made else "refused")
        assert [one for one in parts(made) if not is_declared(one)] == []

    on_small_stack(load_any)


SMALL_BOMBS: dict[str, bytes] = {
    **{f"marker {code}": marked(code) for code in range(1, 13)},
    "deque": marked(6, None), "defaultdict": marked(7, None, {}), "Counter": marked(8, {}), "Secret": marked(10, None),
    "range": marked(12, 2**60), "pattern": marked(11, "(a|b)*c", 0), "model": marked(4, "Nested", {"name": "", "at": None}),
    "model without fields": marked(4, "Tree", {}), "dataclass without fields": marked(4, "Data", {}), "enum": marked(5, "Level", "LOW", 1),
    "list": b"\x90", "dict": b"\x80", "class": msgpack.packb(ext(15, b"Level")), "path": msgpack.packb(ext(7, b"a")),
    "URL": msgpack.packb(ext(13, b"HttpUrl:http://a")), "network": msgpack.packb(ext(13, b"IPv6Network:::/0")), "Fraction": msgpack.packb(ext(13, b"Fraction:1/3")),
    "zone": msgpack.packb(ext(14, b"Europe/Berlin")), "clock": msgpack.packb(ext(1, b"2024-01-01T00:00[Europe/Berlin]")),
}  # fmt: skip


@pytest.mark.parametrize("one", SMALL_BOMBS.values(), ids=SMALL_BOMBS)
@pytest.mark.parametrize("shapes", [NO_SHAPES, ALL_CHANGED], ids=["as declared", "changed"])
def test_64_kib_open_no_more_than_100_mb(one: bytes, shapes: bytes) -> None:
    """The smallest bytes of each kind, as many as fit in a state that is stored whole: within a second and 100 MB."""
    number = 65_000 // len(one)
    state = b"\x81\xa8anything\xdd" + number.to_bytes(4, "big") + one * number
    in_time(lambda: load(state, shapes))
    tracemalloc.start()
    try:
        load(state, shapes)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


LARGE_BOMBS: dict[str, bytes] = {
    "Fraction with an exponent": msgpack.packb(ext(13, b"Fraction:1e999999999")),
    "Fraction of many digits": msgpack.packb(ext(13, b"Fraction:" + b"9" * 60_000)),
    "Decimal with an exponent": msgpack.packb({ext(5, b"1e999999999"): 1}),
    "Decimal of many digits": msgpack.packb(ext(5, b"9" * 60_000)),
    "int of many digits": msgpack.packb(ext(10, b"\x7f" * 60_000)),
    "complex of many digits": msgpack.packb(ext(13, b"complex:" + b"9" * 60_000)),
    "pattern of groups": marked(11, "(" * 20_000 + ")" * 20_000, 0),
    "pattern of ranges": marked(11, "(?i)[\0-\U0010ffff]" * 200, 0),
    "pattern of repeats": marked(11, "(?:" * 30 + "a" + "{1000})" * 30, 0),
    "range of the whole": marked(12, -(2**63), 2**63, 1),
    "URL": msgpack.packb(ext(13, b"HttpUrl:http://" + b"a." * 30_000)),
    "zone": msgpack.packb(ext(14, b"a/" * 30_000)),
    "offset": msgpack.packb(ext(14, b"=" + b"9" * 4_000)),
    "deep lists": b"\x91" * 60_000,
    "deep dicts": b"\x81\xa1a" * 20_000,
    "deep models": (b"\x93\xd4\x40\x04\xa4Tree\x81\xa4left") * 4_000,
    "deep secrets": b"\x92\xd4\x40\x0a" * 10_000,
    "deep keys": b"\x81\x92\xd4\x40\x01" * 10_000,
}


@pytest.mark.parametrize("one", LARGE_BOMBS.values(), ids=LARGE_BOMBS)
def test_one_value_takes_no_longer_than_its_bytes(one: bytes) -> None:
    """No constructor of a library works out more than was written, and no nesting overflows a small stack."""

    def body() -> None:
        for shapes in (NO_SHAPES, ALL_CHANGED):
            for whole in (one, b"\x92\xd4\x40\x0a" + one):
                in_time(lambda state=b"\x81\xa8anything" + whole, shapes=shapes: load(state, shapes))  # type: ignore[misc]

    on_small_stack(body)


def test_deep_objects_of_changed_classes() -> None:
    """As deep as a state may be, on a small stack, mending every level: it comes back."""
    tree = Tree()
    for n in range(240):
        tree = Tree(value=n, left=tree)

    def body() -> None:
        job: Any = KIND.cls()
        job.anything, job.field = tree, {"tags": deep_tags(450)}
        again: Any = KIND.restore(HONEST, KIND.pack_state(job), shapes=ALL_CHANGED)
        assert again.anything == tree
        assert again.field == job.field

    on_small_stack(body)


def deep_tags(levels: int) -> Any:
    """Make a value of an alias that names itself."""
    value: Any = ["a"]
    for _ in range(levels):
        value = {"x": value}
    return value


def test_what_can_be_constructed_is_known() -> None:
    """The list of library types is short and closed; a new one is a decision, to be made here too."""
    names = {kind.__name__ for kind in WRITERS}
    assert names == {
        "datetime", "date", "time", "timedelta", "Decimal", "UUID", "PosixPath", "PurePosixPath", "PureWindowsPath", "int", "SecretStr", "SecretBytes",
        "complex", "Fraction", "ByteSize", "IPv4Address", "IPv4Interface", "IPv4Network", "IPv6Address", "IPv6Interface", "IPv6Network",
        "AnyUrl", "AnyHttpUrl", "FileUrl", "HttpUrl", "FtpUrl", "AnyWebsocketUrl", "WebsocketUrl", "AmqpDsn", "ClickHouseDsn", "CockroachDsn", "KafkaDsn",
        "MariaDBDsn", "MongoDsn", "MySQLDsn", "NatsDsn", "PostgresDsn", "RedisDsn", "SnowflakeDsn", "ZoneInfo", "timezone", "TzInfo",
        "tuple", "set", "frozenset", "deque", "defaultdict", "Counter", "OrderedDict", "Secret", "Pattern", "range",
    }  # fmt: skip
    assert not any(issubclass(kind, (enum.Enum, BaseModel)) for kind in WRITERS)
