"""The model's calculator: arithmetic and counting letters, walked as a syntax tree and never evaluated as Python.

What it takes: numbers (`1,200` and `.5` too) with + - * / // % ** and parentheses; texts in quotes with `.count`,
`.find`, `.index`, `.lower`, `.upper` and `len(...)`. Everything else gives no result:
what is not on these lists is out of reach.

Numbers are exact fractions, so 0.1 + 0.2 is 0.3. A result is written as a person would: a whole number without a point;
a decimal of at most 12 places in full; anything else rounded, half to even, to 6 significant digits, but never to fewer
than 2 places; never with an exponent.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

_LENGTH = 300  # characters of an expression
_DEPTH = 100  # levels of its tree
_LARGEST = 10**50  # of a numerator, a denominator and an exponent's effect
_PLACES = 12
_DIGITS = 6
_METHODS = ("count", "find", "index", "lower", "upper")

# A text has no backslash and no line break, so that it means what it shows. Commas group a number's digits by three.
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


class _Refused(Exception):
    """The expression is not one that the calculator takes."""


def calculate(expression: str) -> str | None:
    """The result as text, or None where there is none; raises nothing, and takes at most some milliseconds.

    >>> calculate("12/60"), calculate("1,200*2.5"), calculate("2/3"), calculate("'strawberry'.count('r')")
    ('0.2', '3000', '0.666667', '3')
    >>> calculate("1/0"), calculate("9**9**9"), calculate("open('x')")
    (None, None, None)
    """
    value = _evaluate(expression)
    return None if value is None else _written(value)


def use_calculator(expression: str) -> int | float | str | None:
    """Return the value of an expression: a whole number as int, another as float, text as str; None if it has none.

    >>> use_calculator("1 + 2 * 3"), use_calculator("1 / 4"), use_calculator("the answer")
    (7, 0.25, None)
    """
    value = _evaluate(expression)
    if value is None or isinstance(value, str):
        return value or None
    return int(value) if value.denominator == 1 else float(value)


def _evaluate(expression: str) -> _Value | None:
    """The value of an expression, or None if the calculator does not take it."""
    try:
        source = _plain(expression)
        return _value(ast.parse(source, mode="eval").body, source.encode(), _DEPTH)
    except (_Refused, ArithmeticError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _plain(expression: str) -> str:
    """The expression without the commas in its numbers; refuses whatever is neither text, number, name nor sign."""
    if len(expression) > _LENGTH:
        raise _Refused
    tokens = list(_TOKEN.finditer(expression.strip(" \t\r\n")))
    if any(token["other"] for token in tokens):
        raise _Refused
    return "".join(token[0].replace(",", "") if token["number"] else token[0] for token in tokens)


def _value(node: ast.expr, source: bytes, depth: int) -> _Value:
    """What a node of the tree is worth; `source` is where the digits of its numbers stand as they were written."""
    if depth == 0:
        raise _Refused
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=int() | float()):
            return _bounded(Fraction(source[node.col_offset : node.end_col_offset].decode()))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _number(_value(operand, source, depth - 1))
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            a, b = (_number(_value(side, source, depth - 1)) for side in (left, right))
            return _power(a, b) if isinstance(op, ast.Pow) else _bounded(Fraction(_BINARY[type(op)](a, b)))
        case ast.Call(func=ast.Name(id="len"), args=[argument], keywords=[]):
            return Fraction(len(_text(_value(argument, source, depth - 1))))
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=arguments, keywords=[]):
            texts = [_text(_value(part, source, depth - 1)) for part in (owner, *arguments)]
            return _method(name, texts)
    raise _Refused


def _method(name: str, texts: list[str]) -> _Value:
    """A method of the first text: `lower` and `upper` take no other, `count`, `find` and `index` one."""
    if name not in _METHODS or len(texts) != (1 if name in ("lower", "upper") else 2):
        raise _Refused
    result: str | int = getattr(texts[0], name)(*texts[1:])
    return result if isinstance(result, str) else Fraction(result)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """Exact for whole exponents, a float's value for roots; refused before it is worked out where it is too large."""
    if exponent.denominator != 1:
        if base < 0:
            raise _Refused
        return _bounded(Fraction(float(base) ** float(exponent)))
    bits = max(abs(base.numerator), base.denominator).bit_length() - 1
    if bits * abs(exponent) > _LARGEST.bit_length():
        raise _Refused
    # A base of 0, 1 or -1 has no bits: only whether its exponent is odd matters.
    whole = int(exponent) if bits else int(exponent) % 2 + 2 * (exponent > 0) - 2 * (exponent < 0)
    return _bounded(base**whole)


def _number(value: _Value) -> Fraction:
    if isinstance(value, str):
        raise _Refused
    return value


def _text(value: _Value) -> str:
    if not isinstance(value, str):
        raise _Refused
    return value


def _bounded(number: Fraction) -> Fraction:
    if max(abs(number.numerator), number.denominator) > _LARGEST:
        raise _Refused
    return number


def _written(value: _Value) -> str | None:
    """The result as a person would write it; the rule stands at the top of the file. An empty text is no result."""
    if isinstance(value, str):
        return value or None
    size = abs(value)
    places = _PLACES
    if (size * 10**places).denominator != 1:
        # 6 significant digits: as many places as bring the first digit to the left of five others.
        places = 2
        while size * 10**places < 10 ** (_DIGITS - 1):
            places += 1
    scaled = round(size * 10**places)
    whole, rest = divmod(scaled, 10**places)
    decimals = str(rest).zfill(places).rstrip("0")
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
