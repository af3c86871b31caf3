"""Following uniform registers through machine code: what is right passes, what is planted shows."""

from __future__ import annotations

from tests.kernels.uniform_registers import parse, stray_descriptors

BASE = ("S2UR UR5, SR_CgaCtaId", "UMOV UR4, 0x400", "ULEA UR6, UR5, UR4, 0x18", "USHF.R.U32.HI UR6, URZ, 0x4, UR6")
PRODUCT = "HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR8].tnspB, R24"


def listing(*instructions: str) -> str:
    """As cuobjdump prints it: 16 bytes an instruction."""
    return "\n".join(f"        /*{16 * place:04x}*/  {text} ;   /* 0x0 */" for place, text in enumerate(instructions))


def test_a_descriptor_formed_from_the_base() -> None:
    assert not stray_descriptors(listing(*BASE, "UMOV UR10, UR6", "UMOV UR11, 0x80000020", PRODUCT, "EXIT"))
    assert not stray_descriptors(listing(*BASE, "UIADD3 UR10, UP0, UR6, 0x40, URZ", PRODUCT, "EXIT"))


def test_an_unwritten_register_and_a_constant_are_stray() -> None:
    (stray,) = stray_descriptors(listing(*BASE, "UIADD3 UR10, UP0, UR12, 0x40, URZ", PRODUCT, "EXIT"))
    assert (stray.address, stray.register) == (0x50, 10)
    assert stray_descriptors(listing(*BASE, "UMOV UR10, 0x652b82fe", PRODUCT, "EXIT"))


def test_both_descriptors_count_where_both_operands_are_in_memory() -> None:
    product = "HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], R24"
    assert [stray.register for stray in stray_descriptors(listing(*BASE, "UMOV UR10, UR6", product, "EXIT"))] == [8]


def test_a_register_from_a_vector_register_is_taken_as_right() -> None:
    assert not stray_descriptors(listing("R2UR UR10, R7", PRODUCT, "EXIT"))


def test_a_path_around_the_definition_is_seen() -> None:
    around = listing(*BASE, "@P0 BRA 0x60", "UMOV UR10, UR6", PRODUCT, "EXIT")
    assert stray_descriptors(around)
    assert not stray_descriptors(listing(*BASE, "UMOV UR10, UR6", "@P0 BRA 0x70", "UMOV UR10, UR6", PRODUCT, "EXIT"))


def test_a_guarded_definition_does_not_count() -> None:
    assert stray_descriptors(listing(*BASE, "@UP0 UMOV UR10, UR6", PRODUCT, "EXIT"))


def test_a_loop_that_overwrites_the_register_is_seen() -> None:
    """The first round is right, the second takes what the first has left behind."""
    body = (PRODUCT, "UMOV UR10, 0x80", "@P0 BRA 0x50", "EXIT")
    assert stray_descriptors(listing(*BASE, "UMOV UR10, UR6", *body))


def test_pairs_are_read_and_written_together() -> None:
    halves = ("UMOV UR7, 0x1", "UMOV UR9, 0x2")
    assert not stray_descriptors(listing(*BASE, *halves, "UMOV UR8, 0x40", "UIADD3.64 UR10, UR6, UR8, URZ", PRODUCT, "EXIT"))
    unwritten_half = listing(*BASE, *halves[1:], "UMOV UR8, 0x40", "UIADD3.64 UR10, UR6, UR8, URZ", PRODUCT, "EXIT")
    assert stray_descriptors(unwritten_half)


def test_guards_are_parsed() -> None:
    (instruction,) = parse(listing("@!UP1 UMOV UR4, UR6"))
    assert (instruction.guarded, instruction.operation, instruction.operands) == (True, "UMOV", "UR4, UR6")
