"""The vocabulary of the word problems: domains, relations, phrasings, names and things.

A story carries one running quantity. A relation changes it by one or two operations:

  add r+a   sub r-a   mul r*a   div r/a   add_mul r+a*b   sub_mul r-a*b   mul_add r*a+b

Cue words ("more", "each", "times", "gives", "Then") stand in relations of different
operations on purpose. Each relation's last phrasing is held out for the split `lex`.
"""

import dataclasses

EXCHANGE = "exchange"  # the relation that leads from one domain to another
ASIDE = "aside"  # a sentence with a number that does not matter


@dataclasses.dataclass(frozen=True)
class Relation:
  """One way to change the running quantity.

  Phrasings speak of {n} (who has it), {m} (somebody else), {u} (its unit), {a} and {b} (numbers).
  """

  name: str
  form: str
  phrasings: tuple[str, ...]


RELATIONS: dict[str, tuple[Relation, ...]] = {
  "things": (
    Relation("find", "add", (
      "{n} finds {a} more {u}.", "{m} gives {n} {a} more {u}.",
      "Then {n} gets {a} {u} from {m}.", "{n} picks up another {a} {u}.")),
    Relation("lose", "sub", (
      "{n} loses {a} {u}.", "{n} gives {a} {u} to {m}.",
      "Then {m} takes {a} of the {u}.", "{a} of the {u} break.")),
    Relation("collect", "mul", (
      "Soon {n} has {a} times as many {u}.", "Now there are {a} boxes with this many {u} each.",
      "The {u} grow to {a} times as many.", "{n} makes {a} piles as big as this.")),
    Relation("share", "div", (
      "{n} shares the {u} among {a} friends in equal parts and looks at one part.",
      "{n} puts the {u} into {a} equal bags and takes one bag.",
      "The {u} go into {a} equal boxes and {n} keeps one box.",
      "{n} splits the {u} into {a} equal piles and picks one.")),
    Relation("bags", "add_mul", (
      "{n} gets {a} bags with {b} {u} each.", "{m} gives {n} {a} boxes with {b} more {u} each.",
      "Then {n} finds {a} boxes of {b} {u} each.", "{a} friends hand {n} {b} {u} each.")),
    Relation("gifts", "sub_mul", (
      "{n} gives {a} friends {b} {u} each.", "{a} friends take {b} of the {u} each.",
      "Then {n} loses {a} bags with {b} {u} each.", "{n} hands {a} people {b} {u} each.")),
  ),
  "money": (
    Relation("earn", "add", (
      "{n} earns {a} more {u}.", "{m} pays {n} {a} {u}.",
      "Then {n} gets {a} {u} for work.", "{n} is given another {a} {u}.")),
    Relation("spend", "sub", (
      "{n} spends {a} {u}.", "{n} pays {a} {u} to {m}.",
      "Then {n} gives {a} {u} for a book.", "{n} hands over {a} {u}.")),
    Relation("grow", "mul", (
      "The money grows to {a} times as much.", "Soon {n} has {a} times as many {u}.",
      "{m} has {a} times as much and gives it all to {n} for this.",
      "The money becomes {a} times as big.")),
    Relation("split", "div", (
      "{n} splits the {u} among {a} people in equal parts and keeps one part.",
      "The {u} go to {a} friends in equal parts and {n} looks at one part.",
      "{n} puts the {u} into {a} equal boxes and takes one box.",
      "{a} people share the {u} in equal parts and {n} is one of them.")),
    Relation("sell", "add_mul", (
      "{n} sells {a} books for {b} {u} each.", "{m} pays {n} for {a} days {b} more {u} each.",
      "Then {n} sells {a} toys at {b} {u} each.", "{a} people hand {n} {b} {u} each.")),
    Relation("buy", "sub_mul", (
      "{n} buys {a} books for {b} {u} each.", "{n} pays {a} friends {b} {u} each.",
      "Then {n} buys {a} toys at {b} {u} each.", "{n} hands {a} people {b} {u} each.")),
  ),
  "work": (
    Relation("extra", "add", (
      "{n} does {a} more {u}.", "{m} does {a} {u} for {n}.",
      "Then {n} gets through {a} {u} more.", "{n} manages another {a} {u}.")),
    Relation("fewer", "sub", (
      "{n} does {a} {u} less.", "{m} takes {a} of the {u} away.",
      "Then {a} of the {u} are bad and do not count.", "{a} of the {u} go missing.")),
    Relation("daily", "mul", (
      "{n} does this each day for {a} days.", "It goes on like this for {a} days.",
      "{m} does {a} times as many {u} and gives them to {n} for these.",
      "{n} repeats this on {a} days.")),
    Relation("pace", "div", (
      "It takes {a} days of equal work and {n} looks at one day.",
      "{n} splits the {u} into {a} equal days and counts one day.",
      "{a} friends do the {u} in equal parts and {n} does one part.",
      "{n} is one of {a} people who do equal parts.")),
    Relation("shift", "mul_add", (
      "{n} does this for {a} days and then {b} more {u}.",
      "It goes on for {a} days and {m} gives {b} more {u}.",
      "{n} does {a} times as many {u} and {b} more.",
      "{n} repeats this on {a} days and manages another {b} {u}.")),
    Relation("rest", "sub_mul", (
      "On each of {a} days {b} of the {u} are bad and do not count.",
      "{a} friends take {b} of the {u} each.",
      "Then {n} gives {a} people {b} {u} each.", "{b} {u} go missing on {a} days each.")),
  ),
  "travel": (
    Relation("further", "add", (
      "{n} goes {a} more {u}.", "{m} takes {n} {a} {u} further.",
      "Then {n} drives another {a} {u}.", "{n} walks on for {a} {u}.")),
    Relation("back", "sub", (
      "{n} goes back {a} {u}.", "{n} gives up {a} of the {u}.",
      "Then {n} takes a way that is {a} {u} less.", "{n} walks back for {a} {u}.")),
    Relation("trips", "mul", (
      "{n} makes this trip {a} times.",
      "{m} goes {a} times as many {u} and takes {n} along for this.",
      "{n} does this each day for {a} days.", "{n} repeats the way {a} times.")),
    Relation("legs", "div", (
      "The way has {a} equal parts and {n} goes one part.",
      "{n} splits the {u} into {a} equal days and looks at one day.",
      "It takes {a} equal hours and {n} counts one hour.",
      "{n} walks one of {a} equal parts.")),
    Relation("hours", "add_mul", (
      "{n} drives {a} hours at {b} {u} each.", "{n} goes {a} more days with {b} {u} each.",
      "Then {m} takes {n} {a} times for {b} {u} each.",
      "{n} walks on for {a} hours at {b} {u} each.")),
    Relation("tour", "mul_add", (
      "{n} makes this trip {a} times and then {b} more {u}.",
      "{n} does this for {a} days and goes {b} {u} more.",
      "{n} goes {a} times as many {u} and {b} more.",
      "{n} repeats the way {a} times and walks on for {b} {u}.")),
  ),
}  # fmt: skip

