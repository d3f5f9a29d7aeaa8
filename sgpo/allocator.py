"""Keeps the memory of a CPU run, so that each execution does not fault its pages in anew.

XLA allocates its buffers at each execution and glibc gives them back to the kernel, so that page
faults cost more than the arithmetic of elementwise operations. Two settings stop that on the main
thread: never use mmap for large blocks, and never trim the heap. On other threads, where XLA runs
several devices, glibc maps what exceeds 64 MB whatever it is told; jemalloc keeps that as well.
Neither jemalloc nor glibc's transparent huge pages can be had once a process runs, so a program
starts itself again with them.
"""

import ctypes
import ctypes.util
import importlib.util
import os
import sys

PRELOAD, TUNABLES = "LD_PRELOAD", "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# Huge pages, and nothing is given back, not even blocks of 8 MB and more.
KEEP = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_heap() -> bool:
  """Sets glibc's run-time settings; call before jax allocates. False where they do not apply."""
  if not sys.platform.startswith("linux"):
    return False
  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):  # another C library
    return False
  return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def _on_cpu() -> bool:
  """Whether jax will run on the CPU, as far as can be said without it."""
  if platforms := os.environ.get("JAX_PLATFORMS"):
    return platforms.startswith("cpu")
  return not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))


def restart() -> None:
  """Starts this program again on jemalloc, where that is installed, or with glibc's huge pages.

  Does nothing off Linux, where jax will run on an accelerator, and where LD_PRELOAD or
  GLIBC_TUNABLES say something already.
  """
  if not sys.platform.startswith("linux") or not _on_cpu() or {PRELOAD, TUNABLES} & {*os.environ}:
    return
  if library := ctypes.util.find_library("jemalloc"):
    os.environ[PRELOAD] = library
    os.environ.setdefault("MALLOC_CONF", KEEP)
  else:
    os.environ[TUNABLES] = HUGE_PAGES
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def name() -> str:
  """Which allocator this process runs on: "jemalloc", or "system" for any other."""
  return "jemalloc" if "jemalloc" in os.environ.get(PRELOAD, "") else "system"
