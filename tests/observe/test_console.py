"""What a person sees: in a terminal, in a pipe, with many domains, and what the end says."""

import io
import math
from collections.abc import Mapping

import pytest
import rich.console
from rich.text import Text

from megacpt.observe.console import Console
from megacpt.observe.record import DomainEvaluation, DomainLoss, EvaluationRecord, StepRecord

NUM_STEPS = 20
TOKENS_PER_STEP = 2048
ROLES = {"medical": "new", "general": "replay"}


def terminal(width: int = 100) -> rich.console.Console:
    return rich.console.Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, highlight=False
    )


def pipe(encoding: str = "utf-8") -> rich.console.Console:
    return rich.console.Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), highlight=False)


def written(console: rich.console.Console) -> str:
    file = console.file
    if isinstance(file, io.TextIOWrapper):
        file.seek(0)
        return file.read()
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def step(number: int, domains: tuple[str, ...] = tuple(ROLES), mfu: float | None = None) -> StepRecord:
    return StepRecord(
        step=number,
        tokens=number * TOKENS_PER_STEP,
        loss=3.0,
        grad_norm=1.25,
        learning_rate=1e-4,
        tokens_per_second=512.0,
        domains={name: DomainLoss(2.5, 1024) for name in domains},
        mfu=mfu,
    )


def evaluation(number: int, **losses: float) -> EvaluationRecord:
    domains = {name: DomainEvaluation(loss, loss / 3, 1000) for name, loss in losses.items()}
    return EvaluationRecord(number, number * TOKENS_PER_STEP, domains)


def show(
    out: rich.console.Console,
    *,
    roles: Mapping[str, str] = ROLES,
    every_steps: int = 1,
    baseline: EvaluationRecord | None = None,
) -> Console:
    return Console(
        roles=roles,
        num_steps=NUM_STEPS,
        num_tokens=NUM_STEPS * TOKENS_PER_STEP,
        every_steps=every_steps,
        baseline=baseline,
        console=out,
    )


def test_a_piped_step_is_one_line_that_names_its_values() -> None:
    out = pipe()
    show(out).write_step(step(5, mfu=0.451))
    assert written(out) == (
        "step  5/20  tokens 10.2K  loss 3.0000  medical 2.5000  general 2.5000  lr 1.00e-04  grad norm 1.25"
        "  tok/s   512  MFU 45.1%  left 1min\n"
    )


def test_the_rows_of_a_terminal_stand_under_their_headings() -> None:
    out = rich.console.Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    console = show(out)
    console.write_step(step(5))
    console.write_step(step(6, domains=("medical",)))
    heading, first, second = written(out).splitlines()
    for name, value in (("loss", "3.0000"), ("medical", "2.5000"), ("general", "2.5000"), ("left", "1min")):
        end = heading.index(name) + len(name)
        assert first[end - len(value) : end] == value
    assert second[heading.index("general") : heading.index("general") + 7] == "      -"


def test_every_so_many_steps_beside_the_first_and_the_last() -> None:
    out = pipe()
    console = show(out, every_steps=8)
    for number in range(3, NUM_STEPS + 1):
        console.write_step(step(number))
    assert [line.split()[1] for line in written(out).splitlines()] == ["3/20", "8/20", "16/20", "20/20"]


def test_a_pipe_gets_no_control_codes_and_no_frames() -> None:
    out = pipe()
    whole_run(out)
    assert all(character == "\n" or character.isprintable() for character in written(out))
    assert not set("╭╮│─\x1b\r") & set(written(out))


def test_a_terminal_gets_colours_and_a_frame() -> None:
    out = terminal()
    whole_run(out)
    assert {"\x1b", "╭", "│"} <= set(written(out))


def test_an_encoding_without_arrows_is_spared_them() -> None:
    out = pipe("latin-1")
    whole_run(out)
    assert "medical 2.7000 -0.6000" in written(out)


def whole_run(out: rich.console.Console) -> None:
    console = show(out)
    console.header("a-run", {"model": "tiny", "batch": "4 rows"})
    console.write_evaluation(evaluation(0, medical=3.3, general=3.1))
    console.write_step(step(NUM_STEPS))
    console.write_evaluation(evaluation(NUM_STEPS, medical=2.7, general=3.2))
    console.close()


