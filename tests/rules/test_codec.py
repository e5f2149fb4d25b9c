"""The codec: what is stored comes back equal and of the same type, or is refused by name; damage is always seen (G17, G18)."""

# ruff: noqa: E501  # tables of values, one row of a kind

from __future__ import annotations

import enum
import math
import random
import re
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    HttpUrl,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
    field_validator,
)
from pydantic import Field as ModelField
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import TzInfo

from jobkit.bounds import MAX_NODES
from jobkit.canonical import canonical
from jobkit.codec import Codec
from jobkit.envelope import EMPTY_MAP, NO_SHAPES, Envelope, largest_field, seal, unseal
from jobkit.errors import InvalidJob, SerializationError, StateCorrupt
from jobkit.plain import decode_plain, plain
from tests.rules.small_stack import on_small_stack

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flags(enum.Flag):
    A = 1
    B = 2


class Odd(enum.Enum):
    PAIR = (1, 2)
    OTHER = (3, 4)


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    start: int
    size: Decimal = Decimal(1)


@dataclass
class Run:
    chunks: list[Chunk]
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.chunks)


@pydantic_dataclass
class Checked:
    when: date


class File(BaseModel):
    path: Path
    size: int = 0
    kind: Colour | Level | None = None

    @field_validator("size")
    @classmethod
    def double(cls, size: int) -> int:
        return size * 2

    @cached_property
    def shout(self) -> str:
        return str(self.path).upper()


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    tag: str
    inner: frozenset[Chunk] = frozenset()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = ModelField(default=1, alias="alpha")
    _seen: list[int] = PrivateAttr(default_factory=list)

    if TYPE_CHECKING:

        def __init__(self, **given: Any) -> None: ...


class Box(BaseModel, Generic[T]):
    item: T


class Row(TypedDict):
    run: Run


class State(BaseModel):
    files: list[File] = []
    boxes: dict[str, Box[Point]] = {}
    any: Annotated[Any, "anything"] = None
    mode: Literal[Flags.A, Flags.B] | None = None


class Undeclared(BaseModel):
    n: int = 1


class Text(str):
    __slots__ = ()


DECLARED = [State, "ignored", Row, Checked, Frozen | Open | None, tuple[Odd, ...], set[frozenset[Chunk]]]
CODEC = Codec(DECLARED)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same type at every level."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (left == right and math.copysign(1, left) == math.copysign(1, right)) or (
            math.isnan(left) and math.isnan(right)
        )
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    if isinstance(left, (set, frozenset)):
        return left == right and sorted(map(repr, map(type, left))) == sorted(map(repr, map(type, right)))
    if isinstance(left, BaseModel):
        return same(left.__dict__, right.__dict__) and left.model_fields_set == right.model_fields_set and left == right
    if isinstance(left, (datetime, time)):
        return (
            repr(left) == repr(right) and left.fold == right.fold and left.tzinfo == right.tzinfo
        )  # a clash of zones compares unequal
    return bool(left == right)


def round_trip(value: object) -> Any:
    """Pack and unpack, checking on the way that the plain form is the same both ways."""
    packed = CODEC.pack(value)
    back = CODEC.unpack(packed)
    assert CODEC.unpack(memoryview(packed)) is not None or back is None
    assert decode_plain(packed) == plain(value) or "nan" in repr(value)
    return back


