"""What a person sees of a run: a header, a line per step, a line per evaluation, and a table at the end.

In a terminal the steps are columns under a heading, in colour; in a pipe or a Slurm log each line names its values, so
that it can be found with grep and read alone, without colours or frames. There is no live display at the bottom of the
terminal: other ranks write to the same one, and a display that redraws itself would tear their warnings. Only rank 0
has a console. A step's values are that step's own, the ones in `metrics.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import rich.console
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megacpt.observe.record import DomainEvaluation, EvaluationRecord, StepRecord
from megacpt.units import format_seconds

_ROWS_PER_HEADING = 25


class _Cell(NamedTuple):
    heading: str
    value: str
    width: int
    style: str = ""


class Console:
    """Shows a run on stdout.

    Args:
        roles: name -> role (new, replay, anchor) of every domain, in the order of display.
        num_steps: steps of the whole run.
        num_tokens: tokens of the whole run.
        every_steps: a line for every so many steps, beside the first and the last.
        baseline: the evaluation that others are compared with; by default the first one that is written. A resumed
            run hands in the first of the runs before it.
        console: where to write; by default stdout.
    """

    def __init__(
        self,
        *,
        roles: Mapping[str, str],
        num_steps: int,
        num_tokens: int,
        every_steps: int = 1,
        baseline: EvaluationRecord | None = None,
        console: rich.console.Console | None = None,
    ) -> None:
        self._out = console or rich.console.Console(highlight=False)
        if not self._out.is_terminal:
            self._out.width = 1000  # a file has no width to wrap a table at
        self._roles = roles
        self._num_steps = num_steps
        self._num_tokens = num_tokens
        self._every_steps = every_steps
        self._baseline = baseline
        self._latest: EvaluationRecord | None = None
        self._has_shown_a_step = False
        self._rows_left = 0

    def header(self, title: str, facts: Mapping[str, str]) -> None:
        """Show the plan: a panel of names and values in a terminal, lines in a pipe."""
        width = max(map(len, facts), default=0)
        lines = [Text.assemble((f"{name:<{width}}  ", "dim"), value) for name, value in facts.items()]
        if self._out.is_terminal:
            panel = Panel.fit(Text("\n").join(lines), title=Text(title, "bold"), title_align="left", padding=(0, 1))
            self._out.print(panel)
        else:
            for line in (Text(title), *lines):
                self._print(line)

    def write_step(self, record: StepRecord) -> None:
        """Show a step, if it is the first seen, the last, or one in `every_steps`."""
        is_last = record.step == self._num_steps
        if self._has_shown_a_step and not is_last and record.step % self._every_steps:
            return
        self._has_shown_a_step = True
        cells = self._cells(record)
        if not self._out.is_terminal:
            self._print(Text("  ".join(f"{cell.heading} {cell.value}" for cell in cells)))
            return
        if not self._rows_left:
            self._print(_row((cell.heading, cell.width, "dim") for cell in cells))
            self._rows_left = _ROWS_PER_HEADING
        self._rows_left -= 1
        self._print(_row((cell.value, cell.width, cell.style) for cell in cells))

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Show every domain's held-out loss, and how far it is from the baseline."""
        self._baseline = self._baseline or record
        self._latest = record
        self._rows_left = 0
        line = Text.assemble((f"held-out loss at step {record.step}", "bold"))
        for name, domain in record.domains.items():
            line.append(f"  {name} ").append(f"{domain.loss:.4f}", "bold")
            before = self._baseline.domains.get(name)
            if before is not None and record is not self._baseline:
                line.append(" ").append_text(self._change(domain.loss - before.loss))
        self._print(line)
        if record.alignment:
            cosines = (f"{name} {cosine.whole:+.3f}" for name, cosine in record.alignment.items())
            self._print(Text(f"cosine with the gradient of new text  {'  '.join(cosines)}"))

    def rewind(self, step: int) -> None:
        """Nothing: what is on the screen stays there; the log says that the run was taken back."""

    def close(self, *, failed: bool = False) -> None:
        """Show each domain's loss before and after, if there are two evaluations, and say what it means."""
        before, after = self._baseline, self._latest
        if before is None or after is None or before.step == after.step:
            return
        names = [name for name in after.domains if name in before.domains]
        table = Table(
            title=f"held-out loss in nats per token, step {before.step} -> step {after.step}",
            title_justify="left",
            box=box.ROUNDED if self._out.is_terminal else None,
            pad_edge=self._out.is_terminal,
        )
        table.add_column("domain")
        table.add_column("role")
        for heading in ("before", "after", "change", "bits/byte before", "bits/byte after"):
            table.add_column(heading, justify="right")
        for name in names:
            old, new = before.domains[name], after.domains[name]
            table.add_row(
                Text(name, "bold"),
                self._roles.get(name, ""),
                f"{old.loss:.4f}",
                f"{new.loss:.4f}",
                self._change(new.loss - old.loss),
                _bits(old),
                _bits(new),
            )
        self._out.print()
        self._out.print(table)
        findings = "; ".join(self._finding(name, before.domains[name], after.domains[name]) for name in names)
        self._print(Text(f"After {compact(after.tokens - before.tokens)} tokens: {findings}."))

    def _cells(self, record: StepRecord) -> list[_Cell]:
        """The values of a step's line, in order; in a terminal, only the domains that its width has room for."""
        step = f"{record.step:>{len(str(self._num_steps))}}/{self._num_steps}"
        before = [
            _Cell("step", step, len(step), "bold"),
            _Cell("tokens", f"{compact(record.tokens):>5}", 6),
            _Cell("loss", f"{record.loss:.4f}", 6, "bold"),
        ]
        after = [
            _Cell("lr", f"{record.learning_rate:.2e}", 8),
            _Cell("grad norm", f"{record.grad_norm:.3g}", 9),
            _Cell("tok/s", f"{compact(record.tokens_per_second):>5}", 5),
            *([] if record.mfu is None else [_Cell("MFU", f"{record.mfu:.1%}", 5)]),
            _Cell("left", self._left(record), 9),
        ]
        domains = []
        for name in self._roles:
            loss = f"{record.domains[name].loss:.4f}" if name in record.domains else "-"
            domains.append(_Cell(name, f"{loss:>6}", max(len(name), 7), "cyan"))
        if self._out.is_terminal:
            domains = _that_fit(domains, self._out.width + 2 - _width([*before, *after]))
        return [*before, *domains, *after]

    def _left(self, record: StepRecord) -> str:
        """The time that the remaining tokens take at the present rate."""
        if not record.tokens_per_second:
            return "?"
        seconds = (self._num_tokens - record.tokens) / record.tokens_per_second
        return format_seconds(seconds) if seconds >= 1 else "0s"

    def _change(self, change: float) -> Text:
        """A difference of losses with an arrow: a fall is good, whatever the domain."""
        if not math.isfinite(change):
            return Text("?", "red")
        arrow, style = ("↓", "green") if change < 0 else ("↑", "red") if change > 0 else ("=", "dim")
        text = f"{change:+.4f}" if self._out.options.ascii_only else f"{arrow}{abs(change):.4f}"
        return Text(text, style)

    def _finding(self, name: str, before: DomainEvaluation, after: DomainEvaluation) -> str:
        """What happened to a domain, in words. A rise outside the new domains is forgetting."""
        change = after.loss - before.loss
        nats = f"{abs(change):.3f} nats per token"
        if not math.isfinite(change):
            return f"{name} has no finite loss"
        if self._roles.get(name) == "new":
            return f"{name} improved by {nats}" if change < 0 else f"{name} was not learned, its loss rose by {nats}"
        return f"{name} was not forgotten, it improved by {nats}" if change <= 0 else f"{name} was forgotten by {nats}"

    def _print(self, line: Text) -> None:
        """A line as it is, however wide the terminal."""
        self._out.print(line, soft_wrap=True)


def _row(cells: Iterable[tuple[str, int, str]]) -> Text:
    return Text("  ").join(Text(f"{text:>{width}}", style) for text, width, style in cells)


def _width(cells: Sequence[_Cell]) -> int:
    return sum(cell.width + 2 for cell in cells)


def _that_fit(cells: list[_Cell], room: int) -> list[_Cell]:
    """As many cells as the room takes; if some are left out, a last one says how many."""
    if _width(cells) <= room:
        return cells
    for num_shown in range(len(cells) - 1, -1, -1):
        heading = f"+{len(cells) - num_shown} more"
        shown = [*cells[:num_shown], _Cell(heading, "", len(heading))]
        if _width(shown) <= room:
            return shown
    return []


def _bits(domain: DomainEvaluation) -> str:
    return "-" if domain.bits_per_byte is None else f"{domain.bits_per_byte:.4f}"


def compact(number: float) -> str:
    """Three significant digits: 530 -> "530", 24_576 -> "24.6K", 20e9 -> "20B"."""
    for unit in ("", "K", "M", "B"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"
