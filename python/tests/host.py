"""What a process has set: the library reads some of it and changes none."""

import concurrent.futures
import contextlib
import ctypes
import gc
import locale
import os
import pathlib
import platform
import random
import resource
import signal
import sys
import threading
import warnings

import numpy

# Of /proc/self/status: what is blocked, ignored and handled, where it may run, what it may gain.
STATUS = ("SigBlk", "SigIgn", "SigCgt", "Cpus_allowed", "Mems_allowed", "NoNewPrivs", "Seccomp",
          "THP_enabled")


def floating_point():
    """How this thread rounds; on x86-64 also what it traps and whether denormals count as 0."""
    library = ctypes.CDLL(None)
    modes = [library.fegetround()]
    if platform.machine() == "x86_64":
        environment = (ctypes.c_uint32 * 16)()
        library.fegetenv(environment)
        modes += [environment[0] & 0xffff, environment[7] & ~0x3f]  # without what has happened
    return modes


def openmp(threads=None):
    """The settings of the OpenMP runtime that is loaded, of this thread; None without one. `threads`
    sets how many its loops take."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None
    if threads is not None:
        library.omp_set_num_threads(threads)
    return (library.omp_get_max_threads(), library.omp_get_dynamic(),
            library.omp_get_max_active_levels())


def settings():
    status = dict(line.split(":\t", 1)
                  for line in pathlib.Path("/proc/self/status").read_text("utf-8").splitlines()
                  if ":\t" in line)
    umask = os.umask(0)
    os.umask(umask)
    return {
        **{name: status.get(name) for name in STATUS},
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "locale": locale.setlocale(locale.LC_ALL),
        "affinity": os.sched_getaffinity(threading.get_native_id()),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "name": pathlib.Path("/proc/self/comm").read_text("utf-8"),
        "floating point": floating_point(),
        "openmp": openmp(),
        "limits": {name: resource.getrlimit(getattr(resource, name))
                   for name in dir(resource) if name.startswith("RLIMIT_")},
        "umask": umask, "directory": os.getcwd(), "environment": dict(os.environ),
        "path": list(sys.path), "warnings": list(warnings.filters),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.stdout, sys.stderr),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(),
                        gc.get_threshold()),
        "numpy": (numpy.geterr(), repr(numpy.get_printoptions())),
        "random": (random.getstate(), repr(numpy.random.get_state())),
    }


def in_a_new_thread(use):
    """`use()` where nothing was set up yet that a thread keeps."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(use).result()


@contextlib.contextmanager
def unchanged(test, what, settings=settings):
    before = settings()
    yield
    after = settings()
    for name, value in before.items():
        test.assertEqual(after[name], value, f"{name}, by {what}")
