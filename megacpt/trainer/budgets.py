"""The alarm for forgetting: every evaluation is held against the budgets of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from megacpt.continual.budgets import overruns
from megacpt.errors import ForgettingError
from megacpt.observe.log import logger
from megacpt.observe.record import DomainEvaluation, EvaluationRecord


class BudgetWatch:
    """Warns of domains that are forgotten beyond their budget; saves or stops, if told to.

    Every rank has the same records and so comes to the same conclusion, without talking.

    Args:
        budgets: domain -> how far its loss may rise above the base model's, in nats per token.
        base: domain -> the base model's evaluation; a domain that is not there counts from the first one that comes.
        save: writes a checkpoint of a step, once for as long as an overrun lasts; None: only warn.
        stops: end the run after that.
        is_main: this is rank 0, which warns for all.
    """

    def __init__(
        self,
        budgets: Mapping[str, float],
        base: Mapping[str, DomainEvaluation] | None = None,
        *,
        save: Callable[[int], None] | None = None,
        stops: bool = False,
        is_main: bool = True,
    ) -> None:
        self._budgets = budgets
        self._base = dict(base or {})
        self._save, self._stops, self._is_main = save, stops, is_main
        self._was_over, self._is_first = False, True

    def __call__(self, record: EvaluationRecord) -> None:
        """Look at an evaluation.

        Raises:
            ForgettingError: a budget is overrun, and the run shall stop.
        """
        if self._is_first:
            self._begin(record)
        found = overruns(record, self._base, self._budgets)
        for overrun in found if self._is_main else ():
            logger().warning("forgetting at step %d: %s", record.step, overrun)
        if found and self._save and not self._was_over:
            self._save(record.step)
        self._was_over = bool(found)
        if found and self._stops:
            raise ForgettingError(
                f"stopped after step {record.step}, with a checkpoint: {'; '.join(map(str, found))}",
                where="forgetting",
                hint="Begin anew with more replay or a lower lr.peak, or go on with a larger budget: "
                "--resume auto --set forgetting.DOMAIN=NATS.",
            )

    def _begin(self, record: EvaluationRecord) -> None:
        """Complete the base losses, and warn of those that are not of the base model or not of the same text."""
        self._is_first = False
        for name in self._budgets:
            if (now := record.domains.get(name)) is None:
                continue
            base = self._base.setdefault(name, now)
            if not self._is_main:
                continue
            if base is now and record.step:
                logger().warning(
                    "the budget of %s counts from step %d, for there is no base loss of it", name, record.step
                )
            elif base.tokens != now.tokens:
                logger().warning(
                    "the budget of %s compares different text: %d held-out tokens now, %d for the base model",
                    *(name, now.tokens, base.tokens),
                )
