"""The model's calculator tool: arithmetic and string counting, interpreted from the syntax tree without `eval`.

It accepts numbers (also `1,200` and `.5`) with + - * / // % ** and parentheses, and quoted strings with `.count`,
`.find`, `.index`, `.lower`, `.upper` and `len(...)`. Any other expression has no result.

Numbers are exact fractions, so 0.1 + 0.2 is 0.3. Results are formatted as people write numbers: integers without a
point; decimals with at most 12 places in full; other numbers rounded, half to even, to 6 significant digits but at
least 2 places. There is never an exponent.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

_MAX_LENGTH = 300  # characters of an expression
_MAX_DEPTH = 100  # levels of its syntax tree
_MAX_NUMBER = 10**50  # limit of numerators and denominators
_MAX_PLACES = 12
_NUM_DIGITS = 6
_METHODS = ("count", "find", "index", "lower", "upper")

# Strings contain no backslash and no line break, so no escape sequences. Commas group a number's digits by three.
_TOKEN = re.compile(
    r"""(?P<text>'[^'\\\r\n]*'|"[^"\\\r\n]*")"""
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    rf"|(?P<name>(?:len|{'|'.join(_METHODS)})(?!\w))"
    r"|(?P<sign>[-+*/%(). \t])"
    r"|(?P<other>.)",
    re.ASCII | re.DOTALL,
)

_Value = Fraction | str
_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class _Rejected(Exception):
    """The calculator does not accept the expression."""


_ERRORS = (_Rejected, ArithmeticError, ValueError, SyntaxError, RecursionError, MemoryError)


def calculate(expression: str) -> str | None:
    """Return the formatted result of an expression, or None if it has none. Never raises; takes a few milliseconds.

    >>> calculate("12/60"), calculate("1,200*2.5"), calculate("2/3"), calculate("'strawberry'.count('r')")
    ('0.2', '3000', '0.666667', '3')
    >>> calculate("1/0"), calculate("9**9**9"), calculate("open('x')")
    (None, None, None)
    """
    try:
        return _format(_evaluate(expression))
    except _ERRORS:
        return None


def use_calculator(expression: str) -> int | float | str | None:
    """Return the value of an expression: an integer as int, another number as float, a string as str; None if none.

    >>> use_calculator("1 + 2 * 3"), use_calculator("1 / 4"), use_calculator("the answer")
    (7, 0.25, None)
    """
    try:
        value = _evaluate(expression)
        if isinstance(value, str):
            return value or None
        return int(value) if value.denominator == 1 else float(value)
    except _ERRORS:
        return None


def _evaluate(expression: str) -> _Value:
    """Return the value of an expression. Raises one of _ERRORS if it has none."""
    source = _normalize(expression)
    return _evaluate_node(ast.parse(source, mode="eval").body, source.encode(), _MAX_DEPTH)


def _normalize(expression: str) -> str:
    """Remove the commas in numbers. Rejects any token besides strings, numbers, names and operators."""
    if len(expression) > _MAX_LENGTH:
        raise _Rejected
    tokens = list(_TOKEN.finditer(expression.strip(" \t\r\n")))
    if any(token["other"] for token in tokens):
        raise _Rejected
    return "".join(token[0].replace(",", "") if token["number"] else token[0] for token in tokens)


def _evaluate_node(node: ast.expr, source: bytes, depth: int) -> _Value:
    """Return the value of a node. Numbers are read from `source`, because ast rounds decimals to floats."""
    if depth == 0:
        raise _Rejected
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=int() | float()):
            return _check_size(Fraction(source[node.col_offset : node.end_col_offset].decode()))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _as_number(_evaluate_node(operand, source, depth - 1))
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            a, b = (_as_number(_evaluate_node(side, source, depth - 1)) for side in (left, right))
            return _power(a, b) if isinstance(op, ast.Pow) else _check_size(Fraction(_BINARY[type(op)](a, b)))
        case ast.Call(func=ast.Name(id="len"), args=[argument], keywords=[]):
            return Fraction(len(_as_text(_evaluate_node(argument, source, depth - 1))))
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=arguments, keywords=[]):
            texts = [_as_text(_evaluate_node(part, source, depth - 1)) for part in (owner, *arguments)]
            return _call_method(name, texts)
    raise _Rejected


def _call_method(name: str, texts: list[str]) -> _Value:
    """Call a method of the first string, with the others as arguments: none for `lower` and `upper`, else one."""
    if name not in _METHODS or len(texts) != (1 if name in ("lower", "upper") else 2):
        raise _Rejected
    result: str | int = getattr(texts[0], name)(*texts[1:])
    return result if isinstance(result, str) else Fraction(result)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """Return base**exponent: exact for integer exponents, rounded to a float for others.

    Too large a result is rejected before it is computed.
    """
    if exponent.denominator != 1:
        if base < 0:
            raise _Rejected
        return _check_size(Fraction(float(base) ** float(exponent)))
    num_bits = max(abs(base.numerator), base.denominator).bit_length() - 1
    if num_bits * abs(exponent) > _MAX_NUMBER.bit_length():
        raise _Rejected
    # With a base of 0, 1 or -1 (no bits) any exponent is allowed: a small one of equal sign and parity replaces it.
    reduced = int(exponent) if num_bits else int(exponent) % 2 + 2 * (exponent > 0) - 2 * (exponent < 0)
    return _check_size(base**reduced)


def _as_number(value: _Value) -> Fraction:
    if isinstance(value, str):
        raise _Rejected
    return value


def _as_text(value: _Value) -> str:
    if not isinstance(value, str):
        raise _Rejected
    return value


def _check_size(number: Fraction) -> Fraction:
    if max(abs(number.numerator), number.denominator) > _MAX_NUMBER:
        raise _Rejected
    return number


def _format(value: _Value) -> str | None:
    """Format a result by the rule at the top of the file. An empty string is no result."""
    if isinstance(value, str):
        return value or None
    magnitude = abs(value)
    places = _MAX_PLACES
    if (magnitude * 10**places).denominator != 1:
        # Round to 6 significant digits: the scaled number has 6 digits or more.
        places = 2
        while magnitude * 10**places < 10 ** (_NUM_DIGITS - 1):
            places += 1
    scaled = round(magnitude * 10**places)
    whole, rest = divmod(scaled, 10**places)
    decimals = str(rest).zfill(places).rstrip("0")
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
