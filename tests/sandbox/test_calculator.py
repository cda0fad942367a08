"""The calculator: results and their format, expressions that it rejects, and agreement with Python."""

from __future__ import annotations

import decimal
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.sandbox.calculator import calculate

RESULTS = {
    "1+1": "2",
    "12/60": "0.2",
    "0.1+0.2": "0.3",
    "20/2": "10",
    "4.0*2.5": "10",
    "10.00": "10",
    ".5*3": "1.5",
    "2*7.": "14",
    "1,200*2": "2400",
    "1,234,567.5+.5": "1234568",
    "7//2": "3",
    "-7//2": "-4",
    "-7%3": "2",
    "0.3//0.1": "3",
    "2**10": "1024",
    "2**-2": "0.25",
    "2**0.5": "1.41421",
    "27**(1/3)": "3",
    "-2**2": "-4",
    "0**0": "1",
    "(-1)**1000000000001": "-1",
    "1**(10**49)": "1",
    "--+-5": "-5",
    "1-1.0": "0",
    "-0.0": "0",
    "1/3": "0.333333",
    "-2/3": "-0.666667",
    "100/3": "33.3333",
    "10000/3": "3333.33",
    "1000000/3": "333333.33",
    "1/3000000": "0.000000333333",
    "1/3*3": "1",
    "1/8192": "0.00012207",
    "1/4096": "0.000244140625",
    "2.999999999/1.00000001": "3",
    "123456789012.5": "123456789012.5",
    "99999999999999999999*99999999999999999999": "9999999999999999999800000000000000000001",
    "  3 +\t4 \n": "7",
    "((((1+2))))*3": "9",
    "'strawberry'.count('r')": "3",
    '"strawberry".count("r")': "3",
    "'Anna'.lower().count('a')": "2",
    "'abc'.upper()": "ABC",
    "'ABC'.lower()": "abc",
    "len('hello')": "5",
    "len('hello'.upper())*2+1": "11",
    "'banana'.find('n')": "2",
    "'banana'.find('x')": "-1",
    "'banana'.index('n')": "2",
    "'1,000 or 2,000'.count(',')": "2",
    "'1,000'.count('000') + 1,000": "1001",
    "\"it's\".count('s')": "1",
    "'größe'.count('ß')": "1",
    "'日本日'.count('日')": "2",
    "'١٢'.count('١')": "1",
    "'(((('.count('(')": "4",
    "'f(x) for x in y'.count('x')": "2",
    "len('')": "0",
}

