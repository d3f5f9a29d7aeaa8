"""The plan of a solution: its steps as operations over placeholders. The plan is the class key.

`<<12*3=36>> <<36-5=31>>` becomes `q*q; r1-q`: q is a number of the question, r1 the result of
step 1. Operands of + and * stand in a normal form, so that the order in which a story tells its
numbers does not matter. The same key serves procedural problems and GSM8K.
"""

import ast
import collections
import hashlib
import itertools
import re
from collections.abc import Iterable
from fractions import Fraction

ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+")
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
EXPRESSION = re.compile(r"[\dqr.+*/() -]{1,200}", re.ASCII)
PLACEHOLDER = re.compile(r"q|r[1-9]\d*")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def parse_number(text: str) -> Fraction | None:
  """A decimal number, with thousands commas, a dollar or percent sign; None where it is not one."""
  text = text.strip().strip("$").replace(",", "")
  percent = text.endswith("%")
  text = text.rstrip("%").strip()
  if not DECIMAL.fullmatch(text):  # an exponent could ask for any amount of memory
    return None
  value = Fraction(text)
  return value / 100 if percent else value


def parse_solution(solution: str) -> list[tuple[str, Fraction]]:
  """The annotated steps (expression, result); steps whose result is no number are left out."""
  steps = []
  for expression, result in ANNOTATION.findall(solution):
    value = parse_number(result)
    if value is not None:
      steps.append((expression.strip(), value))
  return steps


def _tree(expression: str) -> ast.expr | None:
  """The syntax of an arithmetic expression over numbers and names, or None."""
  text = expression.replace(",", "").replace("$", "").replace("x", "*").replace("÷", "/")
  text = re.sub(r"(\d(?:[\d.]*))%", r"(\1/100)", text)
  text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # Python has no numbers with leading zeros
  if not EXPRESSION.fullmatch(text.strip()):  # no strings, no exponents, nothing too deep
    return None
  try:
    return ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError):
    return None


def _render(node: ast.expr, leaf) -> tuple[str, int] | None:
  """(text, precedence) of a tree in normal form; `leaf` names numbers and placeholders."""
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    inner = _wrapped([node.operand], leaf, 3)
    return inner and (f"-{inner[0]}", 0)
  if isinstance(node, ast.Constant | ast.Name):
    text = leaf(node)
    return text and (text, 3)
  if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
    return None
  if isinstance(node.op, ast.Add | ast.Sub):
    first, second = (_wrapped(nodes, leaf, 2) for nodes in _signed(node))
    if first is None or second is None:
      return None
    return "-".join(["+".join(sorted(first)), *sorted(second)]), 1
  if isinstance(node.op, ast.Mult):
    factors = _wrapped(_factors(node), leaf, 3)
    return factors and ("*".join(sorted(factors)), 2)
  left, right = _wrapped([node.left], leaf, 2), _wrapped([node.right], leaf, 3)
  return left and right and (f"{left[0]}/{right[0]}", 2)


def _wrapped(nodes: list[ast.expr], leaf, least: int) -> list[str] | None:
  """Texts of operands, in brackets where their precedence is below `least`."""
  parts = [_render(node, leaf) for node in nodes]
  if None in parts:
    return None
  return [text if own >= least else f"({text})" for text, own in parts]


def _signed(node: ast.expr) -> tuple[list[ast.expr], list[ast.expr]]:
  """The terms of a sum that are added, and those that are subtracted."""
  if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add | ast.Sub):
    return [node], []
  plus, minus = _signed(node.left)
  if isinstance(node.op, ast.Sub):
    return plus, [*minus, node.right]
  more, less = _signed(node.right)
  return [*plus, *more], [*minus, *less]


def _factors(node: ast.expr) -> list[ast.expr]:
  """The factors of a product."""
  if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
    return [node]
  return [*_factors(node.left), *_factors(node.right)]


def _value(node: ast.expr, leaf=None) -> Fraction | None:
  """The exact value of a tree; `leaf` gives the values of names."""
  if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
    return Fraction(str(node.value))
  if isinstance(node, ast.Name) and leaf:
    return leaf(node.id)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    inner = _value(node.operand, leaf)
    return None if inner is None else -inner
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    a, b = _value(node.left, leaf), _value(node.right, leaf)
    if a is None or b is None:
      return None
    operator = _OPERATORS[type(node.op)]
    if operator == "/":
      return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b}[operator]
  return None


def evaluate(expression: str) -> Fraction | None:
  """The exact value of an arithmetic expression, None where it is not one."""
  tree = _tree(expression)
  return None if tree is None else _value(tree)


def plan_key(
  solution: str,
  numbers: Iterable[Fraction | int],
  answer: Fraction | int | None = None,
  constants: Iterable[Fraction | int] = (),
) -> str | None:
  """The plan of an annotated solution.

  An operand is the latest earlier result of its value, else a number of the question, else one of
  the constants that everybody knows (60 minutes, 100 cents), which the plan names as it is.

  Args:
    solution: text with `<<expression=result>>` annotations.
    numbers: the numbers that the question gives.
    answer: the final answer, which the last step must give; None asks for no such thing.
    constants: numbers that need not stand in the question.
  Returns:
    The plan, or None where there are no steps, an operand comes from nowhere, a step is never used,
    or the last step is not the answer. Whether a step's result is right is not checked.
  """
  steps = parse_solution(solution)
  given, known = {Fraction(n) for n in numbers}, {Fraction(n) for n in constants}
  if not steps or (answer is not None and steps[-1][1] != answer):
    return None
  results: list[Fraction] = []
  used: set[int] = set()
  plan = []
  for expression, result in steps:

    def leaf(node: ast.expr) -> str | None:
      value = _value(node)
      for index in range(len(results) - 1, -1, -1):  # noqa: B023
        if results[index] == value:  # noqa: B023
          used.add(index)
          return f"r{index + 1}"
      if value in given:
        return "q"
      return str(value) if value in known else None

    tree = _tree(expression)
    text = None if tree is None else _render(tree, leaf)
    if text is None:
      return None
    plan.append(text[0])
    results.append(result)
  if used != set(range(len(steps) - 1)):
    return None
  return "; ".join(plan)


