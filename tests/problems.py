"""Programming problems in the fields of a LiveCodeBench row, with a right and a wrong program."""

import base64
import json
import pickle
import random
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

Cases = list[tuple[Any, Any]]


@dataclass
class Problem:
    """One row, a program that passes its tests, and one that fails at least one of them."""

    row: dict[str, str]
    right: str
    wrong: str


def plain(cases: list[dict[str, str]]) -> str:
    """Return the tests as JSON."""
    return json.dumps(cases)


def compressed(cases: list[dict[str, str]]) -> str:
    """Return the tests as private ones are published: JSON, pickled, compressed, in base64."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def listed(cases: Cases, testtype: str) -> list[dict[str, str]]:
    """Return the tests as a row lists them; those of a method are given as (arguments, result)."""
    if testtype == "functional":
        cases = [("\n".join(map(json.dumps, given)), json.dumps(result)) for given, result in cases]
    return [{"input": given, "output": out, "testtype": testtype} for given, out in cases]


def problem(
    ids: str,
    date: str,
    title: str,
    difficulty: str,
    content: str,
    right: str,
    wrong: str,
    public: Cases,
    private: Cases,
    starter: str = "",
    pack: bool = False,
) -> Problem:
    """Return a problem; `ids` is its platform, contest and question, `starter` a method's head."""
    platform, contest, question = ids.split()
    testtype = "functional" if starter else "stdin"
    metadata = {"func_name": starter.split("(")[0]} if starter else {}
    row = {
        "question_title": title,
        "question_content": content.strip("\n"),
        "platform": platform,
        "question_id": question,
        "contest_id": contest,
        "contest_date": f"{date}T00:00:00",
        "starter_code": f"class Solution:\n    def {starter}:\n        " if starter else "",
        "difficulty": difficulty,
        "public_test_cases": plain(listed(public, testtype)),
        "private_test_cases": (compressed if pack else plain)(listed(private, testtype)),
        "metadata": json.dumps(metadata),
    }
    return Problem(row, right.lstrip("\n"), wrong.lstrip("\n"))


