"""data/verify_math.py: what is the same answer, what is not, and that nothing breaks it."""

import random
import time

import pytest

from data.verify_math import extract_answer, is_correct

SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\tfrac34", "3/4"),
    (r"-\frac12", r"\frac{-1}{2}"),
    (r"3\frac12", "7/2"),
    ("3 1/2", "3.5"),
    ("12{,}345", "12345"),
    (r"10,\!080", "10,080"),
    ("1{,}000{,}000", "10^6"),
    (r"5\text{ cm}", "5"),
    ("5 cm", r"5\text{ cm}"),
    (r"15\mbox{ cm}^2", "15"),
    (r"25\,\mathrm{m/s}", "25"),
    (r"\$18.90", "18.90"),
    (r"50\%", "50"),
    (r"x\in[-2,7]", "[-2,7]"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"(-\infty,-1)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,-1)"),
    (r"\frac94\pi", r"\frac{9\pi}{4}"),
    (r"2\sqrt2", r"\sqrt8"),
    (r"\frac1{\sqrt2}", r"\frac{\sqrt2}{2}"),
    (r"\sqrt[3]2", "2^{1/3}"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"1.5\times10^3", "1500"),
    ("1e-3", "0.001"),
    (r"0.\overline{3}", "1/3"),
    (r"\text{east}", "East"),
    (r"\textbf{(B)}\ 12", "B"),
    ("x=5", "5"),
    ("f(x)=x+1", "1+x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("y=2x+1, x=0", "x=0, y=1+2x"),
    (r"90^\circ", "90"),
    (r"x=-2\text{ or }x=3", "-2,3"),
    (r"1\pm\sqrt{19}", r"1+\sqrt{19},1-\sqrt{19}"),
    (r"\begin{pmatrix} 1/2 \\ 0 \end{pmatrix}", r"\begin{pmatrix}0.5\\0\end{pmatrix}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    (r"\binom{5}{2}", "10"),
    ("5!", "120"),
    (r"\log_2 8", "3"),
    (r"\lfloor 7/2 \rfloor", "3"),
    (r"2516_8", r"2516_{8}"),
    (r"\boxed9", "9"),
    (r"\boxed{3}, no: \boxed{4}", "4"),
    ("−3", "-3"),
    (r"$\dfrac{1}{2}$.", r"\frac12"),
    (r"45^\circ", r"45\text{ degrees}"),
    (r"\$5", r"5\text{ dollars}"),
    (r"3\text{ hours}", r"3\text{ hour}"),
    (r"n^2\frac14", r"\frac{n^2}{4}"),
    (r"\log_2\frac12", "-1"),
    (r"\text{2}", "2"),
]
DIFFERENT = [
    ("20", "0.2"),
    ("12,345", "(12,345)"),
    ("1,2", "12"),
    ("1 2", "12"),
    ("(0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("6.2832", r"2\pi"),
    ("3.14159265358979", r"\pi"),
    ("1.4142135623730951", r"\sqrt2"),
    (r"\pm2021", "2021"),
    ("1/2^{99}", "1/2^{98}"),
    (r"\boxed{42", "42"),
    ("1, 2, 3, 4", "3"),
    ("3 or 4", "3"),
    ("x=5", "y=5"),
    (r"36^\circ", r"\$36"),
    (r"5\text{ cm}", r"5\text{ m}"),
    ("1/3", "0.333333"),
    ("east", "seat"),
    (r"\text{A}, \text{B}", "A"),
    ("x^2", "x"),
    (r"\sqrt{x^2}", "x"),
    ("2516_8", "2516_9"),
    ("1,1", "1"),
    (r"\infty", r"-\infty"),
    ("", ""),
    ("Let me guess.\nIt may be 3.", "3"),
    ("10^{10^{10}}", "10^{10^{11}}"),
    ("1e999", "1e998"),
    ("ab-c", "abc"),
    (r"\text{-1}", r"\text{1}"),
    (r"\textbf{3.5}", r"\textbf{35}"),
    (r"\text{x<1}", r"\text{x>1}"),
    (r"5\text{, 6, 7}", "5"),
    (r"1\text{000}", "1"),
    (r"5\text{ million}", "5"),
    (r"5\text{ or fewer}", "5"),
    (r"x\text{-1}", "x"),
    (r"x^2\frac{1}{2}", "x^{5/2}"),
    (r"\sqrt3\frac12", r"\sqrt{3.5}"),
    (r"\frac12\frac13", r"\frac37"),
    ("sqrt(8)", "4sqrt(2)"),
    ("sin(2x)", "2sin(x)"),
    (r"\sigma(6)", r"2\sigma(3)"),
    ("f^{-1}(2)", r"\frac2f"),
    (r"\sin(10^{20})", r"\sin(10^{20}+1)"),
    (r"10^{20}+\sqrt2", r"10^{20}+\sqrt3"),
    ("10^6", r"\sqrt{10^{12}+1}"),
    ("100000", r"\sqrt{10000000001}"),
    (r"10^{12}\sqrt x+1", r"10^{12}\sqrt x"),
    (r"\sqrt{x^{40}+1}", "x^{20}"),
    ("(y=1,x=2)", "(1,2)"),
    ("x=5,y=6", "6,5"),
    ("1 11/2", "6.5"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_the_same_answer_written_otherwise(one, other):
    assert is_correct(one, other) and is_correct(other, one)


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_different_answers_however_alike(one, other):
    assert not is_correct(one, other) and not is_correct(other, one)


@pytest.mark.parametrize("answer", [answer for pair in SAME for answer in pair])
def test_every_answer_is_the_same_as_itself_in_other_dress(answer):
    assert is_correct(answer, answer)
    if "boxed" not in answer and "\n" not in answer:
        for dressed in (rf"\boxed{{{answer}}}", f"${answer}$", f" {answer} ."):
            assert is_correct(dressed, answer), dressed


def test_what_a_response_gives_as_its_answer():
    assert extract_answer(r"a \boxed{\frac{1}{2}} b \boxed{x_{1}} c") == "x_{1}"
    assert extract_answer("first\n#### 12 \nmore") == "12"
    assert extract_answer("**Final answer:** 7\n") == "7"
    assert extract_answer("7") == "7"
    assert extract_answer("one line\nand another") is None
    assert extract_answer(r"\boxed{never closed") is None
    assert is_correct("so\n#### 1,234", "1234")
    assert is_correct("We add.\nThe answer is: 42.", "42")


def test_hostile_text_neither_breaks_nor_delays_it():
    pieces = [piece for pair in (*SAME, *DIFFERENT) for piece in pair]
    pieces += [r"\frac", r"\sqrt", r"\begin{pmatrix}", "{", "}", "(", "[", "^", "_", "!", "9" * 99]
    pieces += [r"\text{", "|", "=", ",", "\\", "²", "١", "\x00", "1/0", "9^9^9^9", "!!!", " " * 99]
    rng = random.Random(0)
    for _ in range(10000):
        one, other = (
            "".join(rng.choice(pieces) for _ in range(rng.randint(1, 8))) * rng.choice([1, 1, 40])
            for _ in range(2)
        )
        began = time.perf_counter()
        is_correct(one, other)
        assert time.perf_counter() - began < 1, (one, other)
