"""The process that runs math-verify: one JSON line in, one out. Started by `sgpo.graders.math`.

It imports nothing of the project, so that it starts fast and can be killed at any time.
"""

import contextlib
import json
import os
import resource
import signal
import sys

MEMORY = 4 << 30  # bytes of address space: a tower of powers must not eat the machine's
ITEM_S = 600  # of one answer: its run kills it long before, unless it has been killed itself


def main() -> None:
  """Answers requests until its input ends."""
  with contextlib.suppress(ValueError, OSError):  # not every system has this limit
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  # Libraries print: what is theirs goes to standard error, the protocol keeps standard output.
  out = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  from math_verify import parse, verify

  def read(text: str):
    return parse(f"${text}$", parsing_timeout=None, raise_on_error=True)

  print(json.dumps("ready"), file=out)
  for line in sys.stdin:
    signal.alarm(ITEM_S)
    gold, answer = json.loads(line)
    try:
      wanted, found = read(gold), read(answer)
      # a gold that cannot be read says nothing about the answer
      correct = verify(wanted, found, timeout_seconds=None, raise_on_error=True) if wanted else None
    except (Exception, MemoryError, RecursionError):
      correct = None
    signal.alarm(0)
    print(json.dumps(correct), file=out)


if __name__ == "__main__":
  main()