def many_numbers(seed: int, top: int) -> tuple[str, str]:
    """Return a test of "Twin Stamps" with 10^5 numbers up to `top`."""
    numbers = random.Random(seed).choices(range(1, top + 1), k=100_000)
    twins = sum(n * (n - 1) // 2 for n in Counter(numbers).values())
    return f"{len(numbers)}\n{' '.join(map(str, numbers))}\n", f"{twins}\n"


def chain(length: int) -> tuple[str, str]:
    """Return a test of "Even Branches" whose tree is one long path with 1 at every node."""
    parents = " ".join(map(str, range(1, length)))
    return f"{length}\n{parents}\n{' '.join('1' * length)}\n", f"{length // 2}\n"


STDIN = [
    problem(
        "atcoder abc901 abc901_a",
        "2023-06-03",
        "Two Kettles",
        "easy",
        """
There are two kettles, with A and B millilitres of tea. A cup holds C millilitres. A cup must be
filled to the brim, and the teas of the two kettles must not be mixed. How many cups can be filled?

Input: three integers A, B and C on one line (0 <= A, B <= 1000, 1 <= C <= 1000).
Output: one integer.
""",
        """
a, b, c = map(int, input().split())
print(a // c + b // c)
""",
        """
a, b, c = map(int, input().split())
print((a + b) // c)
""",
        [("500 300 100\n", "8\n"), ("90 1000 200\n", "5\n")],
        [("150 150 100\n", "2\n"), ("0 0 7\n", "0\n"), ("99 99 99\n", "2\n"), ("9 9 10\n", "0\n")],
    ),
    problem(
        "atcoder abc903 abc903_b",
        "2023-07-08",
        "Climbing Letters",
        "easy",
        """
A word climbs when each of its letters comes later in the alphabet than the letter before it. Print
YES if the word climbs, otherwise NO.

Input: a word of 1 to 100 lowercase letters.
Output: YES or NO.
""",
        """
word = input().strip()
climbs = all(a < b for a, b in zip(word, word[1:]))
print("YES" if climbs else "NO")
""",
        """
word = input().strip()
print("YES" if list(word) == sorted(word) else "NO")
""",
        [("adz\n", "YES\n"), ("abca\n", "NO\n")],
        [("q\n", "YES\n"), ("aab\n", "NO\n"), ("zz\n", "NO\n"), ("acegikmoqsuwy\n", "YES\n")],
        pack=True,
    ),
    problem(
        "codeforces 9101 9101_A",
        "2023-08-05",
        "Level Ground",
        "easy",
        """
A garden has n heaps of earth in a row; the i-th is a_i shovels high. In one move you carry one
shovel of earth away from one heap. What is the smallest number of moves that makes all heaps
equally high?

Input: the number of test cases t; then for each a line with n and a line with n integers a_i.
Output: for each test case one integer on its own line.
""",
        """
import sys

input = sys.stdin.readline

for _ in range(int(input())):
    n = int(input())
    a = list(map(int, input().split()))
    print(sum(a) - n * min(a))
""",
        """
import sys

input = sys.stdin.readline

for _ in range(int(input())):
    n = int(input())
    a = list(map(int, input().split()))
    print(sum(height - a[0] for height in a))
""",
        [("2\n3\n1 2 3\n1\n9\n", "3\n0\n"), ("1\n3\n3 1 2\n", "3\n")],
        [
            ("1\n2\n4 4\n", "0\n"),
            ("3\n2\n0 5\n2\n5 0\n4\n7 7 7 6\n", "5\n5\n3\n"),
            ("1\n5\n1000000000 1000000000 1000000000 1000000000 1\n", "3999999996\n"),
        ],
    ),
    problem(
        "codeforces 9104 9104_B",
        "2023-09-16",
        "Word Tally",
        "medium",
        """
Count how often each word occurs in a text. Print the words from the most frequent to the least;
words equally frequent go in alphabetical order.

Input: any number of lines with words of lowercase letters, separated by spaces.
Output: for each different word a line with the word and its count.
""",
        """
import sys
from collections import Counter

count = Counter(sys.stdin.read().split())
for word, times in sorted(count.items(), key=lambda pair: (-pair[1], pair[0])):
    print(word, times)
""",
        """
import sys
from collections import Counter

count = Counter(sys.stdin.read().split())
for word, times in count.most_common():
    print(word, times)
""",
        [("a b a\n", "a 2\nb 1\n"), ("z y x\n", "x 1\ny 1\nz 1\n")],
        [
            ("one two\n\nthree two\n", "two 2\none 1\nthree 1\n"),
            ("so so so", "so 3\n"),
            ("b\na\nb\na\n", "a 2\nb 2\n"),
        ],
        pack=True,
    ),
    problem(
        "atcoder abc912 abc912_d",
        "2023-11-11",
        "Islands on the Map",
        "medium",
        """
A map has H rows of W characters, '#' for land and '.' for sea. Cells of land which share a side
belong to the same island. Print the number of islands and the size of the largest one (0 if there
is none).

Input: H and W on one line, then H lines with the map.
Output: the number of islands and the largest size, on two lines.
""",
        """
lines = open(0).read().split("\\n")
h, w = map(int, lines[0].split())
land = {(i, j) for i in range(h) for j in range(w) if lines[i + 1][j] == "#"}
islands = largest = 0
while land:
    islands += 1
    size, todo = 0, [land.pop()]
    while todo:
        i, j = todo.pop()
        size += 1
        for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if cell in land:
                land.remove(cell)
                todo.append(cell)
    largest = max(largest, size)
print(islands, largest, sep="\\n")
""",
        """
lines = open(0).read().split("\\n")
h, w = map(int, lines[0].split())
land = {(i, j) for i in range(h) for j in range(w) if lines[i + 1][j] == "#"}
islands = largest = 0
while land:
    islands += 1
    size, todo = 0, [land.pop()]
    while todo:
        i, j = todo.pop()
        size += 1
        for cell in [(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]:
            if cell in land:
                land.remove(cell)
                todo.append(cell)
    largest = max(largest, size)
print(islands, largest, sep="\\n")
""",
        [("2 3\n##.\n..#\n", "2\n2\n"), ("1 1\n.\n", "0\n0\n")],
        [
            ("3 3\n#.#\n###\n..#\n", "1\n6\n"),
            ("3 4\n#..#\n.##.\n#..#\n", "5\n2\n"),
            ("4 4\n####\n#..#\n#..#\n####\n", "1\n12\n"),
        ],
    ),
    problem(
        "codeforces 9110 9110_A",
        "2024-01-06",
        "Box of Plates",
        "easy",
        """
Each line is a command for a pile of plates: "add x" puts a plate with the number x on top, "drop"
takes the top plate away (and does nothing when there is none), "show" prints the number of the top
plate, or "empty".

Input: at most 1000 commands, one a line, up to the end of the input.
Output: a line for each "show".
""",
        """
import sys

pile = []
for line in sys.stdin:
    command, *rest = line.split()
    if command == "add":
        pile.append(int(rest[0]))
    elif command == "drop":
        if pile:
            pile.pop()
    else:
        print(pile[-1] if pile else "empty")
""",
        """
import sys

pile = []
for line in sys.stdin:
    command, *rest = line.split()
    if command == "add":
        pile.append(int(rest[0]))
    elif command == "drop":
        pile.pop()
    else:
        print(pile[-1] if pile else "empty")
""",
        [("add 4\nshow\ndrop\nshow\n", "4\nempty\n"), ("show\n", "empty\n")],
        [
            ("add 1\nadd -2\nshow\ndrop\nshow", "-2\n1\n"),
            ("drop\nadd 7\nshow\n", "7\n"),
            ("add 1\ndrop\ndrop\nshow\nadd 2\nshow\n", "empty\n2\n"),
        ],
        pack=True,
    ),
    problem(
        "atcoder arc914 arc914_c",
        "2024-02-10",
        "Street Lamps",
        "medium",
        """
N lamps stand along a straight street at different distances x_i from its beginning. More lamps are
to be put up at whole distances so that any two neighbouring lamps are equally far apart. No lamp
may be moved, and none stands outside the stretch between the outermost ones. How many lamps must be
added, at the least?

Input: N (2 <= N <= 1000) and then N integers x_i in any order.
Output: one integer.
""",
        """
from functools import reduce
from math import gcd


def main():
    n = int(input())
    x = sorted(map(int, input().split()))
    step = reduce(gcd, (b - a for a, b in zip(x, x[1:])))
    print((x[-1] - x[0]) // step + 1 - n)


if __name__ == "__main__":
    main()
""",
        """
def main():
    n = int(input())
    x = sorted(map(int, input().split()))
    step = min(b - a for a, b in zip(x, x[1:]))
    print((x[-1] - x[0]) // step + 1 - n)


if __name__ == "__main__":
    main()
""",
        [("3\n1 3 7\n", "1\n"), ("3\n0 4 10\n", "3\n")],
        [("4\n0 30 12 4\n", "12\n"), ("2\n5 100\n", "0\n"), ("4\n9 3 0 6\n", "0\n")],
    ),
    problem(
        "codeforces 9117 9117_A",
        "2024-03-09",
        "First Ticket Twice",
        "easy",
        """
Tickets are shown at the door one after another. Print the number of the first ticket that had been
shown before, or -1 if there is none.

Input: the number of tickets n (1 <= n <= 100000), then n ticket numbers on one line.
Output: one integer.
""",
        """
import sys

n = int(input())
seen = set()
for ticket in map(int, input().split()):
    if ticket in seen:
        print(ticket)
        sys.exit()
    seen.add(ticket)
print(-1)
sys.exit(0)
""",
        """
import sys

n = int(input())
tickets = list(map(int, input().split()))
for ticket in sorted(tickets):
    if tickets.count(ticket) > 1:
        print(ticket)
        sys.exit()
print(-1)
sys.exit(0)
""",
        [("5\n1 2 3 2 1\n", "2\n"), ("2\n8 9\n", "-1\n")],
        [("4\n6 6 6 6\n", "6\n"), ("1\n0\n", "-1\n"), ("6\n3 9 9 1 1 3\n", "9\n")],
        pack=True,
    ),
    problem(
        "atcoder abc922 abc922_b",
        "2024-04-20",
        "Fair Judges",
        "easy",
        """
The score of a diver is the mean of the judges' marks, after one highest and one lowest mark have
been struck out. Print the score of each diver with two digits after the point.

Input: for each diver a line with 4 or 6 marks, multiples of 0.5.
Output: a line with the score for each diver. All scores have at most two digits after the point.
""",
        """
import sys

for line in sys.stdin:
    marks = sorted(map(float, line.split()))[1:-1]
    print(sum(marks) / len(marks))
""",
        """
import sys

for line in sys.stdin:
    marks = sorted(map(float, line.split()))
    kept = [mark for mark in marks if mark not in (marks[0], marks[-1])] or marks
    print(sum(kept) / len(kept))
""",
        [("0 0.5 0.5 1\n", "0.50\n"), ("7 9 8.5 6\n10 2 4 5.5\n", "7.75\n4.75\n")],
        [
            ("0 0 10 10\n", "5.00\n"),
            ("5 5 5 9\n8 8 8 8\n", "5.00\n8.00\n"),
            ("1 1 2 3 4 4\n", "2.50\n"),
            ("10 9.5 10 10\n", "10.00\n"),
        ],
    ),
    problem(
        "codeforces 9123 9123_A",
        "2024-06-01",
        "Triangle of Products",
        "easy",
        """
Print a triangle of N rows: row i has the products i*1, i*2, ..., i*i, separated by spaces.

Input: N (1 <= N <= 50).
Output: N rows.
""",
        """
n = int(input())
for i in range(1, n + 1):
    for j in range(1, i + 1):
        print(i * j, end=" ")
    print()
print()
""",
        """
n = int(input())
for i in range(1, n + 1):
    for j in range(1, i + 1):
        print(i * j, end="")
    print()
print()
""",
        [("3\n", "1\n2 4\n3 6 9\n"), ("1\n", "1\n")],
        [
            ("2\n", "1\n2 4\n"),
            ("5\n", "1  \n2 4 \n3 6 9\n4 8 12 16 \n5 10 15 20 25\n\n"),
            ("4", "1\n2 4\n3 6 9\n4 8 12 16"),
        ],
        pack=True,
    ),
    problem(
        "atcoder abc931 abc931_c",
        "2024-07-13",
        "A Pile of Receipts",
        "medium",
        """
A text holds receipts, separated by one empty line. Each line of a receipt is a name (one word) and
a price in cents. For each receipt print "items: k", "total: s" and "dearest: name" (the first one,
if several cost the most); put an empty line between two receipts.

Input: one or more receipts, each of one or more lines.
Output: three lines for each receipt, and the empty lines.
""",
        """
import sys

answers = []
for receipt in sys.stdin.read().strip().split("\\n\\n"):
    lines = [line.split() for line in receipt.split("\\n")]
    prices = [int(price) for _, price in lines]
    dearest = lines[prices.index(max(prices))][0]
    answers.append(f"items: {len(lines)}\\ntotal: {sum(prices)}\\ndearest: {dearest}")
sys.stdout.write("\\n\\n".join(answers))
""",
        """
import sys

answers = []
for receipt in sys.stdin.read().strip().split("\\n\\n"):
    lines = [line.split() for line in receipt.split("\\n")]
    prices = [int(price) for _, price in lines]
    dearest = max(lines, key=lambda line: line[1])[0]
    answers.append(f"items: {len(lines)}\\ntotal: {sum(prices)}\\ndearest: {dearest}")
sys.stdout.write("\\n\\n".join(answers))
""",
        [
            ("tea 250\nbun 120\n", "items: 2\ntotal: 370\ndearest: tea\n"),
            (
                "a 1\n\nb 3\nc 3\n",
                "items: 1\ntotal: 1\ndearest: a\n\nitems: 2\ntotal: 6\ndearest: b\n",
            ),
        ],
        [
            ("pen 90\nbag 1500\n", "items: 2\ntotal: 1590\ndearest: bag\n"),
            ("x 10\ny 10\n", "items: 2\ntotal: 20\ndearest: x\n"),
            (
                "p 5\n\nq 20\nr 100\n\ns 7\n",
                "items: 1\ntotal: 5\ndearest: p\n\nitems: 2\ntotal: 120\ndearest: r\n\n"
                "items: 1\ntotal: 7\ndearest: s\n",
            ),
        ],
    ),
    problem(
        "codeforces 9130 9130_D",
        "2024-09-07",
        "Even Branches",
        "hard",
        """
A tree has n nodes; node 1 is the root, and each node bears a number. The weight of a node is the
sum of the numbers at the node itself and at all the nodes below it. Count the nodes of even weight.

Input: n (1 <= n <= 5000); a line with the parents of the nodes 2, ..., n; a line with the n
numbers.
Output: one integer.
""",
        """
import sys

sys.setrecursionlimit(10**6)
n, *rest = map(int, sys.stdin.read().split())
parents, numbers = rest[: n - 1], rest[n - 1 :]
children = [[] for _ in range(n)]
for node, parent in enumerate(parents, 1):
    children[parent - 1].append(node)
even = 0


def weight(node):
    global even
    total = numbers[node]
    for child in children[node]:
        total += weight(child)
    even += total % 2 == 0
    return total


weight(0)
print(even)
""",
        """
import sys

sys.setrecursionlimit(10**6)
n, *rest = map(int, sys.stdin.read().split())
parents, numbers = rest[: n - 1], rest[n - 1 :]
children = [[] for _ in range(n)]
for node, parent in enumerate(parents, 1):
    children[parent - 1].append(node)
even = 0


def weight(node):
    global even
    total = numbers[node]
    even += total % 2 == 0
    for child in children[node]:
        total += weight(child)
    return total


weight(0)
print(even)
""",
        [("3\n1 1\n1 2 3\n", "2\n"), ("1\n\n5\n", "0\n")],
        [chain(10), chain(3000), ("5\n1 2 2 1\n2 4 6 8 1\n", "3\n")],
        pack=True,
    ),
    problem(
        "atcoder abc940 abc940_c",
        "2024-11-02",
        "Twin Stamps",
        "medium",
        """
A collector has N stamps; the i-th has the value v_i. In how many ways can two stamps of the same
value be picked? The order in which they are picked does not matter.

Input: N (1 <= N <= 200000), then N integers v_i (1 <= v_i <= 10^9).
Output: one integer.
""",
        """
import sys
from collections import Counter


def solve():
    n = int(sys.stdin.readline())
    count = Counter(sys.stdin.readline().split())
    sys.stdout.write(str(sum(k * (k - 1) // 2 for k in count.values())) + "\\n")


solve()
""",
        """
import sys
from collections import Counter


def solve():
    n = int(sys.stdin.readline())
    count = Counter(sys.stdin.readline().split())
    sys.stdout.write(str(sum(k // 2 for k in count.values())) + "\\n")


solve()
""",
        [("5\n1 2 1 3 3\n", "2\n"), ("1\n7\n", "0\n")],
        [("3\n4 4 4\n", "3\n"), many_numbers(1, 1000), many_numbers(2, 10**9)],
        pack=True,
    ),
    problem(
        "codeforces 9138 9138_A",
        "2024-12-14",
        "Return Flight",
        "easy",
        """
A drone obeys a string of the letters L, R, U and D and flies one metre left, right, up or down for
each. Does it end where it began?

Input: the number of test cases t, then t strings, one a line.
Output: YES or NO for each test case.
""",
        """
MOVES = {"L": -1, "R": 1, "U": 1j, "D": -1j}


def solve(path):
    return sum(MOVES[letter] for letter in path) == 0


if __name__ == "__main__":
    t = int(input())
    for _ in range(t):
        print("YES" if solve(input().strip()) else "NO")
""",
        """
MOVES = {"L": -1, "R": 1, "U": 1, "D": -1}


def solve(path):
    return sum(MOVES[letter] for letter in path) == 0


if __name__ == "__main__":
    t = int(input())
    for _ in range(t):
        print("YES" if solve(input().strip()) else "NO")
""",
        [("2\nLR\nUUD\n", "YES\nNO\n"), ("1\nLURD\n", "YES\n")],
        [("1\nUL\n", "NO\n"), ("3\nR\nDU\nLLRD\n", "NO\nYES\nNO\n"), ("1\nUUDD\n", "YES\n")],
    ),
    problem(
        "atcoder arc951 arc951_d",
        "2025-02-22",
        "Painted Fences",
        "hard",
        """
N fence posts stand in a row, and there are K colours of paint. Each post gets one colour, and no
three posts in a row may have the same one. Print the number of ways to paint them, modulo
998244353.

Input: N and K (1 <= N <= 100000, 1 <= K <= 10^9).
Output: one integer.
""",
        """
MOD = 998244353
n, k = [int(number) for number in input().split()]
same, different = 0, k % MOD
for _ in range(n - 1):
    same, different = different, (same + different) * (k - 1) % MOD
print((same + different) % MOD)
""",
        """
MOD = 998244353
n, k = [int(number) for number in input().split()]
ways = k % MOD
for _ in range(n - 1):
    ways = ways * (k - 1) % MOD
print(ways)
""",
        [("1 5\n", "5\n"), ("3 2\n", "6\n")],
        [("3 1\n", "0\n"), ("2 3\n", "9\n"), ("4 2\n", "10\n"), ("4 3\n", "66\n")],
    ),
]

FUNCTIONAL = [
    problem(
        "leetcode weekly-contest-901 9001",
        "2023-06-18",
        "Guests of Honour",
        "easy",
        """
Guests queue in the order of the list `ages`. Those of at least `limit` years go to the front;
within both groups the order stays as it was. Return the new queue.
""",
        """
from typing import List


class Solution:
    def seatGuests(self, ages: List[int], limit: int) -> List[int]:
        return sorted(ages, key=lambda age: age < limit)
""",
        """
from typing import List


class Solution:
    def seatGuests(self, ages: List[int], limit: int) -> List[int]:
        return sorted(ages, reverse=True)
""",
        [(([70, 30, 80, 20], 65), [70, 80, 30, 20]), (([90, 66, 9, 5], 65), [90, 66, 9, 5])],
        [(([], 1), []), (([1, 2, 3], 50), [1, 2, 3]), (([10, 20], 15), [20, 10])],
        "seatGuests(self, ages: List[int], limit: int) -> List[int]",
    ),
    problem(
        "leetcode weekly-contest-904 9012",
        "2023-07-23",
        "Short Form of a Line",
        "easy",
        """
Shorten the string `text`: each run of the same character, longer than two, becomes the character
followed by the length of the run. Shorter runs stay. The string may hold any characters.
""",
        """
class Solution:
    def shorten(self, text: str) -> str:
        parts = []
        for letter, run in groupby(text):
            size = len(list(run))
            parts.append(f"{letter}{size}" if size > 2 else letter * size)
        return "".join(parts)
""",
        """
class Solution:
    def shorten(self, text: str) -> str:
        parts = []
        for letter in dict.fromkeys(text):
            size = text.count(letter)
            parts.append(f"{letter}{size}" if size > 2 else letter * size)
        return "".join(parts)
""",
        [(("aaabb",), "a3bb"), (("abab",), "abab")],
        [(("",), ""), (('"""\n\n\n\\',), '"3\n3\\'), (("ééééx",), "é4x")],
        "shorten(self, text: str) -> str",
        pack=True,
    ),
    problem(
        "leetcode biweekly-contest-911 9027",
        "2023-08-26",
        "One Summit",
        "easy",
        """
Return true if the heights on a walk first rise strictly and then fall strictly; both parts have at
least one step.
""",
        """
from typing import List


class Solution:
    def hasOneSummit(self, heights: List[int]) -> bool:
        top = heights.index(max(heights))
        up, down = heights[: top + 1], heights[top:]
        if len(up) < 2 or len(down) < 2:
            return False
        rises = all(a < b for a, b in zip(up, up[1:]))
        return rises and all(a > b for a, b in zip(down, down[1:]))
""",
        """
from typing import List


class Solution:
    def hasOneSummit(self, heights: List[int]) -> bool:
        top = heights.index(max(heights))
        up, down = heights[: top + 1], heights[top:]
        rises = all(a < b for a, b in zip(up, up[1:]))
        return rises and all(a > b for a, b in zip(down, down[1:]))
""",
        [(([1, 5, 2],), True), (([1, 5, 5, 2],), False)],
        [(([1, 2, 3],), False), (([3, 1],), False), (([0, 2, 1, 2],), False), (([0, 9, 8],), True)],
        "hasOneSummit(self, heights: List[int]) -> bool",
    ),
    problem(
        "leetcode weekly-contest-915 9033",
        "2023-10-01",
        "The Middle of the Queue",
        "easy",
        """
Return the median of the waiting times. For an even number of them it is the mean of the two in the
middle. Return it as a floating point number.
""",
        """
from typing import List


class Solution:
    def middleWait(self, times: List[int]) -> float:
        times = sorted(times)
        half = len(times) // 2
        if len(times) % 2:
            return float(times[half])
        return (times[half - 1] + times[half]) / 2
""",
        """
from typing import List


class Solution:
    def middleWait(self, times: List[int]) -> float:
        times = sorted(times)
        half = len(times) // 2
        if len(times) % 2:
            return float(times[half])
        return (times[half - 1] + times[half]) // 2
""",
        [(([3, 1, 2],), 2.0), (([5, 1],), 3.0)],
        [(([4, 1, 2, 3],), 2.5), (([9],), 9.0), (([-2, -1],), -1.5)],
        "middleWait(self, times: List[int]) -> float",
        pack=True,
    ),
    problem(
        "leetcode weekly-contest-920 9048",
        "2023-12-10",
        "The Odd Sock",
        "medium",
        """
Return the first colour in `socks` that occurs an odd number of times, or null if there is none.
""",
        """
class Solution:
    def oddSock(self, socks: List[str]) -> Optional[str]:
        count = Counter(socks)
        return next((colour for colour in socks if count[colour] % 2), None)
""",
        """
class Solution:
    def oddSock(self, socks: List[str]) -> Optional[str]:
        count = Counter(socks)
        return next((colour for colour in socks if count[colour] == 1), None)
""",
        [((["red", "blue", "red"],), "blue"), ((["b", "c", "b", "b"],), "b")],
        [(([],), None), ((["x", "x", "x"],), "x"), ((["a", "a"],), None)],
        "oddSock(self, socks: List[str]) -> Optional[str]",
    ),
    problem(
        "leetcode biweekly-contest-924 9056",
        "2024-01-20",
        "Ragged Columns",
        "medium",
        """
The rows of a table may differ in length. Return the list of its columns: column j has, from top to
bottom, the j-th entries of the rows that are long enough.
""",
        """
from typing import List


class Solution:
    def columns(self, rows: List[List[int]]) -> List[List[int]]:
        width = max(map(len, rows), default=0)
        return [[row[j] for row in rows if j < len(row)] for j in range(width)]
""",
        """
from typing import List


class Solution:
    def columns(self, rows: List[List[int]]) -> List[List[int]]:
        return [list(column) for column in zip(*rows)]
""",
        [(([[1, 2], [3, 4]],), [[1, 3], [2, 4]]), (([[1], [2, 3], []],), [[1, 2], [3]])],
        [(([[7]],), [[7]]), (([],), []), (([[], [5, 6, 7]],), [[5], [6], [7]])],
        "columns(self, rows: List[List[int]]) -> List[List[int]]",
        pack=True,
    ),
    problem(
        "leetcode weekly-contest-930 9065",
        "2024-02-25",
        "Longest Sunshine",
        "medium",
        """
`hours[i]` is the number of hours of sunshine on day i. Find the longest stretch of days that all
had at least `least` hours, and return [first day, last day]; the earliest such stretch if there are
several, and [-1, -1] if there is none.
""",
        """
from typing import List


class Solution:
    def sunniest(self, hours: List[int], least: int) -> List[int]:
        best = (0, -1, -1)
        start = 0
        for day, count in enumerate(hours):
            if count < least:
                start = day + 1
            elif day - start + 1 > best[0]:
                best = (day - start + 1, start, day)
        return best[1:]
""",
        """
from typing import List


class Solution:
    def sunniest(self, hours: List[int], least: int) -> List[int]:
        best = (0, -1, -1)
        start = 0
        for day, count in enumerate(hours):
            if count < least:
                start = day + 1
            elif day - start + 1 >= best[0]:
                best = (day - start + 1, start, day)
        return best[1:]
""",
        [(([1, 5, 6, 0], 4), [1, 2]), (([1, 1], 2), [-1, -1])],
        [(([9, 0, 9], 9), [0, 0]), (([], 3), [-1, -1]), (([2, 2, 1, 3, 3, 3], 2), [3, 5])],
        "sunniest(self, hours: List[int], least: int) -> List[int]",
    ),
    problem(
        "leetcode biweekly-contest-931 9074",
        "2024-04-06",
        "Prices with a Voucher",
        "easy",
        """
Return the prices after `voucher` has been taken off each of them, but no price falls below zero.
`voucher` is null if there is none; then the prices stay.
""",
        """
class Solution:
    def reduced(self, prices: List[float], voucher: Optional[float]) -> List[float]:
        if voucher is None:
            return prices
        return [max(0.0, price - voucher) for price in prices]
""",
        """
class Solution:
    def reduced(self, prices: List[float], voucher: Optional[float]) -> List[float]:
        if not voucher:
            return prices
        return [price - voucher for price in prices]
""",
        [(([2.5, 4.0], 0.5), [2.0, 3.5]), (([1.25], None), [1.25])],
        [(([0.25, 8.0], 1.0), [0.0, 7.0]), (([], 0.5), []), (([3.5, 0.0], 0.0), [3.5, 0.0])],
        "reduced(self, prices: List[float], voucher: Optional[float]) -> List[float]",
        pack=True,
    ),
    problem(
        "leetcode weekly-contest-938 9082",
        "2024-05-19",
        "Melting Ingots",
        "medium",
        """
Two ingots of weights a and b are melted into one of weight a + b at the cost a + b. Return the
least cost at which all the ingots can be made into one.
""",
        """
class Solution:
    def meltCost(self, weights: List[int]) -> int:
        heap = list(weights)
        heapify(heap)
        cost = 0
        while len(heap) > 1:
            both = heappop(heap) + heappop(heap)
            cost += both
            heappush(heap, both)
        return cost
""",
        """
class Solution:
    def meltCost(self, weights: List[int]) -> int:
        weights = sorted(weights)
        return sum(list(accumulate(weights))[1:])
""",
        [(([1, 2, 3],), 9), (([2, 2, 2, 2],), 16)],
        [(([5],), 0), (([],), 0), (([10, 1],), 11), (([1, 1, 1, 1, 5],), 17)],
        "meltCost(self, weights: List[int]) -> int",
    ),
    problem(
        "leetcode biweekly-contest-940 9090",
        "2024-07-06",
        "Petrol for the Road",
        "medium",
        """
The i-th stage of a tour takes `litres[i]` litres of petrol; the stages are driven in order. For
each tank in `tanks` return how many stages can be finished with that many litres.
""",
        """
class Solution:
    def stages(self, litres: List[int], tanks: List[int]) -> List[int]:
        needed = list(accumulate(litres))
        return [bisect_right(needed, tank) for tank in tanks]
""",
        """
class Solution:
    def stages(self, litres: List[int], tanks: List[int]) -> List[int]:
        needed = list(accumulate(litres))
        return [bisect_left(needed, tank) for tank in tanks]
""",
        [(([3, 4, 5], [2, 8, 99]), [0, 2, 3]), (([3, 4, 5], [3, 7, 12]), [1, 2, 3])],
        [(([1], [0]), [0]), (([], [5]), [0]), (([2, 2], []), [])],
        "stages(self, litres: List[int], tanks: List[int]) -> List[int]",
        pack=True,
    ),
    problem(
        "leetcode weekly-contest-947 9101",
        "2024-08-18",
        "Steps of Two Dancers",
        "hard",
        """
A dancer goes exactly `length` tiles forward with steps of 1, 2 or 3 tiles, but never takes two
steps of 3 in a row. In how many ways can this be done? Return the number modulo 1000000007.
""",
        """
class Solution:
    def danceWays(self, length: int) -> int:
        @cache
        def ways(left, after_three):
            if left == 0:
                return 1
            total = sum(ways(left - step, False) for step in (1, 2) if step <= left)
            if left >= 3 and not after_three:
                total += ways(left - 3, True)
            return total % 1000000007

        return ways(length, False)
""",
        """
class Solution:
    def danceWays(self, length: int) -> int:
        @cache
        def ways(left):
            if left == 0:
                return 1
            return sum(ways(left - step) for step in (1, 2, 3) if step <= left) % 1000000007

        return ways(length)
""",
        [((3,), 4), ((6,), 23)],
        [((0,), 1), ((5,), 13), ((1,), 1), ((7,), 42)],
        "danceWays(self, length: int) -> int",
    ),
    problem(
        "leetcode biweekly-contest-950 9110",
        "2024-10-12",
        "Out of the Maze",
        "hard",
        """
In a maze of strings, '#' is a wall. A mouse starts in the upper left cell and moves up, down, left
or right; the cheese is in the lower right cell. Return the least number of moves to the cheese, or
-1 if it cannot be reached.
""",
        """
import collections
from typing import List


class Solution:
    def moves(self, maze: List[str]) -> int:
        h, w = len(maze), len(maze[0])
        queue, distance = collections.deque([(0, 0)]), {(0, 0): 0}
        while queue:
            i, j = queue.popleft()
            if (i, j) == (h - 1, w - 1):
                return distance[i, j]
            for a, b in ((i + 1, j), (i, j + 1), (i - 1, j), (i, j - 1)):
                if 0 <= a < h and 0 <= b < w and maze[a][b] != "#" and (a, b) not in distance:
                    distance[a, b] = distance[i, j] + 1
                    queue.append((a, b))
        return -1
""",
        """
from typing import List


class Solution:
    def moves(self, maze: List[str]) -> int:
        h, w = len(maze), len(maze[0])
        reached = {(0, 0)}
        for i in range(h):
            for j in range(w):
                if maze[i][j] != "#" and {(i - 1, j), (i, j - 1)} & reached:
                    reached.add((i, j))
        return h + w - 2 if (h - 1, w - 1) in reached else -1
""",
        [(([".#", ".."],), 2), (([".#", "#."],), -1)],
        [
            ((["."],), 0),
            (([".#...", ".#.#.", "...#."],), 10),
            (([".....", "####.", ".....", ".####", "....."],), 16),
        ],
        "moves(self, maze: List[str]) -> int",
        pack=True,
    ),
    problem(
        "leetcode weekly-contest-958 9122",
        "2024-11-24",
        "Gears That Meet",
        "medium",
        """
Gears with the given numbers of teeth turn together, one tooth at a time. Return the numbers of full
turns that each gear has made when all of them are, for the first time, as they were at the start.
""",
        """
from functools import reduce
from math import gcd
from typing import List


class Solution:
    def turns(self, teeth: List[int]) -> List[int]:
        common = reduce(lambda a, b: a * b // gcd(a, b), teeth)
        return tuple(common // count for count in teeth)
""",
        """
from functools import reduce
from typing import List


class Solution:
    def turns(self, teeth: List[int]) -> List[int]:
        common = reduce(lambda a, b: a * b, teeth)
        return tuple(common // count for count in teeth)
""",
        [(([2, 3],), [3, 2]), (([4, 6],), [3, 2])],
        [(([5],), [1]), (([8, 8, 8],), [1, 1, 1]), (([1, 2, 4],), [4, 2, 1])],
        "turns(self, teeth: List[int]) -> List[int]",
    ),
    problem(
        "leetcode biweekly-contest-962 9133",
        "2025-01-11",
        "Shelves by Genre",
        "medium",
        """
`books` holds pairs [genre, title]. Put the books of each genre on shelves of at most `size` titles.
Genres go in alphabetical order and the titles of a genre in alphabetical order too. Return a list
of [genre, shelf, shelf, ...], where each shelf is a list of titles.
""",
        """
class Solution:
    def shelve(self, books: List[List[str]], size: int) -> List[List]:
        genres = defaultdict(list)
        for genre, title in sorted(books):
            genres[genre].append(title)
        return [
            [genre] + [titles[i : i + size] for i in range(0, len(titles), size)]
            for genre, titles in genres.items()
        ]
""",
        """
class Solution:
    def shelve(self, books: List[List[str]], size: int) -> List[List]:
        genres = defaultdict(list)
        for genre, title in books:
            genres[genre].append(title)
        return [
            [genre] + [titles[i : i + size] for i in range(0, len(titles), size)]
            for genre, titles in sorted(genres.items())
        ]
""",
        [
            (([["b", "x"], ["a", "y"], ["b", "z"]], 1), [["a", ["y"]], ["b", ["x"], ["z"]]]),
            (([], 3), []),
        ],
        [
            (([["a", "q"], ["a", "p"], ["a", "r"]], 2), [["a", ["p", "q"], ["r"]]]),
            (([["m", "1"], ["k", "2"]], 5), [["k", ["2"]], ["m", ["1"]]]),
        ],
        "shelve(self, books: List[List[str]], size: int) -> List[List]",
        pack=True,
    ),
    problem(
        "leetcode weekly-contest-970 9145",
        "2025-03-16",
        "Closest Villages",
        "hard",
        """
Villages lie at the points [x, y]. Return the smallest distance, in steps along the axes, between
two different villages of the list, and whether some two of them lie at the same point, as a list
[distance, same]. The distance is null if there are fewer than two villages.
""",
        """
class Solution:
    def nearest(self, villages: List[List[int]]) -> List:
        best = inf
        for (a, b), (c, d) in combinations(villages, 2):
            best = min(best, abs(a - c) + abs(b - d))
        return [None if best == inf else best, best == 0]
""",
        """
class Solution:
    def nearest(self, villages: List[List[int]]) -> List:
        best = inf
        for (a, b), (c, d) in combinations(villages, 2):
            best = min(best, max(abs(a - c), abs(b - d)))
        return [None if best == inf else best, best == 0]
""",
        [(([[0, 0], [5, 0], [0, 7]],), [5, False]), (([[1, 1], [1, 1]],), [0, True])],
        [
            (([],), [None, False]),
            (([[0, 0], [2, 2], [9, 9]],), [4, False]),
            (([[3, 4]],), [None, False]),
        ],
        "nearest(self, villages: List[List[int]]) -> List",
        pack=True,
    ),
]

PROBLEMS = STDIN + FUNCTIONAL
