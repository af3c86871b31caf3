"""Time of the oracles, forward and backward, N = D = 64: the balls beside mpmath at the same digits."""

import math
import time

import pytest

from flashverify.cases.case import AttentionCase
from flashverify.cases.regimes import draw
from flashverify.oracles import ball, dense, mp, tiled

CASE = AttentionCase(dtype="fp64", seqlen_q=64, seqlen_k=64, head_dim=64)
PRECISION = 128
DIGITS = math.ceil(PRECISION * math.log10(2.0))
ORACLES = {
    "ball": lambda inputs: ball.attention(CASE, inputs, precision=PRECISION, limit=PRECISION),
    "mpmath": lambda inputs: mp.attention(CASE, inputs, dps=DIGITS),
    "dense": lambda inputs: dense.attention(CASE, inputs),
    "tiled": lambda inputs: tiled.attention(CASE, inputs),
}


@pytest.mark.parametrize("name", ORACLES)
def test_time(benchmark, name):
    inputs = draw(CASE)
    rounds = 3 if name == "mpmath" else 10
    benchmark.pedantic(ORACLES[name], args=(inputs,), rounds=rounds, warmup_rounds=1)


def test_ratio_of_mpmath_to_balls(benchmark, capsys):
    """Prints the ratio that the choice of the ball oracle rests on."""
    inputs = draw(CASE)

    def seconds(name: str, rounds: int) -> float:
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            ORACLES[name](inputs)
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]

    balls = benchmark.pedantic(seconds, args=("ball", 7), rounds=1)
    scalars = seconds("mpmath", 3)
    with capsys.disabled():
        print(
            f"\nN = D = 64, forward and backward, {DIGITS} digits: mpmath {scalars:.2f} s, balls {balls:.3f} s, "
            f"ball / mpmath time ratio 1 / {scalars / balls:.1f}"
        )
    assert balls < scalars
