"""The kinds of values that people keep in a job's state: for each its name, the type that a field declares, and values.

`KINDS` come back equal and of the same type at every level, which `same` looks into; `REFUSED` are refused at the
checkpoint, with the path to them and what to do instead. A kind that belongs in neither table does not exist.
"""

# ruff: noqa: E501, PYI061, DTZ001, DTZ901  # tables: one row a kind; naive times are among them; no default is shared

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypeVar,
    Union,
)
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from msgpack import ExtType, Timestamp  # type: ignore[import-untyped]
from pydantic import (
    AfterValidator,
    AliasChoices,
    AmqpDsn,
    AnyHttpUrl,
    AnyUrl,
    AnyWebsocketUrl,
    AwareDatetime,
    Base64Bytes,
    Base64Str,
    BaseModel,
    ByteSize,
    ClickHouseDsn,
    CockroachDsn,
    ConfigDict,
    DirectoryPath,
    Discriminator,
    Field,
    FilePath,
    FileUrl,
    FtpUrl,
    FutureDatetime,
    HttpUrl,
    IPvAnyAddress,
    Json,
    JsonValue,
    KafkaDsn,
    MariaDBDsn,
    MongoDsn,
    MySQLDsn,
    NaiveDatetime,
    NatsDsn,
    NewPath,
    PastDate,
    PastDatetime,
    PositiveInt,
    PostgresDsn,
    PrivateAttr,
    RedisDsn,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    SnowflakeDsn,
    StrictStr,
    StringConstraints,
    Tag,
    TypeAdapter,
    WebsocketUrl,
    computed_field,
    conint,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import TzInfo
from typing_extensions import TypeAliasType, TypedDict

from jobkit import Job, state
from jobkit.envelope import unseal
from jobkit.jobtype import JobType
from jobkit.plain import decode_plain

T = TypeVar("T")
Number = TypeVar("Number", bound=int)

# ── classes as users write them ──


class Plain(enum.Enum):
    PAIR = (1, 2)
    TEXT = "text"
    OTHER_NAME = "text"  # noqa: PIE796  an alias
    NOTHING = None


class Text(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class OldText(str, enum.Enum):  # noqa: UP042  as it was written before StrEnum
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flags(enum.Flag):
    A = enum.auto()
    B = enum.auto()
    C = enum.auto()
    AB = A | B


class IntFlags(enum.IntFlag):
    R = 4
    W = 2


class Day(date, enum.Enum):
    FIRST = 2024, 1, 1


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Generic2D(NamedTuple, Generic[T]):
    x: T


OldPoint = namedtuple("OldPoint", "x y")  # noqa: PYI024  as it was written before NamedTuple


class Nested(BaseModel):
    name: str = ""
    at: datetime | None = None


class Base(BaseModel):
    n: int = 1


class Derived(Base):
    more: list[str] = []


class Sibling(Base):
    more: list[str] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


def species(value: Any) -> str:
    """Discriminate as a function."""
    return str(value["kind"] if isinstance(value, dict) else value.kind)


CalledPet = Annotated[
    Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")],
    Discriminator(species),
]


class Box(BaseModel, Generic[T]):
    item: T


class Pair(Box[T], Generic[T]):
    other: T


class Tree(BaseModel):
    value: int = 0
    left: Tree | None = None
    children: list[Tree] = []


class Names(RootModel[list[str]]):
    pass


class ByName(RootModel[dict[str, Nested]]):
    pass


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    tag: str
    parts: frozenset[int] = frozenset()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = Field(default=1, alias="alpha")


class TypedOpen(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Nested] = Field(init=False)


class Private(BaseModel):
    n: int = 0
    _seen: list[int] = PrivateAttr(default_factory=list)
    _unset: int = PrivateAttr()


class Aliased(BaseModel):
    first: int = Field(default=1, alias="First")
    second: int = Field(default=2, validation_alias=AliasChoices("s", "sec"), serialization_alias="SECOND")
    hidden: str = Field(default="h", exclude=True)
    quiet: str = Field(default="q", repr=False)


class Computed(BaseModel):
    width: int = 2

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.width**2

    @cached_property
    def perimeter(self) -> int:
        return 4 * self.width

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def volume(self) -> int:
        return self.width**3


class Doubling(BaseModel):
    """Whose validators would show if they ran again."""

    n: int = 0
    total: int = 0

    @field_validator("n")
    @classmethod
    def double(cls, n: int) -> int:
        return n * 2

    @model_validator(mode="after")
    def add(self) -> Doubling:
        self.total += self.n
        return self


class OwnEquality(BaseModel):
    n: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnEquality) and self.n % 10 == other.n % 10

    def __hash__(self) -> int:
        return self.n % 10


class OwnInit(BaseModel):
    n: int = 0

    def __init__(self, number: int, /) -> None:
        super().__init__(n=number)


class Urls(BaseModel):
    model_config = ConfigDict(url_preserve_empty_path=True)
    url: HttpUrl


class Assigned(BaseModel):
    model_config = ConfigDict(validate_assignment=True, revalidate_instances="always", strict=True)
    n: int = 0
    inner: Doubling | None = None


@dataclass
class Data:
    n: int = 0
    parts: list[Fraction] = field(default_factory=list)


@dataclass(frozen=True, slots=True, order=True)
class FrozenData:
    start: int
    size: Decimal = Decimal(1)


@dataclass
class DerivedData(Data):
    more: Nested | None = None
    kind: ClassVar[str] = "derived"


@dataclass
class Made:
    """Whose field is made, not given; and which is given what it does not keep."""

    parts: list[int]
    scale: InitVar[int] = 1
    total: int = field(init=False)

    def __post_init__(self, scale: int) -> None:
        self.total = len(self.parts) * scale

    @cached_property
    def half(self) -> float:
        return self.total / 2


@dataclass
class GenericData(Generic[T]):
    item: T


@pydantic_dataclass
class Checked:
    when: date
    n: Annotated[int, AfterValidator(lambda n: n + 1)] = 0


@pydantic_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class FrozenChecked:
    path: Path


class Row(TypedDict):
    point: Point
    more: NotRequired[Nested]


class Rows(TypedDict, total=False):
    row: Row


UserId = NewType("UserId", int)
Tags = TypeAliasType("Tags", "list[str] | dict[str, Tags]")
Listed = TypeAliasType("Listed", list[T], type_params=(T,))


class Undeclared(BaseModel):
    n: int = 1


# ── what comes back ──

BERLIN, TOKYO = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")


def parsed(hint: Any, text: str) -> Any:
    """Have pydantic read JSON, which gives times a kind of time zone that is its own."""
    return TypeAdapter(hint).validate_json(text)


def touched(model: Any, *names: str) -> Any:
    """Ask for cached properties."""
    for name in names:
        getattr(model, name)
    return model


def hiding(one: Any) -> Private:
    """Make a model with something in a private attribute."""
    model = Private()
    model._seen.append(one)
    return model


KINDS: Final[list[tuple[str, Any, list[Any]]]] = [
    # numbers and text
    ("None", None, [None]),
    ("bool", bool, [True, False]),
    ("int", int, [0, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400)]),
    ("int in a float's place", float, [3, 0, 2**70]),
    ("float", float, [0.5, 0.0, -0.0, 1e-320, 1.7976931348623157e308, math.pi]),
    ("inf and nan", float, [math.inf, -math.inf, math.nan]),
    ("complex", complex, [1 - 2j, complex(-0.0, -0.0), complex(math.inf, math.nan)]),
    ("str", str, ["", "text", "ä€😀", "\0", "~#[", "x" * 70_000]),
    ("str with lone surrogates", str, ["\udcff", "caf\udce9.txt"]),
    ("bytes", bytes, [b"", b"\x00\xff", b"\xc4\x01", bytes(70_000)]),
    ("Decimal", Decimal, [Decimal(text) for text in ("1.10", "-0", "0E-7", "1E+3", "1e-999", "123456789012345678901234567890.1")]),
    ("Decimal that is no number", Decimal, [Decimal(text) for text in ("Infinity", "-Infinity", "NaN", "-NaN12", "sNaN", "sNaN7")]),
    ("Fraction", Fraction, [Fraction(1, 3), Fraction(-7), Fraction(0)]),
    ("constrained int", PositiveInt, [1]),
    ("constrained by function", conint(ge=0, multiple_of=2), [4]),
    ("constrained str", Annotated[str, StringConstraints(strip_whitespace=True, max_length=5)], ["ab", "longer than that"]),
    ("strict str", StrictStr, ["ab"]),
    ("NewType", UserId, [UserId(5)]),
    ("Literal", Literal["a", 1, True, None, b"x", Text.RED], ["a", 1, True, None, b"x", Text.RED]),
    ("int or str", int | str, [1, "1"]),
    ("int, float or bool", int | float | bool, [1, 1.0, True]),
    ("Optional", Optional[int], [None, 0]),  # noqa: UP045  as it was written before |
    ("Union", Union[Path, str, None], [Path("a"), "a", None]),  # noqa: UP007  as above
    # time
    ("naive datetime", datetime, [datetime(2024, 2, 29, 1, 2, 3, 4), datetime.min, datetime.max]),
    ("datetime with fold", datetime, [datetime(2024, 1, 1, fold=1), datetime(2024, 1, 1, tzinfo=UTC, fold=1)]),
    ("datetime in UTC", datetime, [datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]),
    ("datetime with an offset", datetime, [datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=h, minutes=m))) for h, m in ((5, 30), (-5, -30), (0, 1))]),
    ("datetime with odd offsets", datetime, [datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=s, microseconds=m))) for s, m in ((1, 0), (-1, 0), (0, 1), (0, -1), (3661, 7))]),
    ("datetime with a named offset", datetime, [datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), name), fold=f) for name in ("CET", "", "a]b[;#~") for f in (0, 1)]),
    ("datetime with ZoneInfo", datetime, [datetime(2024, 7, 1, tzinfo=BERLIN), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")), datetime(1890, 1, 1, tzinfo=TOKYO)]),
    ("datetime in a fold and a gap", datetime, [datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=f) for f in (0, 1)] + [datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN, fold=f) for f in (0, 1)]),
    ("datetime that pydantic read", datetime, [parsed(datetime, f'"2024-01-01T00:00:00{zone}"') for zone in ("Z", "+01:00", "-05:30", "")]),
    ("aware or past datetime", AwareDatetime | PastDatetime | NaiveDatetime, [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1)]),
    ("future datetime that has passed", FutureDatetime, [datetime(2024, 1, 1, tzinfo=UTC)]),
    ("date", date, [date(2024, 2, 29), date.min, date.max]),
    ("past date", PastDate, [date(2024, 2, 29)]),
    ("time", time, [time(1, 2, 3, 4), time.min, time.max, time(1, fold=1)]),
    ("aware time", time, [time(1, 2, tzinfo=UTC), time(1, fold=1, tzinfo=TOKYO), time(1, tzinfo=timezone(timedelta(microseconds=7))), parsed(time, '"01:02:03+01:00"')]),
    ("timedelta", timedelta, [timedelta(0), timedelta(days=-1, microseconds=1), timedelta.max, timedelta.min]),
    ("ZoneInfo", ZoneInfo, [BERLIN, ZoneInfo("UTC")]),
    ("timezone", Any, [UTC, timezone(timedelta(hours=1), "CET"), timezone(timedelta(microseconds=-1)), TzInfo(3600), TzInfo(-1)]),
    ("MessagePack's time stamp", Any, [Timestamp(5, 7), Timestamp(-1)]),
    # names of things
    ("UUID", UUID, [UUID(int=0), UUID(int=2**128 - 1), uuid4()]),
    ("Path", Path, [Path("a/b"), Path("/"), Path(), Path("caf\udce9")]),
    ("PurePosixPath", PurePosixPath, [PurePosixPath("a/b")]),
    ("PureWindowsPath", PureWindowsPath, [PureWindowsPath("c:\\x"), PureWindowsPath("//host/share/x")]),
    ("PurePath", PurePath, [PurePosixPath("a")]),
    ("path that was there", FilePath | DirectoryPath, [Path("/is/gone")]),
    ("path that was not there", NewPath, [Path("/")]),
    ("IP address", IPv4Address | IPv6Address, [IPv4Address("1.2.3.4"), IPv6Address("::1"), IPv6Address("fe80::1%eth0")]),
    ("IP interface", IPv4Interface | IPv6Interface, [IPv4Interface("1.2.3.4/24"), IPv6Interface("::1/64")]),
    ("IP network", IPv4Network | IPv6Network, [IPv4Network("1.2.3.0/24"), IPv6Network("::/0")]),
    ("any IP address", IPvAnyAddress, [IPv4Address("1.2.3.4")]),
    ("AnyUrl", AnyUrl, [AnyUrl("http://ü.org/ä?x=ö#f"), AnyUrl("mailto:a@b.c"), AnyUrl("http://u:p@h:81")]),
    ("HttpUrl", HttpUrl | AnyHttpUrl, [HttpUrl("https://x.org"), AnyHttpUrl("http://x.org:8080/a b")]),
    ("URL without a slash", Urls, [Urls(url="http://x.org")]),  # type: ignore[arg-type]
    ("other URLs", FileUrl | FtpUrl | WebsocketUrl | AnyWebsocketUrl, [FileUrl("file:///a"), FtpUrl("ftp://h/a"), WebsocketUrl("ws://h/"), AnyWebsocketUrl("wss://h/a")]),
    ("data source names", PostgresDsn | Any, [
        PostgresDsn("postgres://u:p@h1,h2:1/db"), MySQLDsn("mysql://u:p@h/db"), MariaDBDsn("mariadb://h/db"), RedisDsn("redis://h/1"), MongoDsn("mongodb://h"),
        AmqpDsn("amqp://h"), KafkaDsn("kafka://h"), NatsDsn("nats://h"), CockroachDsn("cockroachdb://h/db"), ClickHouseDsn("clickhouse+native://h/db"), SnowflakeDsn("snowflake://u:p@h/db"),
    ]),
    ("ByteSize", ByteSize, [ByteSize(0), ByteSize(10**20)]),
    ("Base64", Base64Bytes | Base64Str, [b"decoded", "decoded"]),
    ("SecretStr", SecretStr, [SecretStr("s3cret"), SecretStr(""), SecretStr("\udcff")]),
    ("SecretBytes", SecretBytes, [SecretBytes(b"\xff")]),
    ("Secret", Secret[date], [Secret(date(2024, 1, 1)), Secret([SecretStr("x"), {1}])]),
    ("pattern", re.Pattern[str], [re.compile("a+(?P<b>[^x])"), re.compile("a", re.IGNORECASE | re.MULTILINE | re.VERBOSE), re.compile("ä", re.ASCII)]),
    ("pattern of bytes", re.Pattern[bytes], [re.compile(b"\\xff", re.DOTALL)]),
    ("range", Any, [range(3), range(10, 0, -2), range(2**70, 2**70 + 1)]),
    ("Json", Json[list[int]], [[1, 2]]),
    ("JsonValue", JsonValue, [{"a": [1, None, {"b": "c"}]}]),
    # enums
    ("Enum", Plain, [*Plain, Plain.OTHER_NAME]),
    ("StrEnum", Text, [*Text]),
    ("str and Enum", OldText, [*OldText]),
    ("IntEnum", Level, [*Level]),
    ("date and Enum", Day, [*Day]),
    ("IntEnum or int", Level | int, [Level.LOW, 1]),
    ("StrEnum or str", Text | OldText | str, [Text.RED, OldText.RED, "red"]),
    ("Flag", Flags, [*Flags, Flags(0), Flags.AB, Flags.A | Flags.C, ~Flags.A]),
    ("IntFlag", IntFlags, [*IntFlags, IntFlags(0), IntFlags.R | IntFlags.W, IntFlags(64)]),
    ("Literal of an enum", Literal[Level.LOW], [Level.LOW]),
    # containers
    ("list", list[int], [[], [1, 2], list(range(1000))]),
    ("bare list", list, [[1, "a", None, (2,)]]),
    ("list of lists", list[list[Path]], [[[Path("a")], []]]),
    ("tuple", tuple[int, str, None], [(1, "a", None)]),
    ("tuple of any length", tuple[Decimal, ...], [(), (Decimal(1),), (Decimal(1), Decimal(2))]),
    ("empty tuple", tuple[()], [()]),
    ("set", set[int | str], [set(), {1, "1", 2}, set(range(1000))]),
    ("frozenset", frozenset[tuple[int, ...]], [frozenset(), frozenset({(1,), ()})]),
    ("set of sets", set[frozenset[int]], [{frozenset({1}), frozenset()}]),
    ("set of everything", set[Text | Level | Any], [{1, None, "x", b"x", 2.5, (1, "x"), Text.RED, Level.HIGH, date(2024, 1, 1), Path("a"), UUID(int=1), Decimal("1.5")}]),
    ("dict", dict[str, int], [{}, {"b": 1, "a": 2}]),
    ("dict with int keys", dict[int, str], [{3: "c", 1: "a", 2**70: "big"}]),
    ("dict with tuple keys", dict[tuple[int, str], Nested], [{(1, "a"): Nested(name="n")}]),
    ("dict with enum keys", dict[Text | Level | Flags, int], [{Text.RED: 1, Level.LOW: 2, Flags.A | Flags.C: 3}]),
    ("dict with other keys", dict[Any, int], [{None: 1, b"k": 2, 2.5: 3, True: 4, frozenset({1}): 5, Path("p"): 6, date(2024, 1, 1): 7, UUID(int=1): 8}]),
    ("dict with objects as keys", dict[Frozen | FrozenData | Point, int], [{Frozen(tag="a"): 1, FrozenData(1): 2, Point(1): 3}]),
    ("abstract collections", Sequence[int] | Mapping[str, int] | AbstractSet[int] | Iterable[int], [[1], (1,), {"a": 1}, {1}]),
    ("deque", deque[int], [deque(), deque([1, 2])]),
    ("deque with maxlen", deque[tuple[int, int]], [deque([(1, 2)], maxlen=4), deque(maxlen=0)]),
    ("defaultdict", defaultdict[str, list[int]], [defaultdict(list, {"a": [1]}), defaultdict(None, {"a": [1]})]),
    ("defaultdict of library types", dict[str, Any], [defaultdict(kind) for kind in (int, set, Counter, deque, OrderedDict, Decimal)]),
    ("defaultdict of a model", dict[str, Nested], [defaultdict(Nested, {"a": Nested(name="x")})]),
    ("defaultdict of a dataclass", dict[str, Data], [defaultdict(Data, {"a": Data(1)})]),
    ("Counter", Counter[str], [Counter("abca"), Counter({"a": -1}), Counter()]),
    ("OrderedDict", OrderedDict[str, int], [OrderedDict([("b", 1), ("a", 2)]), OrderedDict()]),
    ("NamedTuple", Point, [Point(1), Point(1, 2.5)]),
    ("namedtuple", OldPoint, [OldPoint(1, "y")]),
    ("generic NamedTuple", Generic2D[int], [Generic2D(1)]),
    ("TypedDict", Row, [{"point": Point(1)}, {"point": Point(1), "more": Nested()}]),
    ("TypedDict, not total", Rows, [{}, {"row": {"point": Point(2)}}]),
    ("recursive alias", Tags, [["a"], {"x": ["b"], "y": {"z": []}}]),
    ("generic alias", Listed[Nested], [[Nested()]]),
    ("class", type[Base | Derived], [Base, Derived]),
    ("class of a library", Any, [int, Decimal, Counter, dict]),
    ("nested containers", dict[str, list[tuple[set[int], deque[Path]]]], [{"a": [({1}, deque([Path("x")], maxlen=2))]}]),
    # models
    ("model", Nested, [Nested(), Nested(name="a", at=datetime(2024, 1, 1, tzinfo=UTC))]),
    ("model or None", Nested | None, [None, Nested()]),
    ("list of models", list[Nested], [[Nested(), Nested(name="b")]]),
    ("base class", Base | Derived, [Base(), Derived(), Derived(n=2, more=["x"])]),
    ("union of one shape", list[Sibling | Derived], [[Sibling(), Derived()]]),
    ("discriminated union", list[Pet], [[Cat(), Dog(lives=3)]]),
    ("union discriminated by function", CalledPet, [Cat(), Dog()]),
    ("generic model", Box[int] | Box[Nested], [Box[int](item=1), Box[Nested](item=Nested())]),
    ("generic of a generic", Pair[Box[int]], [Pair[Box[int]](item=Box[int](item=1), other=Box[int](item=2))]),
    ("bare generic model", Box, [Box(item=(1,))]),
    ("recursive model", Tree, [Tree(), Tree(left=Tree(value=1), children=[Tree(children=[Tree()])])]),
    ("RootModel", Names | ByName, [Names(["a"]), ByName({"x": Nested()})]),
    ("frozen model", Frozen, [Frozen(tag="a", parts=frozenset({1}))]),
    ("model with extra fields", Open, [Open(), Open(alpha=2, z=(1,), y={2})]),  # type: ignore[call-arg]
    ("model with typed extra fields", TypedOpen, [TypedOpen(x=Nested())]),  # type: ignore[call-arg]
    ("model with private attributes", Private, [Private(), hiding(5)]),
    ("model with aliases", Aliased, [Aliased(), Aliased(First=3, s=4, hidden="x")]),  # type: ignore[call-arg]
    ("model with computed fields", Computed, [Computed(), touched(Computed(width=3), "perimeter", "volume")]),
    ("model with validators", Doubling, [Doubling(n=3), Doubling(n=1, total=5)]),
    ("model with its own equality", OwnEquality, [OwnEquality(n=13)]),
    ("model with its own constructor", OwnInit, [OwnInit(3)]),
    ("model that checks assignments", Assigned, [Assigned(n=1, inner=Doubling(n=1))]),
    ("model of unvalidated values", Nested, [Nested.model_construct(name=5, at="never")]),
    ("unset fields", Nested, [Nested.model_construct(), Nested.model_construct({"at"}, name="x", at=None)]),
    ("dataclass", Data, [Data(), Data(1, [Fraction(1, 2)])]),
    ("frozen dataclass with slots", FrozenData, [FrozenData(1), FrozenData(2, Decimal("0.10"))]),
    ("derived dataclass", Data | DerivedData, [DerivedData(1, [], Nested()), Data()]),
    ("dataclass with made fields", Made, [Made([1, 2], 3), touched(Made([1]), "half")]),
    ("generic dataclass", GenericData[int], [GenericData(1)]),
    ("pydantic's dataclass", Checked, [Checked(date(2024, 1, 1), 5)]),
    ("pydantic's frozen dataclass", FrozenChecked, [FrozenChecked(Path("a"))]),
]  # fmt: skip


