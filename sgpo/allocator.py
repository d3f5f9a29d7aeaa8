"""Keeps the heap of a CPU run, so that each execution does not fault its pages in anew.

XLA allocates its buffers at each execution and glibc gives them back to the kernel, so that page
faults cost more than the arithmetic of elementwise operations. Two settings stop that: never use
mmap for large blocks, and never trim the heap. A third, transparent huge pages, can only be set
before a process starts: the launcher starts itself again with it.
"""

import ctypes
import os
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_heap() -> bool:
  """Sets both run-time settings; call before jax allocates. False where it does not apply."""
  if not sys.platform.startswith("linux"):
    return False
  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):  # another C library
    return False
  return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def restart_with_huge_pages() -> None:
  """Starts this program again with huge pages for the heap, unless it has them already.

  Does nothing off Linux, or where an accelerator is asked for.
  """
  cpu = os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu")
  if not sys.platform.startswith("linux") or TUNABLES in os.environ or not cpu:
    return
  os.environ[TUNABLES] = HUGE_PAGES
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
