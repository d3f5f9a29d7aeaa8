"""Pieces of HTML: the style sheet, tables, numbers."""

import html
from collections.abc import Iterable
from typing import Any

STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1d2430;
background:#fff;max-width:1000px;margin:3rem auto 5rem;padding:0 1.2rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .5rem}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:3.2rem 0 .5rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
.note,small{color:#5b6572}.note{margin:.2rem 0 1rem;font-size:.92rem;max-width:46rem}
small{font-size:.86em;font-weight:400}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums;
line-height:1.4}th,td{text-align:left;padding:.38rem 1.1rem .38rem 0;vertical-align:top;
border-bottom:1px solid #edf0f2}th{font-weight:600;color:#5b6572;vertical-align:bottom}
td:last-child,th:last-child{padding-right:0}td.n,th.n{text-align:right}td.n{white-space:nowrap}
td.n small{display:block}tr.sum td{border-top:1px solid #9aa3ad}
code{font:.86em/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto}.wide svg{min-width:30rem}svg{display:block;max-width:100%;height:auto}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));
gap:1.4rem 2rem}.map svg{width:100%;background:#fafbfc;border-radius:6px}.map{margin:.4rem 0}
.map circle:hover{fill-opacity:.9}
.key{margin:.8rem 0 .2rem;font-size:.88rem}.key span{margin-right:1.2rem;white-space:nowrap}
.head{display:grid;grid-template-columns:repeat(auto-fit,minmax(13.5rem,1fr));gap:1.6rem 2rem;
margin:2rem 0 0;font-variant-numeric:tabular-nums}.head b{display:block;font-size:1.75rem;
font-weight:600;letter-spacing:-.02em;line-height:1.2;color:#8b95a1}.head i{font-style:normal;
color:#c2410c}.head span{display:block;font-weight:600;font-size:.92rem}.head small{display:block}
details{margin:.35rem 0}summary{cursor:pointer}details>div{margin:.3rem 0 .8rem 1.1rem;
padding-left:.8rem;border-left:2px solid #e3e6ea;font-size:.92rem}td details{margin:.1rem 0 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .9rem;margin:0}
dt{color:#5b6572}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:34rem){body{margin-top:1.6rem}dl{grid-template-columns:1fr}dd{margin:0 0 .4rem}}
"""


def text(value: Any) -> str:
  """Any value as HTML."""
  return html.escape(str(value))


def code(value: Any) -> str:
  """A value in a fixed-width face."""
  return f"<code>{text(value)}</code>"


def note(content: str) -> str:
  """A paragraph in grey; `content` is HTML."""
  return f'<p class="note">{content}</p>'


def missing(file: str, when: str) -> str:
  """What stands in a section whose file is not there yet."""
  return note(f"Nothing yet: {code(file)} is missing, it is written {when}.")


def number(value: float, signed: bool = False, digits: int = 3) -> str:
  """0.812, with a proper minus."""
  return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def plain(interval: dict | None, signed: bool = False, digits: int = 3) -> str:
  """0.812 [0.778, 0.846], a dash for None."""
  if not interval:
    return "–"
  mean, low, high = (number(interval[k], signed, digits) for k in ("mean", "low", "high"))
  return f"{mean} [{low}, {high}]"


def ci(interval: dict | None, signed: bool = False) -> str:
  """The same with the bounds in small print, as a table's cell shows it."""
  mean, _, bounds = plain(interval, signed).partition(" ")
  return f"{mean} <small>{bounds}</small>" if bounds else mean


def table(header: Iterable[str], rows: Iterable[Iterable[str]], numbers: int, sums: int = 0) -> str:
  """An HTML table of cells that are HTML already.

  Columns from `numbers` on hold numbers; the last `sums` rows stand under a line.
  """
  rows = list(rows)
  cls = lambda i: ' class="n"' if i >= numbers else ""
  head = "".join(f"<th{cls(i)}>{name}</th>" for i, name in enumerate(header))
  body = ""
  for k, row in enumerate(rows):
    cells = "".join(f"<td{cls(i)}>{cell}</td>" for i, cell in enumerate(row))
    body += f"<tr{' class=sum' if k == len(rows) - sums else ''}>{cells}</tr>"
  return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
  """A list of names with HTML values; empty values are left out."""
  body = "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in pairs if value)
  return f"<dl>{body}</dl>"
