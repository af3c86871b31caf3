"""How often the statistical checks may be wrong about a faultless kernel, and each one's share of that.

A certificate's false-alarm rate is at most the sum of those of its tests (Bonferroni), whatever their dependence.
"""

CERTIFICATE_RATE = 1e-6
"""False alarms of a whole certificate by all statistical tests together, at most."""

CERTIFICATE_CASES = 2048
"""Cases of a certificate that the rate holds for."""

TESTS_OF_A_CASE = 64
"""Tests of a case: five tensors in two output formats, and of each the sharp budget and the three statistics of its scores."""

SHARE = CERTIFICATE_RATE / (CERTIFICATE_CASES * TESTS_OF_A_CASE)
"""False alarms of one test, at most."""
