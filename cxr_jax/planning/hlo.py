"""A compiled program's text as instructions, and how often each of them runs.

In: what `compiled.as_text()` gives. Out: a `Program`. Only what plans ask for is read: names, result types, operands,
computations called, and the trip counts that the compiler found for loops.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128, "bf16": 16}
HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?=\().*\{$")
NAME = re.compile(r"^\s*(?P<root>ROOT )?%(?P<name>[\w.\-]+) = ")
ARRAY = re.compile(r"(?P<type>[a-z]\w*)\[(?P<dims>[\d,<=]*)\](?P<layout>\{[^{}]*\})?")
OPERAND = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
FAST_MEMORY = re.compile(r"S\([1-9]\d*\)")
# Opcodes whose computations run as often as they themselves do; those of `reduce` and the like are arithmetic.
RUNS = ("call", "conditional", "fusion", "async-start", "while")


@dataclass(frozen=True)
class ArrayType:
    """One array of a result type; `fast` if it lives in the chip's own memory rather than in HBM."""

    dtype: str
    shape: tuple[int, ...]
    fast: bool

    @property
    def bytes(self) -> int:
        return -(-prod(self.shape) * item_bits(self.dtype) // 8)


def item_bits(dtype: str) -> int:
    """Bits of one element of a type as HLO calls it."""
    if dtype in ITEM_BITS:
        return ITEM_BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 0


@dataclass(frozen=True)
class Instruction:
    """One instruction; `rest` is what follows the operands."""

    name: str
    type_text: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @cached_property
    def arrays(self) -> tuple[ArrayType, ...]:
        """The arrays of the result, a tuple's in order."""
        return tuple(
            ArrayType(
                match["type"],
                tuple(int(n.lstrip("<=")) for n in match["dims"].split(",") if n),
                bool(FAST_MEMORY.search(match["layout"] or "")),
            )
            for match in ARRAY.finditer(self.type_text)
        )

    @property
    def called(self) -> list[str]:
        """Computations that this instruction names."""
        named = CALLED.findall(self.rest)
        for group in BRANCHES.findall(self.rest):
            named += [name.strip().lstrip("%") for name in group.split(",")]
        return named


@dataclass
class Computation:
    """Instructions in order, and by name."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(i.rest.split(")")[0]): i for i in self.instructions if i.opcode == "parameter"}

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions if i.root)


@dataclass
class Program:
    """Computations by name. `entry` is where it starts."""

    computations: dict[str, Computation]
    entry: str

    def runs(self, into_fusions: bool) -> Iterator[tuple[Instruction, Computation, str, int]]:
        """Every instruction with its computation, the one that this is fused into, and how often one step runs it.

        Of a `conditional` all branches count. A loop whose trip count cannot be told counts once. Without
        `into_fusions` a fusion is one instruction.
        """
        yield from self._runs(self.computations[self.entry], self.entry, 1, into_fusions)

    def _runs(self, computation, where, times, into_fusions):
        for instruction in computation.instructions:
            yield instruction, computation, where, times
            opcode = instruction.opcode
            if opcode not in RUNS or (opcode == "fusion" and not into_fusions):
                continue
            inner = times * self.trips(instruction) if opcode == "while" else times
            for name in instruction.called:
                yield from self._runs(
                    self.computations[name], where if opcode == "fusion" else name, inner, into_fusions
                )

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs: as the compiler notes it, or by its condition `i < n`, counting from 0."""
        known = TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
        limits = [i for i in condition.instructions if i.opcode == "constant" and i.rest.split(")")[0].isdigit()]
        less = [i for i in condition.instructions if i.opcode == "compare" and "direction=LT" in i.rest]
        return int(limits[0].rest.split(")")[0]) if len(limits) == len(less) == 1 else 1


def parse(text: str) -> Program:
    """The program of an HLO text."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if current is None:
            header = HEADER.match(line)
            if header:
                current = Computation(header["name"])
                computations[current.name] = current
                entry = current.name if header["entry"] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current.instructions.append(instruction)
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    head = NAME.match(line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode, _, _ = line[end:].lstrip().partition("(")
    first = line.index("(", end)
    last = _closing(line, first)
    inside, rest = line[first + 1 : last], line[last + 1 :]
    if opcode.strip() in ("parameter", "constant"):
        rest = f"{inside}){rest}"
    return Instruction(
        head["name"], line[start:end], opcode.strip(), tuple(OPERAND.findall(inside)), rest, bool(head["root"])
    )


def _closing(line: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", line[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError(f"unbalanced parentheses in {line[:80]!r}")