# ── what is refused ──


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


class OwnText(str):
    __slots__ = ()


class Slotted(BaseModel):
    __slots__ = ("_beside",)
    n: int = 0


class SubPoint(Point):
    pass


@dataclass
class Trouble(Exception):
    code: int = 0


@dataclass
class Listing(list):  # type: ignore[type-arg]
    name: str = ""


def with_attribute(value: Any, name: str) -> Any:
    """Give an object an attribute behind its class's back."""
    object.__setattr__(value, name, 1)
    return value


def without_field(value: Any, name: str) -> Any:
    """Take a field away."""
    object.__delattr__(value, name)
    return value


def cycle() -> list[Any]:
    """Make a list that contains itself."""
    loop: list[Any] = [1]
    loop.append({"again": loop})
    return loop


def deep() -> list[Any]:
    """Make a list in a list, and so on."""
    value: list[Any] = []
    for _ in range(5_000):
        value = [value]
    return value


REFUSED: Final[list[tuple[str, Any, Any, str, str]]] = [
    # name, declared type, value, the path below the field, what the message says
    ("bytearray", Any, [bytearray(b"x")], ".0", r"convert it with bytes\("),
    ("memoryview", Any, {"a": memoryview(b"x")}, ".a", r"convert it with bytes\("),
    ("function", Any, [print], ".0", "make it in the handler"),
    ("lambda in a model", Box[Any], Box[Any](item=[lambda: 1]), ".item.0", "make it in the handler"),
    ("open file, lock, thread", Any, {"x": (object(),)}, ".x.0", "make it in the handler"),
    ("slice", Any, slice(1, 2), "", "store what it is made from"),
    ("Ellipsis", Any, [...], ".0", "store what it is made from"),
    ("exception", Any, [ValueError("x")], ".0", "store what it is made from"),
    ("subclass of str", Any, {"a": OwnText("x")}, ".a", r"subclass of str.* convert it with str\("),
    ("subclass of dict", Any, type("D", (dict,), {})(), "", r"subclass of dict.* convert it with dict\("),
    ("another time zone", datetime, datetime(2024, 1, 1, tzinfo=Zone()), "", "use zoneinfo.ZoneInfo"),
    ("defaultdict of a lambda", Any, [defaultdict(lambda: 1)], ".0", "use list, int or a class"),
    ("defaultdict of an undeclared class", Any, defaultdict(Undeclared), ".default_factory", "not among the declared types"),
    ("undeclared class", Any, {"x": [Undeclared()]}, ".x.0", "name Undeclared in its field's annotation"),
    ("undeclared subclass", list[Base], [Base(), Derived()], ".1", "name Derived in its field's annotation"),
    ("undeclared enum", Any, {Level.LOW: 1}, ".key <Level.LOW: 1>", "name Level in its field's annotation"),
    ("undeclared class itself", Any, [Undeclared], ".0", "not among the declared types"),
    ("cycle", Any, cycle(), ".1.again", "contains itself"),
    ("too deep", Any, deep(), "", "nested too deeply"),
    ("too many parts", Any, [[] for _ in range(500_001)], "", "keep bulk data in a file"),
    ("MessagePack's extension beside bytes", Any, [ExtType(64, b"\2"), b"x"], ".0", "MessagePack's own"),
    ("Fraction of endless digits", Any, [Fraction(1, 10**5000)], ".0", "reading it raised ValueError"),
    ("field that was deleted", list[Nested], [without_field(Nested(), "name")], ".0", "'name' was never set"),
    ("field that was never set", Made, without_field(Made([]), "total"), "", "'total' was never set"),
    ("attribute beside the fields", Data, with_attribute(Data(), "more"), "", "'more' is no field of Data"),
    ("attribute beside a model's fields", Frozen, with_attribute(Frozen(tag=""), "more"), "", "'more' is no field of Frozen"),
    ("attribute in a slot", Slotted, with_attribute(Slotted(), "_beside"), "", "'_beside' is no field of Slotted"),
    ("attribute of a named tuple", SubPoint, with_attribute(SubPoint(1), "more"), "", "more are no fields of SubPoint"),
    ("dataclass that is an exception", Trouble, Trouble(1), "", "derives from .*Exception"),
    ("dataclass that is a list", Listing, Listing("x"), "", "derives from list"),
    ("private attribute that can't be kept", list[Private], [hiding(print)], ".0._seen.0", "make it in the handler"),
]  # fmt: skip


