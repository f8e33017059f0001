"""The alarm for forgetting."""

from __future__ import annotations

import pytest

from megacpt.errors import ForgettingError
from megacpt.observe.record import DomainEvaluation, EvaluationRecord
from megacpt.trainer.budgets import BudgetWatch

BUDGETS = {"general": 0.1}
LOSSES = [3.0, 3.2, 3.3, 3.05, 3.4]


def record(step: int, loss: float) -> EvaluationRecord:
    return EvaluationRecord(step, 8 * step, {"general": DomainEvaluation(loss, None, 9)})


def test_it_warns_each_time_and_saves_once_an_overrun(capsys: pytest.CaptureFixture[str]) -> None:
    saved: list[int] = []
    watch = BudgetWatch(BUDGETS, save=saved.append)
    silent = BudgetWatch(BUDGETS, is_main=False)
    for step, loss in enumerate(LOSSES):
        watch(record(step, loss))
        silent(record(step, loss))
    warnings = capsys.readouterr().err.splitlines()
    assert saved == [1, 4]
    assert [line.split(": ")[1] for line in warnings] == [f"forgetting at step {step}" for step in (1, 2, 4)]
    assert warnings[0].endswith("general is +0.2000 nats above the base model, its budget is 0.1")


def test_a_resumed_run_is_held_against_the_base_model() -> None:
    saved: list[int] = []
    BudgetWatch(BUDGETS, base=record(0, 3.0).domains, save=saved.append)(record(5, 3.2))
    assert saved == [5]


def test_it_stops_after_saving() -> None:
    saved: list[int] = []
    watch = BudgetWatch(BUDGETS, record(0, 3.0).domains, save=saved.append, stops=True)
    watch(record(1, 3.05))
    with pytest.raises(ForgettingError, match="stopped after step 2, with a checkpoint: general"):
        watch(record(2, 3.5))
    assert saved == [2]


def test_it_warns_of_a_base_loss_that_is_none_or_of_other_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A budget, or other held-out text, that an edited recipe brings where the run goes on."""
    before = {name: DomainEvaluation(2.0, None, 9) for name in ("code", "law")}
    domains = {"general": 3.0, "code": 2.05, "law": 2.0}
    saved: list[int] = []
    watch = BudgetWatch(dict.fromkeys(domains, 0.1), before, save=saved.append)
    for step, rise in ((5, 0.0), (6, 0.2)):
        found = {
            name: DomainEvaluation(loss + rise * (name == "general"), None, 8 if name == "code" else 9)
            for name, loss in domains.items()
        }
        watch(EvaluationRecord(step, 8 * step, found))
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said[0].startswith("the budget of general counts from step 5")
    assert said[1].startswith("the budget of code compares different text: 8 held-out tokens now, 9")
    assert len(said) == 3 and said[2].startswith("forgetting at step 6: general is +0.2000") and saved == [6]