EXCHANGE_RELATION = Relation(EXCHANGE, "mul", (
  "For each {v} {n} gets {a} {u}.", "Each {v} gives {n} {a} {u}.",
  "{m} gives {n} {a} {u} for each {v}.", "{n} is handed {a} {u} for each {v}."))  # fmt: skip

OPENINGS = {
  "things": ("{n} has {a} {u}.", "There are {a} {u} and {n} owns them."),
  "money": ("{n} has {a} {u}.", "{n} starts with {a} {u}."),
  "work": ("{n} does {a} {u}.", "In a day {n} does {a} {u}."),
  "travel": ("{n} goes {a} {u}.", "{n} drives {a} {u}."),
}
QUESTIONS = ("How many {u} is that now?", "How many {u} are there in the end?")
ASIDES = ("{m} has {a} {w}.", "There are {a} {w} too and {m} owns them.")

UNITS = {  # singular, plural; the last two of each domain with several are held out
  "things": (
    ("apple", "apples"), ("stamp", "stamps"), ("card", "cards"), ("shell", "shells"),
    ("coin", "coins"), ("ball", "balls"), ("lemon", "lemons"), ("button", "buttons"),
  ),
  "money": (("dollar", "dollars"),),
  "work": (
    ("page", "pages"), ("chair", "chairs"), ("wall", "walls"), ("room", "rooms"),
    ("letter", "letters"), ("window", "windows"),
  ),
  "travel": (("mile", "miles"),),
}  # fmt: skip
HELD_OUT_UNITS = frozenset({"lemons", "buttons", "letters", "windows"})
NAMES = (
  "Tom", "Ann", "Ben", "Eva", "Max", "Lisa", "Sam", "Nina", "Paul", "Mia", "Jack", "Rosa",
  "Leo", "Kate", "Finn", "Ida",
)  # fmt: skip
HELD_OUT_NAMES = ("Omar", "Zoe", "Hugo", "Lena", "Ravi", "Tara")
