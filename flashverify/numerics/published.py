"""Published error bounds of a device's elementary operations: what a contract states until the device has been measured.

PTX ISA: ex2.approx.ftz.f32 errs by 2 ulp from the correctly rounded value, so 2.5 from the true one; div.full.f32 by 2 ulp,
which has to be read in the same way, for an H200 errs by 2.09 from the true quotient; lg2.approx by 2^-22 near 1. numpy, whose
arithmetic Triton's interpreter has, is closer in all three.
"""

EXP2_ULPS = 2.5
LOG2_ULPS = 2.0
LOG2_ABSOLUTE = 2.0**-22
DIVISION_ULPS = 2.5
