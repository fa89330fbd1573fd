"""Strict nbval with the comparison of ``scripts/notebook_comparison.py``.

It stands at the root, since pytest reads it for ``tests`` and for ``notebooks`` alike.
"""

from typing import Any

from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell
from notebook_comparison import as_text, difference

_compare_outputs = IPyNbCell.compare_outputs
_format_output_compare = IPyNbCell.format_output_compare


class Output(str):
    """A field of an output as nbval compares it: ``!=`` asks for a difference that counts."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return not difference(str(self), str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other


def sanitize(self: IPyNbCell, value: Any) -> Output:
    return Output(as_text(value))


def compare_outputs(self: IPyNbCell, test: list, ref: list) -> bool:
    # nbval skips pictures altogether; here only their bytes do not count.
    skip = tuple(field for field in self.parent.skip_compare if not field.startswith("image/"))
    return _compare_outputs(self, test, ref, skip)


def format_output_compare(self: IPyNbCell, key: str, left: str, right: str) -> None:
    _format_output_compare(self, key, left, right)
    self.comparison_traceback.append(difference(left, right))


def execute_cell_input(self: RunningKernel, cell_input: str, allow_stdin: Any = None) -> str:
    # With nbval's store_history=False, IPython shows the value of a line that ends in ";".
    return self.kc.execute(
        cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
    )


IPyNbCell.sanitize = sanitize
IPyNbCell.compare_outputs = compare_outputs
IPyNbCell.format_output_compare = format_output_compare
RunningKernel.execute_cell_input = execute_cell_input
