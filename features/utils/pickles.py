"""How much a pickle makes out of its bytes, counted without making any of it.

A pickle may fetch what it has made before, any number of times: "a pair of the last pair and
itself", said forty times over, is a few hundred bytes. It takes no room, since both halves are one
thing, but who hashes it, as a key of a dictionary, or prints it walks through all 2^40.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any

__all__ = ["require_plain_pickle"]

_KEEP = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_FETCH = {"GET", "BINGET", "LONG_BINGET"}
_ADD = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
_MOST_FETCHED = 100
"""Steps fetched for each byte: 2 in a checkpoint with all weights twice and its optimiser."""
_SURELY_FINE = 1_000_000


@dataclass(eq=False, slots=True)
class _Thing:
    size: int
    """Steps and letters that made it, with those of all it holds, each time it is held."""
    fetched: bool = False


_SMALL = _Thing(1)
"""Stands for every number and None: a hostile pickle may be full of them."""


@dataclass(eq=False, slots=True)
class _Stack:
    """What the reader of a pickle has in hand, with sizes in place of things."""

    things: list[_Thing] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def apply(self, code: pickletools.OpcodeInfo, argument: object) -> None:
        """Do what an opcode does."""
        if code.name == "MARK":
            self.marks.append(len(self.things))
            return
        taken = self._take(code.stack_before)
        size = sum(thing.size for thing in taken)
        if code.name in _ADD:
            self._add(size - taken[0].size, to=taken[0])
        elif code.stack_after:
            size += len(argument) if isinstance(argument, str | bytes) else 0
            is_small = not size and not code.name.startswith("EMPTY_")
            self.things.append(_SMALL if is_small else _Thing(1 + size))

    def _take(self, kinds: list[pickletools.StackObject]) -> list[_Thing]:
        """Take one thing of each kind off, or all from the last mark on and what lies below it."""
        n_below, end = len(kinds), len(self.things)
        if pickletools.markobject in kinds:
            n_below, end = kinds.index(pickletools.markobject), self.marks.pop()
        if n_below > end:
            message = "it takes more from its stack than lies there"
            raise ValueError(message)
        taken = self.things[end - n_below :]
        del self.things[end - n_below :]
        return taken

    def _add(self, size: int, *, to: _Thing) -> None:
        if to.fetched:  # what fetched it would hold more than was counted
            message = "something in it grows after it was fetched, which no tensor needs"
            raise ValueError(message)
        to.size += 1 + size
        self.things.append(to)


def require_plain_pickle(file: IO[bytes]) -> None:
    """Refuse a pickle that makes much out of few bytes; the file then stands behind the pickle.

    Refused is what neither tensors nor settings need: things that hold themselves, and things
    fetched so often that to walk through them would take much longer than the pickle is.

    Parameters
    ----------
    file
        Stands where the pickle begins.

    Raises
    ------
    ValueError
        If it is such a pickle.
    Exception
        Of any kind, if it is damaged.
    """
    stack, kept, n_fetched = _Stack(), dict[Any, _Thing](), 0
    for code, argument, place in pickletools.genops(file):
        if code.name in _KEEP:
            kept[len(kept) if argument is None else argument] = stack.things[-1]
        elif code.name in _FETCH:
            if (thing := kept.get(argument)) is None:
                message = "it fetches what it never kept"
                raise ValueError(message)
            thing.fetched = True
            stack.things.append(thing)
            n_fetched += thing.size
            if n_fetched > _SURELY_FINE + _MOST_FETCHED * (place or 0):
                message = "it holds the same things again and again, which no tensor needs"
                raise ValueError(message)
        else:
            stack.apply(code, argument)
