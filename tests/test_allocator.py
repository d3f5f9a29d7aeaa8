"""Which allocator a program starts itself again with."""

import ctypes.util
import importlib.util
import os
import subprocess
import sys

import pytest

from sgpo import allocator

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of Linux")


@pytest.fixture
def started(monkeypatch):
  """Calls `restart` in an environment; what it added to it, or None where it did not start anew."""

  def start(library, **environment):
    calls = []
    monkeypatch.setattr(os, "environ", dict(environment))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: library)
    monkeypatch.setattr(os, "execv", lambda *args: calls.append(args))
    allocator.restart()
    return {k: v for k, v in os.environ.items() if k not in environment} if calls else None

  return start


@linux
def test_jemalloc_is_taken_where_it_is_installed(started):
  assert started("libjemalloc.so.2", JAX_PLATFORMS="cpu") == {
    "LD_PRELOAD": "libjemalloc.so.2",
    "MALLOC_CONF": allocator.KEEP,
  }
  assert allocator.name() == "jemalloc"
  kept = started("libjemalloc.so.2", JAX_PLATFORMS="cpu", MALLOC_CONF="thp:never")
  assert kept == {"LD_PRELOAD": "libjemalloc.so.2"}


@linux
def test_else_the_heap_gets_huge_pages(started):
  assert started(None, JAX_PLATFORMS="cpu") == {"GLIBC_TUNABLES": allocator.HUGE_PAGES}
  assert allocator.name() == "system"


@linux
def test_what_is_set_already_stands_and_accelerators_are_left_alone(started):
  assert started("libjemalloc.so.2", JAX_PLATFORMS="cpu", LD_PRELOAD="mine.so") is None
  assert started("libjemalloc.so.2", JAX_PLATFORMS="cpu", GLIBC_TUNABLES="") is None
  assert started("libjemalloc.so.2", JAX_PLATFORMS="cuda") is None


@linux
def test_a_plugin_of_an_accelerator_counts_where_no_platform_is_asked_for(started, monkeypatch):
  installed = {"libtpu"}
  find = lambda name: object() if name in installed else None
  monkeypatch.setattr(importlib.util, "find_spec", find)
  assert started("libjemalloc.so.2") is None
  assert started("libjemalloc.so.2", JAX_PLATFORMS="cpu") is not None
  installed.clear()
  assert started("libjemalloc.so.2") is not None


@linux
def test_a_program_starts_anew_once_with_its_arguments():
  program = (
    "import sys; from sgpo import allocator; print('began', flush=True); allocator.restart(); "
    "print(sys.argv[1:], 'libjemalloc' in open('/proc/self/maps').read())"
  )
  unset = {allocator.PRELOAD, allocator.TUNABLES, "MALLOC_CONF"}
  environment = {k: v for k, v in os.environ.items() if k not in unset} | {"JAX_PLATFORMS": "cpu"}
  out = subprocess.run(
    [sys.executable, "-c", program, "--a=b c"], env=environment, capture_output=True, text=True,
    check=True,
  ).stdout  # fmt: skip
  installed = ctypes.util.find_library("jemalloc") is not None
  assert out.split("\n")[:-1] == ["began", "began", f"['--a=b c'] {installed}"]
