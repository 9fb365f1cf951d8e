"""Rows of programming benchmarks as they are published: their prompts, and their tests.

HumanEval, MBPP and rows with tests in pytest's way give tests in Python. LiveCodeBench, APPS and
sets of APPS' form (TACO, CodeContests' copies) give inputs and outputs, of the whole program or of
one function; they become one JSON object of APPS' form. `verify_code.run_tests` runs both.
"""

import ast
import base64
import binascii
import builtins
import contextlib
import json
import keyword
import pickletools
import re
import sys
import zlib
from typing import Any

from data.cli import InputError
from data.tester import STANDARD, modules_imported, names_used, parsed

UNREADABLE = (  # what hostile or damaged tests by input and output end in
    ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, zlib.error,
)  # fmt: skip
MAX_CASES = 2**28  # bytes of a problem's compressed tests, unpacked

# ------------------------------------------------------------------------------------------ prompts

# The words of LiveCodeBench and of EvalPlus, quoted, so that what is measured is comparable.
LIVE_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and "
    "will generate a correct Python program that matches the specification and passes all tests."
)
LIVE_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your "
    "code within delimiters."
)
LIVE_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)

SELF_CONTAINED = (
    "Please provide a self-contained Python script that solves the following problem in a markdown "
    "code block:\n```\n{}\n```\n"
)


def code_prompt(row: dict[str, Any]) -> Any:
    """The prompt of a row of HumanEval, MBPP, LiveCodeBench or APPS as its harness writes it."""
    task, tests = row.get("prompt") or row.get("text"), row.get("test_list")
    if isinstance(task, str) and task and isinstance(tests, list) and tests:
        return SELF_CONTAINED.format(f'"""\n{task}\n{tests[0]}\n"""')  # this names the function
    if isinstance(task, str) and task and row.get("entry_point"):
        return SELF_CONTAINED.format(task.strip())
    if row.get("prompt"):
        return None
    starter = row.get("starter_code") or ""
    if isinstance(content := row.get("question_content"), str) and isinstance(starter, str):
        how, code = (LIVE_STARTER, starter) if starter else (LIVE_STDIN, "# YOUR CODE HERE")
        text = f"### Question:\n{content}\n\n### Format: {how}\n```python\n{code}\n```\n\n"
        text += "### Answer: (use the provided format with backticks)\n\n"
        return [{"role": "system", "content": LIVE_SYSTEM}, {"role": "user", "content": text}]
    question, given = row.get("question"), row.get("input_output")
    if given and isinstance(question, str) and isinstance(starter, str):
        with contextlib.suppress(ValueError, AttributeError, RecursionError):  # refused later
            called = (json.loads(given) if isinstance(given, str) else given).get("fn_name")
            form = "Call-Based" if called else "Standard Input"
            code = f"\n{starter}" if starter else ""
            return f"\nQUESTION:\n{question}{code}\nUse {form} format\nANSWER:\n"
    return None


# -------------------------------------------------------------------------------------------- tests


def read_tests(row: dict[str, Any], where: str) -> str:
    """The tests of a row as one text, or "" if it has none.

    Raises InputError for tests that cannot be read, that test nothing, or that no program can pass.
    """
    tests = row.get("tests") or row.get("test_list") or row.get("test")
    try:
        cases = row.get("input_output") or tests
        if isinstance(cases, dict) or (isinstance(cases, str) and cases.lstrip()[:1] == "{"):
            return as_cases(json.loads(cases) if isinstance(cases, str) else cases)
        if "public_test_cases" in row or "private_test_cases" in row:
            return live_code_bench(row)
    except UNREADABLE as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{where}: tests by input and output: {why}") from None
    if not tests:
        return ""
    given = [row.get("test_imports") or [], row.get("test_setup_code") or [], tests]
    parts = [part for value in given for part in (value if isinstance(value, list) else [value])]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{where}: tests are texts")
    return tests_in_python("\n".join(parts), row.get("entry_point"), row.get("prompt"), where)


