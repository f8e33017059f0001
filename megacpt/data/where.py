"""Conditions on documents, as people write them: `year >= 2015 and score > 0.7`.

The text is parsed as a Python expression and translated, part by part, into an Arrow expression; whatever is not in
this list is refused, and nothing is ever evaluated as Python:

    and  or  not  ( )       ==  !=  <  <=  >  >=        0 < score <= 1
    names of columns        numbers, 'text', True, False
    source in ('web', 'books')      source not in (...)     date is None     date is not None

Dates are compared as text, year first: date >= '2015-06'. A document without a value satisfies no comparison, and
neither its negation (SQL's three-valued logic): `is None` asks for it.
"""

from __future__ import annotations

import ast
from functools import cached_property

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import compute

from megacpt.errors import DataError

_HINT = "A condition compares columns with values: year >= 2015 and source in ('web', 'books')."


class Where:
    """A condition, parsed.

    Attributes:
        text: as it was written.
        names: the columns that it reads, each once, in the order of their first use.

    Raises:
        DataError: naming what cannot be understood.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise DataError("the condition cannot be parsed", found=repr(text), hint=_HINT) from None
        self._tree = tree.body
        self._kinds: dict[str, pyarrow.DataType] = {}
        """What a column is compared with, where Arrow does not see it in one that has no value at all."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id not in self.names:
                self.names.append(node.id)
        if not self.names:
            raise DataError("the condition names no column", found=repr(text), hint=_HINT)
        try:
            self.expression  # noqa: B018  what is wrong with it is said now
        except (pyarrow.ArrowException, OverflowError, RecursionError) as error:
            found = str(error).splitlines()[0]
            raise DataError(
                "the condition is too large, or has values too large or of several kinds",
                where=f"condition {text!r}",
                found=found,
            ) from None

    @cached_property
    def expression(self) -> compute.Expression:
        """The condition as an Arrow expression."""
        return self._condition(self._tree)

    def mask(self, columns: pyarrow.Table) -> NDArray[np.bool_]:
        """Which rows of a table with its columns satisfy it: bool [rows].

        Raises:
            DataError: a column that cannot be compared with the value.
        """
        columns = columns.select(self.names)
        for place, name in enumerate(self.names):
            kind = columns.schema.field(name).type
            if pyarrow.types.is_temporal(kind):
                columns = columns.set_column(place, name, columns.column(name).cast(pyarrow.string()))
            elif pyarrow.types.is_decimal(kind):
                columns = columns.set_column(place, name, columns.column(name).cast(pyarrow.float64()))
            elif pyarrow.types.is_null(kind) and name in self._kinds:
                columns = columns.set_column(place, name, columns.column(name).cast(self._kinds[name]))
        from pyarrow import dataset  # brings pandas with it, a second that only who has a condition has to wait

        try:
            scanner = dataset.Scanner.from_batches(
                columns.to_batches(), schema=columns.schema, columns={"kept": self.expression}, use_threads=False
            )
            return scanner.to_table().column("kept").fill_null(False).to_numpy()
        except (pyarrow.ArrowException, TypeError) as error:
            raise DataError(
                "the condition does not fit the columns",
                where=f"condition {self.text!r}",
                found=str(error).splitlines()[0],
                expected=", ".join(f"{name}: {columns.schema.field(name).type}" for name in self.names),
            ) from None

    def __repr__(self) -> str:
        return f"Where({self.text!r})"

    def _condition(self, node: ast.expr) -> compute.Expression:
        """A part of the text that is true or false."""
        if isinstance(node, ast.BoolOp):
            first, *others = map(self._condition, node.values)
            for other in others:
                first = first & other if isinstance(node.op, ast.And) else first | other
            return first
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._condition(node.operand)
        if isinstance(node, ast.Name):
            self._kinds[node.id] = pyarrow.bool_()
            return compute.field(node.id)
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            condition = self._comparison(operands[0], node.ops[0], operands[1])
            for left, operator, right in zip(operands[1:], node.ops[1:], operands[2:], strict=False):
                condition = condition & self._comparison(left, operator, right)
            return condition
        raise self._refused(node)

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> compute.Expression:
        if isinstance(operator, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._refused(right)
            is_null = self._operand(left).is_null()
            return is_null if isinstance(operator, ast.Is) else ~is_null
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                raise self._refused(right)
            column = self._operand(left)
            values = pyarrow.array([self._value(entry) for entry in right.elts])
            if isinstance(left, ast.Name):
                self._kinds[left.id] = values.type
            is_in = column.isin(values)
            return is_in if isinstance(operator, ast.In) else ~is_in & ~column.is_null()
        first, second = self._operand(left), self._operand(right)
        match operator:
            case ast.Eq():
                return first == second
            case ast.NotEq():
                return first != second
            case ast.Lt():
                return first < second
            case ast.LtE():
                return first <= second
            case ast.Gt():
                return first > second
            case _:
                return first >= second

    def _operand(self, node: ast.expr) -> compute.Expression:
        if isinstance(node, ast.Name):
            return compute.field(node.id)
        value = self._value(node)
        # A column of int64 may be compared with an uint64, but none of uint64 (text_hash) with an int64.
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return compute.scalar(pyarrow.scalar(value, pyarrow.uint64()) if is_count else value)

    def _value(self, node: ast.expr) -> str | float | bool:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand)
            if not isinstance(value, str):
                return -value
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
            return node.value
        raise self._refused(node)

    def _refused(self, node: ast.expr) -> DataError:
        found = ast.get_source_segment(self.text.strip(), node) or ast.unparse(node)
        return DataError("the condition says what it cannot", where=f"condition {self.text!r}", found=found, hint=_HINT)
