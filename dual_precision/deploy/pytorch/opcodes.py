"""What a file of PyTorch says about its tensors, read without running anything.

A pickle is a program for a small stack machine, and one that may name any function of any module.
This machine knows the words that a state dict is written with, and no others: tables, lists,
tuples, texts, numbers, and the few names that stand for tensors. Nothing is imported and nothing
is called; what comes out is plain values and records.
"""

import dataclasses
import pickletools
import reprlib
from collections.abc import Callable
from typing import Any, BinaryIO

MOST_OPERATIONS = 5_000_000  # a state dict takes some 40 for each of its tensors
_MOST_AXES = 8

_Record = Any  # None, bool, int, float, str, bytes, tuple, list, dict, Stored, View or Name


@dataclasses.dataclass(frozen=True)
class Stored:
    """Numbers in the file: `count` of them, of a kind such as "FloatStorage", under `key`."""

    kind: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: the numbers of `stored` from `offset` on, in this shape with these strides."""

    stored: Stored
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of PyTorch or Python, which nobody looks up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


BFLOAT = "bfloat16"
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT,  # of which NumPy has no dtype
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_TABLE = Name("collections", "OrderedDict")
_TENSOR = {Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor")}
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_KNOWN = {_TABLE, *_TENSOR, _PARAMETER, *(Name("torch", kind) for kind in STORAGES)}


class ForeignFile(ValueError):
    """A file holds something else than tensors, or is damaged; the message says what."""


def shown(value: _Record) -> str:
    """A value for an error. A tuple may hold another one twice, and that a third one twice: what it
    would print grows as 2^depth, so that only the outermost levels are looked at."""
    text = str(value) if isinstance(value, Name) else _SHORT.repr(value)
    return text[:100]


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


def read_foreign(file: BinaryIO, said: dict[str, Stored] | None = None) -> _Record:
    """The value that the pickle at the place of `file` describes.

    Args:
      said: takes in, by its key, every storage that the pickle speaks of.

    Raises:
      ForeignFile: it names anything else than a tensor, or is damaged.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_OPERATIONS:
                raise ForeignFile(f"over {MOST_OPERATIONS} operations: expected a state dict")
            if opcode.name == "STOP":
                if said is not None:
                    said |= machine.said
                return machine.result()
            machine.do(opcode.name, argument)
    except ForeignFile:
        raise
    except Exception as error:  # whatever bytes that are no pickle lead to
        raise ForeignFile(f"no sound pickle ({type(error).__name__}: {error})") from None
    raise ForeignFile("a pickle that does not end: the file is cut off")


_CONSTANTS: dict[str, Callable[[], _Record]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"}
_VALUES = {*_NUMBERS, *_TEXTS, "BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = ("PROTO", "FRAME")


class _Machine:
    """The stack, the memo, and what each word does with them."""

    def __init__(self) -> None:
        self.stack: list[_Record] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Record] = {}
        self.said: dict[str, Stored] = {}

    def result(self) -> _Record:
        if len(self.stack) != 1:
            raise ForeignFile(f"a pickle that leaves {len(self.stack)} values: expected one")
        return self.stack[0]

    def do(self, word: str, argument: Any) -> None:
        if word in _VALUES:
            self.stack.append(argument)
        elif word in _CONSTANTS:
            self.stack.append(_CONSTANTS[word]())
        elif word in _TUPLES:
            self.stack.append(tuple(self.pop(_TUPLES[word])))
        elif word in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif word in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif word not in _IGNORED:
            action = getattr(self, f"_{word.lower()}", None)
            if action is None:
                raise ForeignFile(f"the word {word}, which no state dict needs")
            action(argument)

    def pop(self, count: int) -> list[_Record]:
        """The `count` values on top."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ForeignFile("a pickle that takes more values than it has")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_to_mark(self) -> list[_Record]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def _append(self, _: Any) -> None:
        (value,) = self.pop(1)
        _checked(self.stack[-1], list).append(value)

    def _appends(self, _: Any) -> None:
        values = self.pop_to_mark()
        _checked(self.stack[-1], list).extend(values)

    def _setitem(self, _: Any) -> None:
        self._set(self.pop(2))

    def _setitems(self, _: Any) -> None:
        self._set(self.pop_to_mark())

    def _set(self, flat: list[_Record]) -> None:
        table = _checked(self.stack[-1], dict)
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            table[_checked(key, (str, int))] = value

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        module, name = self.pop(2)
        self._name(_checked(module, str), _checked(name, str))

    def _name(self, module: str, name: str) -> None:
        found = Name(module, name)
        if found not in _KNOWN:
            raise ForeignFile(
                f"it needs {str(found)[:200]!r}, which is no tensor: save the tensors alone,"
                " torch.save(model.state_dict(), path)"
            )
        self.stack.append(found)

    def _reduce(self, _: Any) -> None:
        name, arguments = self.pop(2)
        self.stack.append(_made(name, _checked(arguments, tuple)))

    def _build(self, _: Any) -> None:
        """What is set on an object: of a table of tensors, its `_metadata`, which are versions."""
        self.pop(1)
        _checked(self.stack[-1], dict)

    def _binpersid(self, _: Any) -> None:
        (about,) = self.pop(1)
        what, kind, key, _place, count, *more = _checked(about, tuple)
        if what != "storage" or any(part is not None for part in more):
            raise ForeignFile(f"a reference to {shown(about)}: expected a storage")
        kind = _checked(kind, Name)
        if kind.module != "torch" or kind.name not in STORAGES:
            raise ForeignFile(f"a storage of {kind}: expected one of {[*STORAGES]}")
        stored = Stored(kind.name, _checked(key, str), _count(count))
        if self.said.setdefault(stored.key, stored) != stored:
            raise ForeignFile(f"two storages under the key {stored.key[:50]!r}")
        self.stack.append(stored)


def _made(called: _Record, arguments: tuple[_Record, ...]) -> _Record:
    """What a known function would give for these arguments."""
    name = _checked(called, Name)  # of a tuple no hash either, which grows as `shown` says
    if name == _TABLE and arguments in ((), ([],)):
        return {}
    if name == _PARAMETER:
        return _checked(arguments[0], View)
    if name in _TENSOR:
        stored, offset, shape, strides = arguments[:4]
        for axes in (shape, strides):  # many tensors may name one long tuple
            if len(_checked(axes, tuple)) > _MOST_AXES:
                raise ForeignFile(f"a tensor of {len(axes)} axes: expected at most {_MOST_AXES}")
        return View(
            _checked(stored, Stored),
            _count(offset),
            tuple(map(_count, shape)),
            tuple(map(_count, strides)),
        )
    raise ForeignFile(f"a call of {shown(name)!r}, which makes no tensor")


def _checked(value: _Record, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ForeignFile(f"{shown(value)} in a place where a state dict has none of it")
    return value


def _count(value: _Record) -> int:
    number: int = _checked(value, int)
    if not 0 <= number < 2**48:
        raise ForeignFile(f"a size of {number}: expected 0 to 2^48")
    return number