# ── equal, and of the same type at every level ──


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal and of the same type at every level, in all that could be told apart."""
    kind = type(left)
    if kind is not type(right):
        return False
    if kind is float:
        return bool(left.hex() == right.hex())
    if kind is complex:
        return same((left.real, left.imag), (right.real, right.imag))
    if kind is Decimal:
        return bool(left.as_tuple() == right.as_tuple())
    if isinstance(left, (enum.Enum, type)):
        return bool(left is right)
    if isinstance(left, (datetime, time)):
        return same_by(left, right, lambda one: (one.isoformat(), one.fold, repr(one.tzinfo), type(one.tzinfo)))
    if isinstance(left, (SecretStr, SecretBytes, Secret)):
        return same(left.get_secret_value(), right.get_secret_value())
    if isinstance(left, BaseModel):
        return same_by(left, right, parts_of_model) and left.model_fields_set == right.model_fields_set
    if dataclasses.is_dataclass(left):
        return same_by(left, right, lambda one: [getattr(one, field.name) for field in dataclasses.fields(one)])
    if isinstance(left, dict):
        return same_by(left, right, lambda one: [getattr(one, "default_factory", None), *one.keys(), *one.values()])
    if isinstance(left, (set, frozenset)):
        other = {member: member for member in right}
        return len(left) == len(right) and all(one in other and same(one, other[one]) for one in left)
    if isinstance(left, (list, tuple, deque)):
        alike = len(left) == len(right) and getattr(left, "maxlen", None) == getattr(right, "maxlen", None)
        return alike and all(map(same, left, right))
    return bool(left == right) and repr(left) == repr(right)


def same_by(left: Any, right: Any, parts: Callable[[Any], Any]) -> bool:
    """Compare by parts."""
    return same(parts(left), parts(right))


def parts_of_model(model: BaseModel) -> list[Any]:
    """Take a model apart: fields as stored, extra fields, private attributes."""
    fields = {name: model.__dict__[name] for name in type(model).model_fields if name in model.__dict__}
    return [fields, model.__pydantic_extra__, model.__pydantic_private__]


# ── a job that holds a kind ──

JOB_ID = "0190a1b2-0000-7000-8000-000000000001"

ALL_CHANGED: Final = b"\xc4\x04gone"
"""What stands beside a state all of whose classes have changed since: the shape of none that there is."""


class Beside(BaseModel):
    n: int = 0


class Newer(BaseModel):
    n: int | None = None
    more: str = ""


Newer.__name__ = Newer.__qualname__ = "Beside"  # the same class, a release later


def holding(hint: Any, beside: Any = Beside) -> JobType:
    """Make a job whose state is a field of a type, one that may hold anything, and one of a class of its own."""

    async def run(self: Any, ctx: Any) -> None: ...

    body = {
        "__annotations__": {"field": hint, "anything": Any, "beside": beside | None},
        "field": state(None),
        "anything": state(None),
        "beside": state(None),
        "run": run,
        "model_config": {"arbitrary_types_allowed": True},
        "__module__": __name__,
    }
    return JobType(name="holds", cls=type("Holds", (Job,), body))


def through(kind: JobType, later: JobType, shapes: bytes | None = None, *, field: Any, anything: Any = None) -> Any:
    """Save a state and restore it, as an attempt and the next one do; see on the way that its bytes are stable."""
    job: Any = kind.cls()
    job.field, job.anything = field, anything
    sealed = kind.seal_state(job, JOB_ID)
    stored = unseal(sealed)
    again: Any = later.restore(kind.pack_params(job), stored.state, shapes=shapes or stored.shapes)
    assert later.pack_state(again) == stored.state
    json.dumps(decode_plain(stored.state), allow_nan=False)
    return again