LEAVES: list[object] = [
    None, True, False, 0, -1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400, -(10**400),
    0.5, -0.0, math.inf, -math.inf, math.nan, "", "ä€😀", "lone \udcff surrogate", b"", b"\xff\x00",
    datetime(2024, 2, 29, 1, 2, 3, 4), datetime(2024, 1, 1, fold=1),  # noqa: DTZ001
    datetime(1, 1, 1, tzinfo=UTC), datetime.max,  # noqa: DTZ901

    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime(2024, 3, 31, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=-1))), time(1, tzinfo=timezone(timedelta(microseconds=7)), fold=1),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-5, minutes=30, seconds=1, microseconds=2))),
    date(2024, 2, 29), time(1, 2, 3, 4), time(1, 2, tzinfo=UTC), time(1, fold=1, tzinfo=ZoneInfo("Asia/Tokyo")),
    timedelta(days=-1, microseconds=1), timedelta.max, timedelta.min, timedelta(0),
    Decimal("1.10"), Decimal("-0"), Decimal("Infinity"), Decimal("1e-999"), UUID(int=5), Fraction(1, 3), 1 - 2j,
    Path("a/b"), Path("caf\udce9"), Path("/"), PurePosixPath("x"), PureWindowsPath("c:\\x"), ip_address("::1"), ip_address("1.2.3.4"),
    HttpUrl("http://x.org/a"), SecretStr("s3cret"), SecretBytes(b"\xff"),
    Colour.RED, Level.HIGH, Odd.PAIR, Flags.A, Flags.A | Flags.B,
]  # fmt: skip


@pytest.mark.parametrize("value", LEAVES, ids=[f"{place}-{type(one).__name__}" for place, one in enumerate(LEAVES)])
def test_leaf(value: object) -> None:
    """Every leaf comes back equal and of its own type, alone and inside every container."""
    assert same(round_trip(value), value)
    nested = [
        value,
        (value,),
        {"k": value},
        [[value]],
        deque([value], maxlen=3),
        {value, "x"},
        frozenset([value]),
        {value: 1},
    ]
    for one in nested:
        back = round_trip(one)
        if value is not LEAVES[15] and not (isinstance(value, datetime) and value != value.astimezone(UTC)):
            assert back == one
        assert type(back) is type(one)


CONTAINERS: list[object] = [
    [], {}, (), set(), frozenset(), [[]], ((),), {1: "a", (1, 2): "b", None: "c", b"k": 1, Level.LOW: 2, 2.5: 3, Colour.RED: 1},
    {"a", 1, None, (1, "x"), frozenset({(2,)}), Chunk(1), Colour.BLUE, b"a"}, frozenset({frozenset({frozenset({1})})}),
    deque([1, (2,)], maxlen=4), deque(), defaultdict(list, {"a": [1]}), defaultdict(None, {}), Counter("abca"),
    OrderedDict([("b", 1), ((1,), 2)]), Point(1, 2), Chunk(3, Decimal("1.5")), Run([Chunk(1), Chunk(2)]), Checked(date(2024, 1, 1)),
    File(path=Path("a"), size=4, kind=Level.LOW), Frozen(tag="t", inner=frozenset({Chunk(1)})), Open(alpha=3, more=(1,)), Open(),
    {Frozen(tag="x"), Frozen(tag="y", inner=frozenset({Chunk(1), Chunk(2)}))}, Box[Point](item=Point(1)),
    State(files=[File(path=Path("a"))], boxes={"b": Box[Point](item=Point(3))}, any={1: {2, 3}}, mode=Flags.A),
    {"row": {"run": Run([])}},
]  # fmt: skip


