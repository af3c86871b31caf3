"""What the device's arithmetic was measured to do, as certificates keep it: constants that budgets take, and the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from flashverify.records.decoding import Count, decode
from flashverify.records.wire import Number, to_number

if TYPE_CHECKING:
    from flashverify.numerics.axioms.arithmetic import Arithmetic  # which imports torch


class Axiom(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line of the table; see `Observation`."""

    name: str
    value: str
    text: str = ""
    inputs: Count = 0
    exhaustive: bool = False
    fits: bool = True


class TensorCoreModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor core; see `BlockModel`."""

    block: Count
    extra_bits: Count
    rounding: str
    chaining: str


class Axioms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured; see `Arithmetic`, whose fields these are."""

    device: str
    lane: str
    tensor_cores: dict[str, TensorCoreModel]
    fp32_dot: str
    fp64_dot: str
    exp2_max_ulps: Number
    exp2_mean_ulps: Number
    exp2_rms_ulps: Number
    exp2_flushes_below: Number
    log2_max_ulps: Number
    log2_max_absolute: Number
    division_max_ulps: Number
    division_rms_ulps: Number
    casts_round_to_nearest: dict[str, bool]
    fuses: bool
    sum_order: str
    default_dot_precision: str
    truncates_tf32: bool
    exhaustive: tuple[str, ...]
    observations: tuple[Axiom, ...]

    @property
    def unexplained(self) -> tuple[Axiom, ...]:
        """Lines that fit no model: nothing can be certified on such arithmetic."""
        return tuple(line for line in self.observations if not line.fits)

    def to_json(self) -> bytes:
        """The JSON document: one line a field."""
        encoded = ((name, msgspec.json.encode(getattr(self, name))) for name in self.__struct_fields__)
        return b"{\n" + b",\n".join(b'"' + name.encode() + b'":' + value for name, value in encoded) + b"\n}\n"

    @classmethod
    def from_json(cls, data: bytes | str, source: str = "axioms") -> Axioms:
        """The axioms back from their JSON document.

        Raises:
            ValueError: if it is none; the message names the source, the field, what came and what is accepted.
        """
        return decode(data, cls, source)


def to_axioms(arithmetic: Arithmetic) -> Axioms:
    """What is kept of a measured arithmetic: all of it."""
    fields = {name: getattr(arithmetic, name) for name in Axioms.__struct_fields__}
    fields |= {name: to_number(value) for name, value in fields.items() if isinstance(value, float)}
    fields["tensor_cores"] = {
        name: TensorCoreModel(model.block, model.extra_bits, model.rounding, model.chaining)
        for name, model in arithmetic.tensor_cores.items()
    }
    fields["observations"] = tuple(
        Axiom(line.name, line.value, line.text, line.inputs, line.exhaustive, line.fits) for line in arithmetic.observations
    )
    return Axioms(**fields)