REJECTED = (
    # incomplete, or not one expression
    *("", " ", "1+", "(1", "1)", "*2", "1 2", "12/60=", "12/60=0.2", "1;2"),
    *("1\n2", "x = 3", "'abc", "'a'.count('a'", "..", "."),
    # malformed numbers, or formats that are not supported
    *("1,23", "1234,567", "1,234,5", "12,34", "1,,000", ",1", "007"),
    *("1_000", "0x10", "0b1", "1e3", "1e999", "2j", "1.2.3"),
    *("１+1", "٣*2", "²", "1⁄2", "2×3", "6÷2", "5−3", "½", "$5", "50%"),
    *("5 apples", "1\u00a0+1", "NaN", "nan", "inf", "-inf"),
    # undefined, or too large
    *("1/0", "1//0", "1%0", "0**-1", "0**-0.5", "(-8)**0.5", "(-8)**(1/3)", "9**9**9", "9**99", "2**-999", "2**1e9"),
    *("10**50*10", "1/10**51", "99999999**99999999", "10**50.5", "(2**0.5)**500", "9" * 51, "0." + "1" * 51),
    *("9**(9**(9**9))", "-9**9**9", "(1/3)**(10**40)"),
    # too long or too deep
    *("1+" * 150 + "1", "-" * 250 + "1", "1" * 1_000_000, "'" + "a" * 1_000_000 + "'"),
    *("(" * 1_000_000, "2**" * 90 + "2"),
    # other Python
    *("True", "None", "...", "x", "abs(-1)", "round(1.5)", "int('3')", "str(3)", "eval('1')", "print(1)", "len"),
    *("[1]", "(1, 2)", "(1,2)", "{1}", "{}", "()", "[1][0]", "'abc'[0]", "'abc'[::-1]", "[x for x in 'abc']"),
    *("1 if 2 else 3", "1 and 2", "not 1", "1<2", "1==1", "'a' in 'abc'"),
    *("1 is 1", "(x:=3)", "lambda: 1", "(lambda: 9)()"),
    *("1|2", "1&2", "1^2", "1<<2", "~1", "2@3", "f'{1}'", "b'a'", "r'a'"),
    *("u'a'", "'''a'b'''", "'\\x41'", "'\\'", "'a\\tb'"),
    *("'a'*9", "'a'+'b'", "-'a'", "'a'/2", "len(5)", "len()"),
    *("len('a','b')", "len(*'ab')", "len(obj='a')", "len.count('a')"),
    *("'a'.count", "'a'.count()", "'a'.count(1)", "'a'.count('a', 0)"),
    *("'a'.count('a','b')", "'a'.lower('x')", "'a'.index('b')"),
    *("'a'.count(sub='a')", "'a'.replace('a','b')", "'%s'%'a'"),
    *("'{0.__class__}'.format('a')", "'a'.join('bc')", "'a'.encode()"),
    *("''.__class__", "''.__class__.__mro__[1].__subclasses__()"),
    *("().__class__.__base__", "(1).__class__", "'a'.count.__self__"),
    *("__import__('os').system('true')", "open('/etc/passwd').read()"),
    *("globals()", "os.environ", "len.__globals__", "5.count('5')"),
    *("'a'.ｃount('a')", "len\u200b('a')", "1\0+1", "'\0'", "'\ud800'"),
    *("\ufeff1", "1 # one", "'a' if 1 else 'b'", "''", "await 1"),
)  # fmt: skip


@pytest.mark.parametrize("expression", RESULTS)
def test_results(expression: str) -> None:
    assert calculate(expression) == RESULTS[expression]


@pytest.mark.parametrize("expression", REJECTED, ids=lambda text: ascii(text[:40]))
def test_no_result(expression: str) -> None:
    assert calculate(expression) is None


def test_enough_rejected_expressions() -> None:
    assert len(set(REJECTED)) == len(REJECTED) > 150


def test_limits() -> None:
    assert calculate("1" * 50) == "1" * 50
    assert calculate("10**50") == "1" + "0" * 50
    assert calculate("+".join("1" * 99)) == "99"
    assert calculate("1" + " " * 298 + "+1") is None
    assert calculate("'" + "a" * 290 + "'.count('a')") is None
    assert calculate("'" + "a" * 287 + "'.count('a')") == "287"


def test_deep_in_a_stack() -> None:
    """A caller that has almost used up its stack gets no result rather than an error."""

    def dive(depth: int) -> str | None:
        return dive(depth - 1) if depth else calculate("1+1+1+1+1+1")

    assert dive(500) == "6"
    results = set()
    for depth in range(500, 1200):
        try:
            results.add(dive(depth))
        except RecursionError:
            break  # before the calculator was called
    assert results <= {"6", None}


# --- against Python's own arithmetic ----------------------------------------------------------------------------------

# An expression, and Python code that evaluates it with exact fractions.
Both = tuple[str, str]


def _literal(text: str) -> Both:
    return text, f"Fraction('{text.replace(',', '')}')"


def _joined(sides: tuple[Both, str, Both]) -> Both:
    (a, exact_a), sign, (b, exact_b) = sides
    return f"({a}){sign}({b})", f"(Fraction({exact_a}){sign}({exact_b}))"


numbers = st.one_of(
    st.integers(0, 10**9).map(str),
    st.integers(0, 10**9).map("{:,}".format),
    st.tuples(st.integers(0, 9999), st.integers(0, 999)).map(lambda n: f"{n[0]}.{n[1]:03}"),
).map(_literal)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(_joined),
        inner.map(lambda both: (f"-({both[0]})", f"(-{both[1]})")),
        st.tuples(inner, st.integers(-3, 3)).map(
            lambda pair: (f"({pair[0][0]})**{pair[1]}", f"({pair[0][1]}**{pair[1]})")
        ),
    ),
    max_leaves=5,
)


