"""What is silenced, and that everything else is not."""

import logging
import sys
import warnings

import pytest

from megacpt.observe.quiet import quiet

NOISE = """\
DeepSpeed deepspeed.ops.comm.deepspeed_shm_comm_op built successfully
Time to load fused_adam op: 0.5 seconds
SEED_LAYERS=False BASE_SEED=1234 SEED_FN=None
Using topology: {ProcessCoord(pipe=0, data=0): 0, ProcessCoord(pipe=1, data=0): 1}
stage=0 layers=2
     0: Embedding
    11: functools.partial
  loss: MSELoss
begin bf16_optimizer
MA 0.44 GB         Max_MA 0.44 GB         CA 0.44 GB         Max_CA 0 GB 
CPU Virtual Memory:  used = 1.65 GB, percent = 7.0%
before initializing group 0
end bf16_ optimizer
[2026-01-01 00:00:00,000] [WARNING] **** You are using ZeRO with an untested optimizer, proceed with caution *****
_load_legacy_checkpoint current_rank_sd[BASE_OPTIMIZER_STATE]
"""


def test_known_lines_are_dropped_and_others_pass_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("before")
        print(NOISE, end="")
        print("the loss: MSELoss is unusual")
        print("[WARNING] async_io requires libaio, but it does not exist!")
    assert capsys.readouterr().out.splitlines() == [
        "before",
        "the loss: MSELoss is unusual",
        "[WARNING] async_io requires libaio, but it does not exist!",
    ]


def test_an_incomplete_line_passes_when_flushed_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("working", end="", flush=True)
        assert capsys.readouterr().out == "working"
        print("done", end="")
    assert capsys.readouterr().out == "done"


def test_only_the_listed_warnings_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught, quiet():
        warnings.warn("`torch.distributed.all_gather_into_tensor` is deprecated. Please", FutureWarning, stacklevel=1)
        warnings.warn("`torch.something_else` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("the learning rate is 0", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [
        "`torch.something_else` is deprecated",
        "the learning rate is 0",
    ]


def test_only_the_listed_lines_of_a_log_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    log, untested = logging.getLogger("DeepSpeed"), "**** You are using ZeRO with an untested optimizer, proceed with"
    log.addHandler(caplog.handler)
    try:
        with quiet():
            log.warning(untested)
            log.warning("another")
        log.warning(untested)
    finally:
        log.removeHandler(caplog.handler)
    assert list(dict.fromkeys(caplog.messages)) == ["another", untested]


def test_stdout_and_filters_are_as_before_afterwards() -> None:
    stdout, filters = sys.stdout, list(warnings.filters)
    with pytest.raises(ValueError), quiet():
        assert sys.stdout is not stdout
        assert sys.stdout.isatty() == stdout.isatty()
        assert sys.stdout.encoding == stdout.encoding
        raise ValueError
    assert sys.stdout is stdout
    assert warnings.filters == filters