@pytest.mark.parametrize(
    "value", CONTAINERS, ids=[f"{place}-{type(one).__name__}" for place, one in enumerate(CONTAINERS)]
)
def test_container(value: object) -> None:
    """Containers, models, dataclasses and named tuples come back equal, of the same type at every level."""
    assert same(round_trip(value), value)
    assert same(round_trip([(value,), {"k": value}]), [(value,), {"k": value}])


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.decimals(allow_nan=False)
    | st.uuids() | st.dates() | st.timedeltas() | st.times() | st.datetimes()
    | st.datetimes(timezones=st.sampled_from([UTC, ZoneInfo("Europe/Paris"), ZoneInfo("America/New_York")]))
    | st.datetimes(timezones=st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))))
    | st.sampled_from([*Colour, *Level, *Odd, Flags.A | Flags.B])
    | st.builds(Path, st.text("abc/", min_size=1)) | st.fractions()
)  # fmt: skip
hashable = st.recursive(
    leaves,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4) | st.builds(Point, inner, inner),
    max_leaves=6,
)
values = st.recursive(
    leaves | hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.sets(hashable, max_size=4)
        | st.builds(lambda x: State.model_construct(any=x), inner)
        | st.builds(Run, st.lists(st.builds(Chunk, st.integers(), st.decimals(allow_nan=False)), max_size=3))
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(values)
def test_any_nesting(value: object) -> None:
    """Whatever is nested in whatever comes back equal and of the same type; its plain form never raises and is the same both ways."""
    packed = CODEC.pack(value)
    back = CODEC.unpack(packed)
    assert same(back, value)
    assert canonical(CODEC.pack(back)) == canonical(packed)
    assert decode_plain(packed) == plain(value)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_gives_one_error(data: st.DataObject) -> None:
    """Damaged bytes give a value or `StateCorrupt`, never another exception, whichever function reads them."""
    packed = bytearray(CODEC.pack(data.draw(values)))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    readers: list[Callable[[bytes], object]] = [CODEC.unpack, decode_plain, canonical, unseal]
    for read in readers:
        try:
            read(bytes(packed))
        except StateCorrupt:
            continue


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_noise_gives_one_error(noise: bytes) -> None:
    """Bytes that were never packed give a value or `StateCorrupt`."""
    readers: list[Callable[[bytes], object]] = [CODEC.unpack, decode_plain, canonical, unseal]
    for read in readers:
        try:
            read(noise)
        except StateCorrupt:
            continue


# ── models as they change ──


def test_validators_do_not_run_again() -> None:
    """A restored model is not validated again: a validator that doubles would double at each restart."""
    file = File(path=Path("a"), size=2)
    assert file.size == 4
    assert CODEC.unpack(CODEC.pack(file)).size == 4


def test_what_a_model_hides_comes_back() -> None:
    """Which fields were given, extra fields and private attributes survive; a cached property is made anew."""
    value = Open(more=1)
    value._seen.append(5)
    back = round_trip(value)
    assert (back._seen, back.model_extra, back.model_fields_set) == ([5], {"more": 1}, {"more"})
    assert CODEC.unpack(CODEC.pack(Open()))._seen == []
    file = File(path=Path("a"))
    assert file.shout == "A"
    back = round_trip(file)
    assert back.__dict__.keys() == File.model_fields.keys()
    assert back.model_dump(exclude_unset=True) == {"path": Path("a")}


def test_added_and_removed_fields() -> None:
    """A class that gained a field with a default, or lost one, reads what its older self stored."""

    def old_model() -> type:
        class Item(BaseModel):
            a: set[int]
            gone: int

        return Item

    def new_model() -> type:
        class Item(BaseModel):
            model_config = ConfigDict(extra="forbid")
            a: set[int] = ModelField(alias="other")
            added: str = "new"

        return Item

    def old_data() -> type:
        @dataclass
        class Item:
            a: set[int]
            gone: int

        return Item

    def new_data() -> type:
        @dataclass
        class Item:
            a: set[int]
            added: str = "new"

        return Item

    old_tuple = namedtuple("Item", "a gone")  # type: ignore[name-match]  # noqa: PYI024  # both are called Item
    new_tuple = namedtuple("Item", "a added", defaults=["new"])  # type: ignore[name-match]  # noqa: PYI024
    for old, new in (
        (old_model(), new_model()),
        (old_data(), new_data()),
        (old_tuple, new_tuple),
    ):
        back = Codec([new]).unpack(Codec([old]).pack(old(a={1}, gone=2)))
        assert (back.a, back.added) == ({1}, "new")
        assert type(back) is new


def test_what_no_longer_fits_is_corrupt_and_keeps_secrets() -> None:
    """A field without default that is not stored is reported by name, and the stored values are not quoted."""

    class Item(BaseModel):
        a: str

    old = Codec([Item])
    packed = old.pack(Item(a="s3cret"))

    class Item(BaseModel):  # type: ignore[no-redef]
        a: str
        b: int

    with pytest.raises(StateCorrupt, match=r"Item has changed since.*b: Field required") as caught:
        Codec([Item]).unpack(packed)
    assert "s3cret" not in str(caught.value)


def test_class_and_member_that_are_gone() -> None:
    """A class or an enum member that no longer exists is corrupt state; a member whose value moved is still the same member."""
    packed = CODEC.pack([Undeclared.__name__, File(path=Path("x"))])
    with pytest.raises(StateCorrupt, match="'File' is not among the declared types"):
        Codec().unpack(packed)
    old, new = enum.Enum("Step", "FIRST SECOND THIRD"), enum.Enum("Step", "SECOND THIRD")
    codec = Codec([new])
    assert codec.unpack(Codec([old]).pack(old.SECOND)) is new.SECOND  # type: ignore[attr-defined]
    with pytest.raises(StateCorrupt, match="no member 'FIRST'"):
        codec.unpack(Codec([old]).pack(old.FIRST))  # type: ignore[attr-defined]
    assert decode_plain(packed) == ["Undeclared", {"path": "x", "size": 0, "kind": None}]


def test_two_classes_of_one_name() -> None:
    """Two declared classes that a stored tag could not tell apart are refused when the codec is made."""
    other = type("File", (BaseModel,), {"__annotations__": {"n": int}})
    with pytest.raises(InvalidJob, match="two classes are called 'File'"):
        Codec([File, other])
    Codec([File, list[File], File | None])


# ── refusals ──


def test_path_of_the_offending_element() -> None:
    """What can't be stored is refused with the dotted path to it, its type, and what to do."""

    class Bad(BaseModel):
        handle: Any = None

    codec = Codec([State, Bad])
    good = [File(path=Path(str(n))) for n in range(3)]
    with pytest.raises(SerializationError, match="lives in this process only") as caught:
        codec.pack({"files": [*good, Bad(handle=(1, {"f": lambda: 1}))]}, path="state")
    assert caught.value.path == "state.files.3.handle.1.f"
    with pytest.raises(SerializationError, match="not among the declared types: name Undeclared") as caught:
        codec.pack(State(any=deque([Undeclared()])), path="state")
    assert caught.value.path == "state.any.0"


REFUSED: list[tuple[object, str, str]] = [
    (lambda: 1, "v", "make it in the handler"), (Text("x"), "v", r"subclass of str.* convert it with str\("),
    ([bytearray(b"x")], "v.0", "convert it with bytes"), ({"a": [(memoryview(b"x"),)]}, "v.a.0.0", "convert it with bytes"),
    ([msgpack.ExtType(64, b"\1"), b"x"], "v.0", "MessagePack's own"), ({1, Text("s")}, "v.*", "subclass of str"),
    ({(1, object()): 2}, "v.key", "make it in the handler"), (defaultdict(lambda: 1), "v", "factory"), (object, "v", "type"),
    ([State(any=Undeclared())], "v.0.any", "not among the declared"), (type("D", (dict,), {})(), "v", r"convert it with dict\("),
    (datetime(2024, 1, 1, tzinfo=type("Z", (tzinfo,), {"utcoffset": lambda *_: timedelta(0)})()), "v", "ZoneInfo"),
    ([Open.model_construct(a=Text("x"))], "v.0.a", "subclass of str"), (OrderedDict(a=print), "v.a", "make it in"), (slice(3), "v", "slice"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "path", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_refused(value: object, path: str, problem: str) -> None:
    """Anything that would not come back equal in value and type is refused, never changed silently."""
    with pytest.raises(SerializationError, match=problem) as caught:
        CODEC.pack(value, path="v")
    assert caught.value.path.startswith(path)


def test_half_made_objects() -> None:
    """A field that was never set, or an attribute that is no field, is refused rather than lost."""
    with pytest.raises(SerializationError, match="path"):
        CODEC.pack(File.__new__(File))
    run = Run([])
    run.extra = 1  # type: ignore[attr-defined]
    with pytest.raises(SerializationError, match="'extra' is no field of Run"):
        CODEC.pack(run)


def nest(levels: int, wrap: Callable[[Any], Any]) -> Any:
    """Wrap a value so many times."""
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda one: [one], "tuple": lambda one: (one,), "dict": lambda one: {"a": one}, "set": lambda one: frozenset([one, 2]),
    "model": lambda one: State.model_construct(any=one), "deque": lambda one: deque([one]),
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_deep_values(wrap: Callable[[Any], Any]) -> None:
    """What packs unpacks, however deep; what is too deep is an error, never a crash, on a small thread stack too."""

    def body() -> None:
        packed_once = False
        most = 1_500 if wrap is WRAPS["deque"] else 100_000  # CPython 3.11 crashes when it frees 100,000 of them
        for levels in (400, *range(500, 520), *range(1015, 1030), 5_000, 100_000):
            value = nest(min(levels, most), wrap)
            try:
                packed = CODEC.pack(value)
            except SerializationError as refused:
                assert levels > 500 and "too deeply" in str(refused)  # noqa: PT017, PT018
                with pytest.raises(SerializationError):
                    plain(value)
            else:
                packed_once = True
                CODEC.unpack(packed)
                canonical(packed)
                assert CODEC.pack(decode_plain(packed)) == CODEC.pack(plain(value))
        assert packed_once

    on_small_stack(body)


def test_deep_bytes() -> None:
    """Bytes that open a million arrays, maps or markers are refused, on a small thread stack too."""

    def body() -> None:
        for opening in (b"\x91", b"\x81\x01", b"\x92\xd4\x40\x01", b"\x92\xd4\x40\x03", b"\x81"):
            for read in (CODEC.unpack, decode_plain, canonical):
                with pytest.raises(StateCorrupt):
                    read(opening * 100_000 + b"\x01")
        head = seal("j", 1, EMPTY_MAP)[:14]
        with pytest.raises(StateCorrupt):
            unseal(head + b"\x91" * 100_000)

    on_small_stack(body)


def test_a_value_that_contains_itself() -> None:
    """A cycle is named where it closes."""
    loop: list[Any] = [1]
    loop.append({"again": loop})
    with pytest.raises(SerializationError, match="contains itself") as caught:
        CODEC.pack({"a": loop}, path="state")
    assert caught.value.path == "state.a.1.again"
    state = State()
    state.any = (state,)
    with pytest.raises(SerializationError, match="contains itself"):
        CODEC.pack(state)


def test_many_nested_sets_are_cheap() -> None:
    """Sorting sets of sets takes one pass, not one for each level."""
    value = nest(400, lambda one: frozenset([one, 1]))
    assert CODEC.unpack(CODEC.pack(value)) == value


@pytest.mark.parametrize(
    "bomb", [b"\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000, b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000]
)
def test_node_bomb(bomb: bytes) -> None:
    """A megabyte of empty maps, 64 MB once decoded, is refused; so is a value that would pack into one."""
    for read in (CODEC.unpack, decode_plain):
        with pytest.raises(StateCorrupt, match="more than 500,000 maps"):
            read(bomb)
    with pytest.raises(SerializationError, match="500,000 lists"):
        CODEC.pack([[] for _ in range(MAX_NODES + 1)])
    full: list[list[int]] = [[]] * (MAX_NODES - 1)
    assert CODEC.unpack(CODEC.pack(full)) == full
    text = "ž€\u3042" * 200_000
    assert CODEC.unpack(CODEC.pack(text)) == text


def test_bounds_are_the_callers() -> None:
    """A caller may set lower bounds on bytes and nodes."""
    packed = CODEC.pack([[1], [2], "long enough"])
    assert CODEC.unpack(packed, max_bytes=len(packed), max_nodes=3)
    for most_bytes, most_nodes in ((len(packed) - 1, 3), (len(packed), 2)):
        with pytest.raises(StateCorrupt, match="more than"):
            CODEC.unpack(packed, max_bytes=most_bytes, max_nodes=most_nodes)


# ── bytes ──


def test_truncation_and_trailing_bytes() -> None:
    """Cut at any length, or followed by anything, it is corrupt."""
    packed = CODEC.pack(CONTAINERS)
    for length in range(len(packed)):
        with pytest.raises(StateCorrupt):
            CODEC.unpack(packed[:length])
    for more in (b"\0", b"\xc0", packed):
        with pytest.raises(StateCorrupt):
            CODEC.unpack(packed + more)


def test_only_declared_types_are_constructed() -> None:
    """No byte can name anything but a declared class (G18); a marker or an unknown extension is never a value."""
    opening = msgpack.ExtType(64, b"\x04")
    for forged in (
        [opening, "Undeclared", {"n": 1}], [opening, "builtins.exec", {}], [opening, ["File"], {}], [opening], [opening, "File"],
        [opening, "File", 3], [opening, "Colour", {}], [opening, "Run", {}, 1], opening, [1, opening], {"a": opening}, [opening, "File", opening],
        [msgpack.ExtType(64, b"\x63")], [msgpack.ExtType(64, b"")], msgpack.ExtType(99, b""), [msgpack.ExtType(64, b"\x7e"), 1],
        [msgpack.ExtType(64, b"\x02"), []], [msgpack.ExtType(64, b"\x07"), "exec", {}], msgpack.ExtType(13, b"exec:1"),
        msgpack.ExtType(1, b"2024-01-01T00:00[../../etc/passwd]"), msgpack.ExtType(6, b"short"), msgpack.ExtType(5, b"x"),
        {"a": [msgpack.ExtType(64, b"\x05"), "Colour", "GREEN", "green"]}, msgpack.ExtType(4, b"\x7f" * 12),
        msgpack.ExtType(15, b"Undeclared"), msgpack.ExtType(15, b"int"), msgpack.ExtType(15, b"=eval"), msgpack.ExtType(13, b"Fraction:1e999999999"),
        [msgpack.ExtType(64, b"\x07"), "int", {}], msgpack.ExtType(14, b"../../etc/passwd"),
    ):  # fmt: skip
        with pytest.raises(StateCorrupt):
            CODEC.unpack(msgpack.packb(forged))
    for forged in (opening, [1, opening], {"a": opening}, [opening], msgpack.ExtType(99, b"")):
        with pytest.raises(StateCorrupt):
            decode_plain(msgpack.packb(forged))


def test_canonical_bytes() -> None:
    """Equal values give equal bytes whatever the order of keys and members; unequal ones never do."""
    names = [f"n{i}" for i in range(50)]
    members = [(n, frozenset([n, 1])) for n in names]
    one = {"a": set(names), "b": set(members), "c": State(any={"x": 1, "y": (2,)}), (1, 2): Open(q=1, r=2)}
    two = {
        (1, 2): Open(r=2, q=1),
        "c": State(any={"y": (2,), "x": 1}),
        "b": {members[-n] for n in range(1, 51)},
        "a": {names[-n] for n in range(1, 51)},
    }
    assert one == two
    assert canonical(CODEC.pack(one)) == canonical(CODEC.pack(two))
    assert CODEC.pack(one["b"]) == CODEC.pack(two["b"])
    assert canonical(CODEC.pack(Open(alpha=1))) == canonical(CODEC.pack(Open()))
    noon = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    assert canonical(CODEC.pack({noon: noon.timetz()})) == canonical(
        CODEC.pack({noon.replace(tzinfo=TzInfo(3600)): noon.timetz().replace(tzinfo=TzInfo(3600))})
    )
    assert canonical(CODEC.pack(Open(alpha=1, z=1))) == canonical(CODEC.pack(Open(z=1)))
    different = [
        [1, 2],
        [2, 1],
        (1, 2),
        {1, 2},
        {"1": 2},
        {1: 2},
        [1.0, 2],
        [True, 2],
        "1",
        b"1",
        Open(),
        Open(alpha=2),
    ]
    assert len({canonical(CODEC.pack(value)) for value in different}) == len(different)
    packed = canonical(CODEC.pack(one))
    assert canonical(packed) == packed
    assert CODEC.unpack(packed) == one
    with pytest.raises(StateCorrupt):
        canonical(b"\x91")


def test_packers_are_not_shared() -> None:
    """Several threads pack and unpack with one codec at once."""
    wrong: list[object] = []

    def work(seed: int) -> None:
        value = {"n": seed, "files": [File(path=Path(str(seed)))] * 20, "s": {(seed, n) for n in range(20)}}
        wrong.extend(seed for _ in range(100) if CODEC.unpack(CODEC.pack(value)) != value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ── the envelope ──

JOB = "0190a1b2-0000-7000-8000-000000000001"


def is_detected(damaged: bytes) -> bool:
    """Tell whether an envelope is refused."""
    try:
        unseal(damaged)
    except StateCorrupt:
        return True
    return False


def flipped(data: bytes, bit: int) -> bytes:
    """Flip one bit."""
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize(
    ("job_id", "version", "size", "journal", "shapes"),
    [
        (JOB, 1, 0, EMPTY_MAP, NO_SHAPES),
        (JOB, 1, 10, EMPTY_MAP, CODEC.shapes),
        ("j", 0xCECECECE, 100, b"\x81\x01\x02", CODEC.pack(b"\xce" * 20)),
        ("Î" * 30, 206, 1_000, EMPTY_MAP, CODEC.pack(bytes(300))),
    ],
)
def test_every_flipped_bit_is_detected(job_id: str, version: int, size: int, journal: bytes, shapes: bytes) -> None:
    """G17: one flipped bit, wherever it is, never reaches user code; nor does an end that is missing, or one too many."""
    fields = {"files": [File(path=Path("a"))], "set": {1, 2}, "x": 206, "long": "Î" * size} if size else {}
    state = CODEC.pack(fields)
    sealed = seal(job_id, version, state, journal, shapes)
    assert unseal(sealed) == Envelope(job_id, version, state, journal, shapes)
    assert [bit for bit in range(len(sealed) * 8) if not is_detected(flipped(sealed, bit))] == []
    assert [length for length in range(len(sealed)) if not is_detected(sealed[:length])] == []
    assert is_detected(sealed + b"\0")


def test_flipped_bits_of_a_large_envelope_are_detected() -> None:
    """G17: of the largest state that is stored whole, 64 KiB, every bit at the ends and a sample between are tried."""
    state = CODEC.pack({"files": [File(path=Path(f"folder/{n}"), size=n) for n in range(1_450)]})
    assert 60_000 < len(state) < 65_536
    sealed = seal(JOB, 1, state, CODEC.pack({"step": 1}), CODEC.shapes)
    bits = len(sealed) * 8
    chosen = [*range(1_000), *random.Random(64).sample(range(1_000, bits - 500), 8_000), *range(bits - 500, bits)]
    assert [bit for bit in chosen if not is_detected(flipped(sealed, bit))] == []


def test_the_largest_field_is_named() -> None:
    """What takes most room in a state is told, of any kind and wherever it stands; of nothing, nothing."""
    fields: dict[str, object] = {"a": 1, "much": [{"x": n} for n in range(50)], "path": File(path=Path("p" * 30))}
    assert largest_field(seal(JOB, 1, CODEC.pack(fields))) == "much"
    assert largest_field(seal(JOB, 1, CODEC.pack({**fields, "z": b"x" * 9_000}))) == "z"
    for nothing in (seal(JOB, 1, EMPTY_MAP), b"", b"x", seal(JOB, 1, CODEC.pack(fields))[:-1]):
        assert largest_field(nothing) == ""


def test_any_messagepack_reader_opens_it() -> None:
    """An envelope is plain MessagePack: an array of seven with the state as a map of named fields."""
    sealed = seal(JOB, 3, CODEC.pack({"n": 1, "tags": {"a"}}), CODEC.pack({"step": 2}), CODEC.pack(b"abcd"))
    form, job_id, number, check, shapes, state, journal = msgpack.unpackb(
        sealed, ext_hook=lambda _code, data: data, strict_map_key=False
    )
    assert (form, job_id, number, shapes, journal) == (1, JOB, 3, b"abcd", {"step": 2})
    assert state == {"n": 1, "tags": [b"\x02", "a"]}
    assert isinstance(check, int)


def test_an_envelope_holds_two_maps() -> None:
    """What could not be opened again is not sealed."""
    for bad in (
        (JOB, 1, b"\x90"),
        (JOB, 1, b""),
        (JOB, -1, EMPTY_MAP),
        (JOB, 2**32, EMPTY_MAP),
        ("x" * 256, 1, EMPTY_MAP),
    ):
        with pytest.raises(SerializationError):
            seal(*bad)
    for journal in (EMPTY_MAP * 2, b"\x81", b"\x81\xc1\xc1"):
        with pytest.raises(StateCorrupt, match="no two maps"):
            unseal(seal(JOB, 1, EMPTY_MAP, journal))
    for shapes in (b"", EMPTY_MAP, b"\xa1x"):
        with pytest.raises(SerializationError):
            seal(JOB, 1, EMPTY_MAP, shapes=shapes)
    with pytest.raises(StateCorrupt, match="no two maps"):
        unseal(seal(JOB, 1, EMPTY_MAP, shapes=NO_SHAPES + EMPTY_MAP))


# ── for people ──


def test_plain() -> None:
    """Any packable value reads as JSON data: secrets masked, numbers that JSON lacks as text, keys as text."""
    aware = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    value = {
        1: Colour.RED, (1, "a"): Odd.PAIR, None: Flags.A, False: SecretStr("s3cret"), b"k": SecretBytes(b"x"), "nan": math.nan, "inf": [-math.inf],
        "b": b"text", "raw": b"\xff", "at": aware, "for": timedelta(days=1, seconds=2), "d": Decimal("1.10"), "p": Path("a/b"), "u": UUID(int=1),
        "set": {3, 1}, "t": (1, (2,)), "m": Open(alpha=2, more={1}), "r": Run([Chunk(1)]), "pt": Point(1), "c": Counter("aa"), "q": deque([1]),
        "dd": defaultdict(list, {1: [2]}), "od": OrderedDict([(2, (1,)), (1, 0)]), "big": 2**70, "lone": "\udcff", "un": Undeclared(), "empty": SecretStr(""),
        "day": date(2024, 1, 2), "lp": Path("\udcff"), "any": Secret([SecretStr("s3cret"), 5]), "zone": ZoneInfo("Asia/Tokyo"), "re": re.compile("a+"),
        "class": [Run, int], "range": range(1, 9, 2), "size": ByteSize(5), "stamp": msgpack.Timestamp(5), "off": timezone(timedelta(hours=1), "CET"),
    }  # fmt: skip
    assert plain(value) == {
        "1": "red", "1,a": "PAIR", "None": 1, "false": "**********", "k": "**********", "nan": "nan", "inf": ["-inf"],
        "b": "text", "raw": "/w==", "at": "2024-01-02T03:04:05Z", "for": "P1DT2S", "d": "1.10", "p": "a/b", "u": str(UUID(int=1)),
        "set": [1, 3], "t": [1, [2]], "m": {"a": 2, "more": [1]}, "r": {"chunks": [{"start": 1, "size": "1"}], "total": 1}, "pt": {"x": 1, "y": 0},
        "c": {"a": 2}, "q": [1], "dd": {"1": [2]}, "od": {"2": [1], "1": 0}, "big": 2**70, "lone": "\\udcff", "un": {"n": 1}, "empty": "**********",
        "day": "2024-01-02", "lp": "\\udcff", "any": "**********", "zone": "Asia/Tokyo", "re": "a+",
        "class": ["Run", "int"], "range": [1, 9, 2], "size": 5, "stamp": "Timestamp(seconds=5, nanoseconds=0)", "off": "CET",
    }  # fmt: skip


def test_plain_of_every_value_is_json() -> None:
    """What `plain` gives is made of JSON's types only, and `decode_plain` says the same without the classes."""

    def check(one: object) -> None:
        assert type(one) in {type(None), bool, int, float, str, list, dict}
        if isinstance(one, dict):
            assert all(type(key) is str for key in one)
        for part in one.values() if isinstance(one, dict) else one if isinstance(one, list) else ():
            check(part)

    for value in [*LEAVES, *CONTAINERS]:
        check(plain(value))
        assert decode_plain(CODEC.pack(value)) == plain(value)
