"""Types of command line flags: argparse names the flag in front of their errors."""

from argparse import ArgumentTypeError


def positive(text: str) -> int:
  """A whole number from 1 on."""
  if (value := int(text)) < 1:
    raise ArgumentTypeError(f"{text} must be positive")
  return value


def seed(text: str) -> int:
  """What makes a random key, of which jax keeps 32 bits."""
  if not 0 <= (value := int(text)) < 2**32:
    raise ArgumentTypeError(f"{text} must lie in [0, 2^32)")
  return value


def mesh(text: str) -> tuple[int, int]:
  """DATA,MODEL: the two axes' sizes."""
  sizes = tuple(int(part) for part in text.split(","))
  if len(sizes) != 2:
    raise ArgumentTypeError(f"{text} must have two entries, DATA,MODEL")
  return sizes
