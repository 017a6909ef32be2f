"""Bytes that a compiled program reads from and writes to a device's memory in one step.

In: a `Program`. Out: bytes. Each instruction reads its operands and writes its result; a fusion is one instruction, of
which the inside costs nothing. Where a fusion takes a slice of an operand (a layer of a stack) the slice counts, and
where it puts one into its result likewise. Arrays that the compiler keeps in the chip's own memory cost nothing.
"""

from cxr_jax.planning.hlo import Computation, Instruction, Program

# No memory is touched by these, or what they touch is counted at what they start or contain.
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "call", "conditional", "opt-barrier", "domain", "iota"),
)
SLICES = ("dynamic-slice", "slice", "gather")
# What a fusion hands on: a gather that goes on beside it, and the buffers of that.
THROUGH = ("tuple", "all-gather", "custom-call")
VIEWS = ("bitcast", "copy", "convert", "reshape", "transpose")


def memory_traffic(program: Program) -> int:
    """Bytes moved between HBM and the chip in one step, loops by their trip counts."""
    total = 0
    for instruction, computation, _, times in program.runs(into_fusions=False):
        if instruction.opcode not in FREE and not instruction.opcode.endswith(("-done", "-update")):
            total += times * _bytes(instruction, computation, program)
    return total


def _hbm(arrays) -> int:
    return sum(array.bytes for array in arrays if not array.fast)


def _bytes(instruction: Instruction, computation: Computation, program: Program) -> int:
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if instruction.opcode in SLICES:
        return 2 * _hbm(instruction.arrays)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _hbm(operands[1].arrays)
    if instruction.opcode == "copy-start":
        return _hbm(instruction.arrays[:1]) + _hbm(operands[0].arrays)
    if instruction.opcode != "fusion":
        return _hbm(instruction.arrays) + sum(_hbm(operand.arrays) for operand in operands)
    inner = program.computations[instruction.called[0]]
    read = sum(min(_hbm(op.arrays), read_of(inner, i, program)) for i, op in enumerate(operands))
    return read + min(_hbm(instruction.arrays), _written(inner))


def read_of(computation: Computation, number: int, program: Program) -> int:
    """Bytes that a fused computation reads of its parameter `number`."""
    parameter = computation.parameters[number]
    total = 0
    for user in computation.instructions:
        if parameter.name not in user.operands:
            continue
        at = user.operands.index(parameter.name)
        if user.opcode in SLICES and at == 0:
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode in THROUGH or (user.opcode == "dynamic-update-slice" and at == 0):
            continue  # written in place, or on its way elsewhere
        elif user.opcode == "fusion":
            total += read_of(program.computations[user.called[0]], at, program)
        else:
            return sum(array.bytes for array in parameter.arrays)
    return total


def _written(computation: Computation) -> int:
    """Bytes that a fused computation writes: of a result that is updated in place, the update."""
    root = computation.root
    results = [computation.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result in results:
        while result.opcode in VIEWS and result.operands[0] in computation.by_name:
            result = computation.by_name[result.operands[0]]
        if result.opcode == "parameter" or result.opcode in THROUGH:
            continue
        if result.opcode == "dynamic-update-slice":
            result = computation.by_name[result.operands[1]]
        total += sum(array.bytes for array in result.arrays)
    return total