def _format(number: Fraction) -> str:
    """Format a number by the rule at the top of calculator.py, with decimals."""
    with decimal.localcontext() as context:
        context.prec = 300
        exact = decimal.Decimal(number.numerator) / number.denominator
        if (number * 10**12).denominator != 1:
            places = max(2, 5 - exact.adjusted())
            exact = exact.quantize(decimal.Decimal(1).scaleb(-places), decimal.ROUND_HALF_EVEN)
        text = f"{exact:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


@settings(max_examples=500, deadline=None)
@given(expressions)
def test_equals_python(both: Both) -> None:
    expression, exact = both
    try:
        number = Fraction(eval(exact, {"Fraction": Fraction}))
    except ZeroDivisionError:
        assert calculate(expression) is None
        return
    result = calculate(expression)
    if result is None:  # only if an intermediate number is too large
        assert _has_large_parts(exact)
    else:
        assert result == _format(number)


def _has_large_parts(exact: str) -> bool:
    """Return True if a part in parentheses is close to the limit of 10**50, or the expression is long."""
    starts, parts = [], [exact]
    for position, character in enumerate(exact):
        if character == "(":
            starts.append(position)
        elif character == ")":
            parts.append(exact[starts.pop() : position + 1])
    for part in parts:
        try:
            number = Fraction(eval(part, {"Fraction": Fraction}))
        except ZeroDivisionError:
            continue
        if max(abs(number.numerator), number.denominator) > 10**45:
            return True
    return len(exact) > 300


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="'\\\r\n", exclude_categories=["Cs"]), max_size=60), st.data())
def test_counts_like_python(text: str, data: st.DataObject) -> None:
    letter = data.draw(st.sampled_from(text) if text else st.just("x"))
    expected = None if "\0" in text else str(text.count(letter))
    assert calculate(f"'{text}'.count('{letter}')") == expected
    assert calculate(f"len('{text}')") == (None if "\0" in text else str(len(text)))


PARTS = ["'ab'", ".count(", "'a'", ")", "len(", "**", "9", "(", "-", ".lower()", ",", "1,000"]


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="0123456789.,+-*/%()'\" \tacdefilnoprtuwx_[]{}:=<>\\\n", max_size=40),
        st.lists(st.sampled_from(PARTS)).map("".join),
    )
)
def test_any_text_gives_a_string_or_none(expression: str) -> None:
    result = calculate(expression)
    assert result is None or (result and len(result) < 1000)


# --- GSM8K ------------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_gsm8k_annotations(shared_data: Path) -> None:
    """Each `<<12/60=0.2>>` of GSM8K, train and test, has the given value; a few are formatted differently."""
    folder = shared_data / "hub" / "openai" / "gsm8k" / "main"
    answers = [
        answer for path in sorted(folder.glob("*.parquet")) for answer in pq.read_table(path)["answer"].to_pylist()
    ]
    assert len(answers) == 7473 + 1319
    formats: Counter[str] = Counter()
    for expression, given_result in re.findall(r"<<(.*?)=(.*?)>>", "\n".join(answers)):
        result = calculate(expression)
        value = calculate(given_result)  # one is a fraction: 3/4
        assert result is not None, expression
        if result == given_result:
            formats["the same"] += 1
        elif result != value:
            formats["another value"] += 1
        elif "/" in given_result:
            formats["a fraction"] += 1
        elif given_result.startswith("."):
            formats["no zero before the point"] += 1
        else:
            assert re.fullmatch(r"\d+\.\d*0", given_result), given_result
            formats["zeros at the end"] += 1
    print(dict(formats))
    assert formats == {"the same": 27175, "zeros at the end": 727, "no zero before the point": 95, "a fraction": 1}