def test_the_header_names_the_run_and_its_facts() -> None:
    for out in (pipe(), terminal()):
        show(out).header("a-run [x]", {"model": "tiny [bold]", "batch": "4 rows"})
        assert "a-run [x]" in written(out)
        assert "tiny [bold]" in written(out)


def test_evaluations_are_compared_with_the_first() -> None:
    out = pipe()
    console = show(out)
    console.write_evaluation(evaluation(0, medical=3.3, general=3.1))
    console.write_evaluation(evaluation(10, medical=2.7, general=3.2))
    first, second = written(out).splitlines()
    assert first == "held-out loss at step 0  medical 3.3000  general 3.1000"
    assert second == "held-out loss at step 10  medical 2.7000 ↓0.6000  general 3.2000 ↑0.1000"


def test_a_resumed_run_is_compared_with_the_step_0_of_before() -> None:
    out = pipe()
    console = show(out, baseline=evaluation(0, medical=3.3))
    console.write_evaluation(evaluation(10, medical=3.0))
    assert "↓0.3000" in written(out)


def test_the_end_shows_before_and_after_and_says_what_it_means() -> None:
    out = pipe()
    console = show(out)
    console.write_evaluation(evaluation(0, medical=3.3, general=3.1))
    console.write_evaluation(evaluation(10, medical=3.0, general=3.0))
    console.write_evaluation(evaluation(20, medical=2.7, general=3.2))
    console.close()
    table = written(out).splitlines()[4:]
    assert table[0].rstrip() == "held-out loss in nats per token, step 0 -> step 20"
    assert table[2].split() == ["medical", "new", "3.3000", "2.7000", "↓0.6000", "1.1000", "0.9000"]
    assert table[3].split() == ["general", "replay", "3.1000", "3.2000", "↑0.1000", "1.0333", "1.0667"]
    assert table[4] == (
        "After 41K tokens: medical improved by 0.600 nats per token; general was forgotten by 0.100 nats per token."
    )


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ({"medical": 3.4}, "medical was not learned, its loss rose by 0.400"),
        ({"general": 2.9}, "general was not forgotten, it improved by 0.100"),
        ({"medical": math.nan}, "medical has no finite loss"),
    ],
)
def test_the_sentence_of_the_end(losses: dict[str, float], text: str) -> None:
    out = pipe()
    console = show(out)
    console.write_evaluation(evaluation(0, **{name: 3.0 for name in losses}))
    console.write_evaluation(evaluation(20, **losses))
    console.close()
    assert text in written(out)


def test_a_run_with_one_evaluation_has_no_table() -> None:
    out = pipe()
    console = show(out)
    console.write_evaluation(evaluation(0, medical=3.0))
    before = written(out)
    console.close()
    assert written(out) == before


def test_a_terminal_shows_the_domains_that_it_has_room_for_and_a_pipe_all() -> None:
    roles = {f"domain{number}": "new" for number in range(12)}
    out = terminal(width=100)
    show(out, roles=roles).write_step(step(1, domains=tuple(roles)))
    heading = Text.from_ansi(written(out)).plain.splitlines()[0]
    assert len(heading) <= 100
    assert "domain1 " in heading
    assert "+9 more" in heading
    out = pipe()
    show(out, roles=roles).write_step(step(1, domains=tuple(roles)))
    assert "domain11 2.5000" in written(out)


def test_two_domains_fit_into_eighty_columns() -> None:
    out = terminal(width=80)
    show(out).write_step(step(1))
    assert "general" in written(out)


def test_a_table_in_a_pipe_is_as_wide_as_it_needs() -> None:
    name = "clinical-guidelines-of-the-northern-countries"
    out = pipe()
    console = show(out, roles={name: "new"})
    console.write_evaluation(evaluation(0, **{name: 3.0}))
    console.write_evaluation(evaluation(20, **{name: 2.0}))
    console.close()
    assert f"{name}  new   3.0000  2.0000  ↓1.0000" in written(out)
