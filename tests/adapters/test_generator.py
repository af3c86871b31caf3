"""The generator of a device, set to a stream for a call: the call's numbers follow from it, nobody else's change."""

import pytest
import torch

from flashverify.adapters.generator import DeviceGenerator
from flashverify.dropout.mask import Stream

CPU = torch.device("cpu")
STREAM = Stream(seed=2**64 - 3, offset=2**34 - 64, rate=0.5)


def drawn(generator, stream=STREAM, device=CPU):
    with generator.at(stream):
        return torch.rand(9, device=device)


def on_from_there(generator, device=CPU):
    with generator.where_it_was_left():
        return torch.rand(9, device=device)


def test_a_stream_gives_the_same_numbers_and_others_are_left_alone():
    generator, before = DeviceGenerator(CPU), torch.get_rng_state()
    first = drawn(generator)
    second, third = on_from_there(generator), on_from_there(generator)
    assert torch.equal(drawn(generator), first)
    assert torch.equal(on_from_there(generator), second)
    for other in (second, third, drawn(generator, Stream(5, 0, 0.5)), drawn(generator, Stream(STREAM.seed, 0, 0.5))):
        assert not torch.equal(first, other)
    assert not torch.equal(second, third)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_stream_nothing_is_set():
    torch.manual_seed(1)
    expected = torch.rand(9)
    torch.manual_seed(1)
    assert torch.equal(drawn(DeviceGenerator(CPU), None), expected)


def test_an_error_puts_the_state_back_too():
    generator, before = DeviceGenerator(CPU), torch.get_rng_state()

    def fail():
        with generator.at(STREAM):
            torch.rand(3)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="no call has drawn"):
        on_from_there(generator)


@pytest.mark.gpu
def test_on_a_gpu_the_offset_counts():
    device = torch.device("cuda", 0)
    generator = DeviceGenerator(device)
    with generator.at(STREAM):
        assert torch.cuda.default_generators[0].initial_seed() == STREAM.seed
        assert torch.cuda.default_generators[0].get_offset() == STREAM.offset
    assert torch.equal(drawn(generator, device=device), drawn(generator, device=device))
    assert not torch.equal(drawn(generator, device=device), drawn(generator, Stream(STREAM.seed, 0, 0.5), device))
