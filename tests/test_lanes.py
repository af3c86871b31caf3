"""The lane is chosen before Triton is imported, and what was chosen is said."""

import os

import pytest
import torch

from flashverify.lanes import LANES, enter_lane


@pytest.fixture(params=[False, True], ids=["no GPU", "GPU"])
def gpu(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Imaginary")
    return request.param


@pytest.fixture(params=[None, "0", "1"], ids=lambda value: f"TRITON_INTERPRET={value}")
def variable(request, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "")  # so that it is restored, whatever the lane does to it
    monkeypatch.delenv("TRITON_INTERPRET")
    if request.param is not None:
        monkeypatch.setenv("TRITON_INTERPRET", request.param)
    return request.param


def test_a_gpu_is_used_unless_the_interpreter_is_asked_for(gpu, variable):
    lane = enter_lane("auto")
    compiled = gpu and variable != "1"
    assert (lane.name, lane.device) == (("gpu", "cuda") if compiled else ("interpreter", "cpu"))
    assert os.environ["TRITON_INTERPRET"] == ("0" if compiled else "1")
    if compiled:
        assert lane.reason == "compiled kernels on NVIDIA Imaginary"
    else:
        why = "TRITON_INTERPRET=1 is set" if variable == "1" else "torch finds no GPU"
        assert lane.reason == f"Triton's interpreter ({why}): it proves the algebra, not the compiled kernel"


def test_the_interpreter_can_be_asked_for_everywhere(gpu, variable):
    lane = enter_lane("interpreter")
    assert (lane.name, lane.device, os.environ["TRITON_INTERPRET"]) == ("interpreter", "cpu", "1")
    assert "(asked for)" in lane.reason


def test_a_gpu_that_is_asked_for_is_never_replaced_in_silence(gpu, variable):
    if gpu:
        assert enter_lane("gpu").device == "cuda"
        assert os.environ["TRITON_INTERPRET"] == "0"
        return
    with pytest.raises(ValueError, match="lane: got 'gpu', but torch finds no GPU here; accepted are auto and interpreter"):
        enter_lane("gpu")
    assert os.environ.get("TRITON_INTERPRET") == variable


def test_unknown_lanes_are_refused(gpu, variable):
    with pytest.raises(ValueError, match=f"lane: got 'fast', accepted are {', '.join(LANES)}"):
        enter_lane("fast")
    assert os.environ.get("TRITON_INTERPRET") == variable
