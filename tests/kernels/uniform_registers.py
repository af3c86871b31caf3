"""What a compiled kernel hands to its matrix units: does every shared memory descriptor come from the block's shared memory?

ptxas 12.8 miscompiles some loops: it computes a descriptor from a uniform register that nothing has written on the way there,
or that holds something else. The matrix unit then reads wherever that points. Machine code shows it without a GPU: this module
follows the uniform registers (UR) along all paths of `cuobjdump -sass` text.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

UNWRITTEN, OTHER, SHARED = 0, 1, 2
"""What a register holds: nothing that was written; something; an address that was formed from the block's shared memory."""

State = dict[int, int]
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[\dT]+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
UNIFORM = re.compile(r"\bUR(\d+)\b")


@dataclass(frozen=True)
class Instruction:
    """One line: address, whether a predicate guards it, operation and operands."""

    address: int
    guarded: bool
    operation: str
    operands: str


@dataclass(frozen=True)
class StrayDescriptor:
    """A matrix instruction whose descriptor is not formed from shared memory on some path."""

    address: int
    operands: str
    register: int


def parse(listing: str) -> list[Instruction]:
    """The instructions of one function, in order of addresses."""
    found = (Instruction(int(m[1], 16), m[2] is not None, m[3], m[4].strip()) for m in INSTRUCTION.finditer(listing))
    return list(found)


def stray_descriptors(listing: str) -> list[StrayDescriptor]:
    """Matrix instructions (HGMMA) that take a descriptor which does not come from shared memory on every path."""
    program = parse(listing)
    place = {instruction.address: index for index, instruction in enumerate(program)}
    entry: dict[int, State] = {0: {}}
    waiting = deque([0])
    while waiting:
        start = waiting.popleft()
        state, index = dict(entry[start]), start
        while index < len(program):
            instruction = program[index]
            _advance(instruction, state)
            target = _target(instruction)
            falls_through = instruction.guarded or instruction.operation.split(".")[0] not in {"BRA", "EXIT", "RET"}
            if target is not None and target in place:
                _join(entry, waiting, place[target], state)
            if not falls_through:
                break
            index += 1
            if index in entry or target is not None:
                _join(entry, waiting, index, state)
                break
    return [stray for start in sorted(entry) for stray in _strays(program, start, entry)]


def _strays(program: list[Instruction], start: int, entry: dict[int, State]) -> list[StrayDescriptor]:
    state, found = dict(entry[start]), []
    for index in range(start, len(program)):
        if index != start and index in entry:
            break
        instruction = program[index]
        for register in _descriptors(instruction):
            if state.get(register, UNWRITTEN) != SHARED:
                found.append(StrayDescriptor(instruction.address, instruction.operands, register))
        _advance(instruction, state)
        if _target(instruction) is not None and not instruction.guarded:
            break
    return found


def _join(entry: dict[int, State], waiting: deque[int], index: int, state: State) -> None:
    if index >= 0 and index not in entry:
        entry[index] = dict(state)
        waiting.append(index)
        return
    before = entry[index]
    after = {register: min(held, state.get(register, UNWRITTEN)) for register, held in before.items()}
    if after != before:
        entry[index] = after
        waiting.append(index)


def _target(instruction: Instruction) -> int | None:
    if instruction.operation.split(".")[0] != "BRA":
        return None
    found = re.search(r"0x([0-9a-f]+)", instruction.operands)
    return int(found[1], 16) if found else None


def _descriptors(instruction: Instruction) -> list[int]:
    """The low words of the descriptors: of the second operand, and of the first unless it comes from registers."""
    if not instruction.operation.startswith("HGMMA"):
        return []
    first = int(re.search(r"gdesc\[UR(\d+)\]", instruction.operands)[1])
    from_registers = re.match(r"R\d+, R\d+", instruction.operands) is not None
    return [first + 2] if from_registers else [first, first + 2]


def _advance(instruction: Instruction, state: State) -> None:
    """What the uniform registers hold after the instruction."""
    writes = instruction.operation.startswith(("U", "R2UR", "S2UR", "VOTEU", "CS2UR"))
    target = re.match(r"UR(\d+)", instruction.operands)
    if not writes or target is None:
        return
    sources = [int(number) for number in UNIFORM.findall(instruction.operands[target.end() :])]
    pair = ".64" in instruction.operation or ".WIDE" in instruction.operation
    if instruction.operation.startswith("UIADD3.64"):
        sources += [source + 1 for source in sources]
    if instruction.operation.startswith("R2UR") or "SR_CgaCtaId" in instruction.operands:
        held = SHARED  # a vector register is not followed: what comes from one is taken as right
    elif any(state.get(source, UNWRITTEN) == UNWRITTEN for source in sources):
        held = UNWRITTEN
    else:
        held = max((state[source] for source in sources), default=OTHER)
    first = int(target[1])
    for register in (first, first + 1) if pair else (first,):
        state[register] = min(held, state.get(register, UNWRITTEN)) if instruction.guarded else held
