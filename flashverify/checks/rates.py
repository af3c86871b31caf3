"""How often the statistical checks may be wrong about a faultless kernel, and each one's share of that.

A certificate's false-alarm rate is at most the sum of those of its tests (Bonferroni), whatever their dependence. There are two
families, of roundings and of dropout masks, and the rate holds for each.
"""

CERTIFICATE_RATE = 1e-6
"""False alarms of a whole certificate by all statistical tests of a family together, at most."""

CERTIFICATE_CASES = 2048
"""Cases of a certificate that the rate holds for."""

TESTS_OF_A_CASE = 64
"""Tests of a case: five tensors in two output formats, and of each the sharp budget and the three statistics of its scores."""

SHARE = CERTIFICATE_RATE / (CERTIFICATE_CASES * TESTS_OF_A_CASE)
"""False alarms of one test, at most."""

DROPOUT_SHARE = CERTIFICATE_RATE / (CERTIFICATE_CASES * 2)
"""False alarms of one of the two checks that look at a case's dropout mask by statistics, at most."""