def normalize_plan(text: str) -> str | None:
  """A plan as a model wrote it, in normal form; None where it is not a plan."""

  def leaf(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
      return str(node.value)
    return node.id if PLACEHOLDER.fullmatch(node.id) else None

  steps = []
  for step in text.strip().rstrip(";").split(";"):
    tree = _tree(step)
    rendered = None if tree is None else _render(tree, leaf)
    if rendered is None:
      return None
    steps.append(rendered[0])
  return "; ".join(steps)


def formula(plan: str) -> str:
  """What a plan computes, in a normal form of all its steps together.

  Sums and products within each other are flattened and sorted: `q*q; r1-q` is `q*q-q`, and
  independent steps may come in any order. How often results are used again is part of it.
  """
  made, uses = [], collections.Counter()

  def joined(kind: str, ups: Iterable[tuple], downs: Iterable[tuple]) -> tuple:
    up, down = [], []
    for terms, same, other in ((ups, up, down), (downs, down, up)):
      for term in terms:
        if term[0] == kind:
          same += term[1]
          other += term[2]
        else:
          same.append(term)
    return kind, sorted(up, key=repr), sorted(down, key=repr)

  def of(node: ast.expr) -> tuple:
    if isinstance(node, ast.Constant):
      return ("number", node.value)
    if isinstance(node, ast.Name):
      uses[node.id] += node.id != "q"
      return ("q",) if node.id == "q" else made[int(node.id[1:]) - 1]
    if isinstance(node, ast.UnaryOp):
      return joined("+", [], [of(node.operand)])
    if isinstance(node.op, ast.Add | ast.Sub):
      return joined("+", *(map(of, terms) for terms in _signed(node)))
    if isinstance(node.op, ast.Mult):
      return joined("*", map(of, _factors(node)), [])
    return joined("*", [of(node.left)], [of(node.right)])

  for step in plan.split("; "):
    made.append(of(_tree(step)))
  return repr((made[-1], sorted(n for n in uses.values() if n > 1)))


def share(*parts: object) -> float:
  """A stable hash of the parts as text, uniform in [0, 1)."""
  digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


PARTS = {"id": "annotated", "practice": "practice", "cls": "held_out"}  # of classes, by split


def part_of(plan: str, annotated: float, practice: float) -> str:
  """Whether a class is "annotated", "practice" or "held_out": by a stable hash of its plan.

  Args:
    plan: the class key.
    annotated, practice: shares of classes; the rest is held out.
  """
  place = share(plan)
  if place < annotated:
    return "annotated"
  return "practice" if place < annotated + practice else "held_out"


_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth".split()
_NOUNS = {
  "+": "the sum of",
  "*": "the product of",
  "-": "the difference of",
  "/": "the quotient of",
}


def _operands(node: ast.BinOp) -> list[ast.expr]:
  """Both sides of an operation; all terms of a sum, all factors of a product."""
  if isinstance(node.op, ast.Mult):
    return _factors(node)
  plus, minus = _signed(node)
  return [node.left, node.right] if minus or isinstance(node.op, ast.Div) else plus


def sentence(plan: str) -> str | None:
  """A plan as one English sentence; None where it is not a plan.

  `q*q; r1-q` becomes "First take the product of a given number and a given number; then the
  difference of the first result and a given number." Results are counted in words: a digit in a
  strategy is a number that it gives away.
  """

  def placeholder(name: str) -> str:
    if name == "q":
      return "a given number"
    place = int(name[1:])
    return f"the {_ORDINALS[place - 1]} result" if place < 10 else f"result {place}"

  def phrase(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
      return placeholder(node.id)
    if isinstance(node, ast.UnaryOp):
      return f"minus {phrase(node.operand)}"
    if isinstance(node, ast.BinOp):
      noun = _NOUNS[_OPERATORS[type(node.op)]]
      *first, last = map(phrase, _operands(node))
      return f"{noun} {', '.join(first)} and {last}"
    return str(node.value)

  normal = normalize_plan(plan)
  if not normal:
    return None
  steps = [phrase(_tree(step)) for step in normal.split(";")]
  return f"First take {'; then '.join(steps)}."


def outcomes(plan: str, numbers: Iterable[Fraction | int], most: int = 50_000) -> set[Fraction]:
  """The results that a plan can give on a problem's numbers: one for each way to choose its q's.

  Empty where there are more than `most` ways, or the plan cannot be carried out.
  """
  steps = [_tree(step) for step in plan.split(";")]
  numbers = sorted({Fraction(n) for n in numbers})
  slots = len(re.findall(r"\bq\b", plan))
  if None in steps or len(numbers) ** slots > most:
    return set()
  found = set()
  for chosen in itertools.product(numbers, repeat=slots):
    queue, results = iter(chosen), []

    def leaf(name: str) -> Fraction | None:
      if name == "q":
        return next(queue)  # noqa: B023
      place = int(name[1:]) - 1
      return results[place] if place < len(results) else None  # noqa: B023

    for tree in steps:
      value = _value(tree, leaf)
      if value is None:
        break
      results.append(value)
    else:
      found.add(results[-1])
  return found