def tests_in_python(text: str, entry_point: Any, prompt: Any, where: str) -> str:
    """Tests in Python as one text that runs them all: assertions, HumanEval's `check`, or test
    functions in pytest's way.

    HumanEval's tests use what its prompt imports and defines, beside the program's function.
    """
    tree = parsed(text)
    if tree is None:
        raise InputError(f"{where}: the tests are not Python")
    try:
        names = names_used(text)
    except RecursionError:
        raise InputError(f"{where}: the tests are nested too deeply") from None
    packages = {(name or "").partition(".")[0] for name in modules_imported(tree)}
    if unknown := packages - {*sys.stdlib_module_names, "solution", ""}:
        what = ", ".join(sorted(unknown))
        raise InputError(f"{where}: the tests import {what}, not in the standard library")
    body = tree.body
    if unfit := [getattr(node, "name", "") for node in body if needs_pytest(node)]:
        raise InputError(f"{where}: the tests' {unfit[0]} can only be run by pytest")
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    tests = list(dict.fromkeys(name for name in functions if name.startswith("test")))
    named = is_name(entry_point)
    if "check" in functions and not tests:
        if not re.search(r"^check\(", text, re.MULTILINE):
            if not named:
                raise InputError(f"{where}: tests with check need the name of an entry_point")
            text += f"\ncheck({entry_point})"
        return (setup_of(prompt, entry_point) + text) if named else text
    if named and (entry_point in vars(builtins) or entry_point in STANDARD):
        text = f"from solution import {entry_point}\n{text}"  # not Python's own
    runs = (ast.Assert, ast.For, ast.While, ast.With, ast.Try)
    calls = (isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) for n in body)
    parts = (part for node in body if isinstance(node, ast.If) for part in ast.walk(node))
    guarded = (isinstance(n, ast.Assert) or getattr(n, "id", None) in functions for n in parts)
    if not (tests or any(isinstance(n, runs) for n in body) or any(calls) or any(guarded)):
        raise InputError(f"{where}: the tests test nothing")
    if not names:
        raise InputError(f"{where}: the tests use nothing of the program's")
    return text + "".join(f"\n{name}()" for name in tests)


def setup_of(prompt: Any, entry_point: str) -> str:
    """What a prompt in Python imports and defines beside the function that it asks for."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    tree = parsed(prompt) if isinstance(prompt, str) else None
    others = (n for n in tree.body if getattr(n, "name", None) != entry_point) if tree else ()
    return "".join(f"{ast.unparse(node)}\n" for node in others if isinstance(node, kinds))


def needs_pytest(node: ast.stmt) -> bool:
    """Whether only pytest could run a statement of tests: a class of tests, or a test function that
    is async or needs arguments."""
    if isinstance(node, ast.ClassDef):
        return any(getattr(part, "name", "").startswith("test") for part in node.body)
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    given = node.args
    needed = (
        len([*given.posonlyargs, *given.args]) > len(given.defaults) or None in given.kw_defaults
    )
    return node.name.startswith("test") and (needed or isinstance(node, ast.AsyncFunctionDef))


def is_name(value: Any) -> bool:
    """Whether a value can be the name of a function."""
    return isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)


def as_cases(given: Any) -> str:
    """Inputs and outputs in APPS' form, checked."""
    name, inputs, outputs = given.get("fn_name"), given["inputs"], given["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise ValueError("expected lists of inputs and outputs")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs, {len(outputs)} outputs")
    if name is not None and not is_name(name):
        raise ValueError(f"a function called {name!r}")
    for given, wanted in zip(inputs, outputs) if name else ():
        if isinstance(given, str):  # as in LiveCodeBench
            for line in (*given.split("\n"), wanted):
                json.loads(line)
        elif not isinstance(given, list):
            raise ValueError("a function's arguments are no list")
    return json.dumps({"fn_name": name, "inputs": inputs, "outputs": outputs})


def live_code_bench(row: dict[str, Any]) -> str:
    """LiveCodeBench's public and private tests in APPS' form."""
    cases: list[dict[str, Any]] = []
    for name in ("public_test_cases", "private_test_cases"):
        given = row.get(name) or []
        cases += unpacked(given) if isinstance(given, str) else given
    metadata = row.get("metadata") or {}
    function = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
    if {case["testtype"] for case in cases} - {"functional" if function else "stdin"}:
        raise ValueError("functional tests need a func_name, and others have none")
    texts = {key: [case[key] for case in cases] for key in ("input", "output")}
    if not all(isinstance(text, str) for values in texts.values() for text in values):
        raise ValueError("expected texts")
    return as_cases({"fn_name": function, "inputs": texts["input"], "outputs": texts["output"]})


def unpacked(text: str) -> list[dict[str, Any]]:
    """Tests as JSON, or in the published form: base64 of zlib of a pickle of the JSON text. The
    pickle is read for its one text, never run."""
    if not text.lstrip().startswith("["):
        try:
            packed = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ValueError("neither JSON nor base64") from None
        stream = zlib.decompressobj()
        pickled = stream.decompress(packed, MAX_CASES)
        if stream.unconsumed_tail:
            raise ValueError("too much data")
        texts: list[str] = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if "UNICODE" in opcode.name and not texts:
                texts.append(str(argument))
            elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "STOP"):
                raise ValueError("a pickle of more than a text")
        if not texts:
            raise ValueError("a pickle without a text")
        text = texts[0]
    return json.loads(text)
