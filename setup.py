"""Builds the extensions of the core; all metadata is in pyproject.toml.

Switches by environment:

- ``PFCORE_DEBUG=1``: bounds, None and initialisation checks.
- ``PFCORE_SANITIZE=1``: AddressSanitizer and UndefinedBehaviorSanitizer (clang).
- ``PFCORE_FUZZ=1``: AddressSanitizer, traps for undefined behaviour, and libFuzzer's coverage counters (clang), for
  ``tools/fuzz``.
- ``PFCORE_TRACE=1``: every line is told to tracers, for ``tools/coverage``; the C files are beside the modules.
- ``PFCORE_ANNOTATE=1``: Cython's HTML annotation beside every module.
"""

import os
import re
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = sorted(".".join(path.with_suffix("").parts) for path in Path("pfcore").rglob("*.pyx"))

DEBUG = os.environ.get("PFCORE_DEBUG") == "1"
SANITIZE = os.environ.get("PFCORE_SANITIZE") == "1"
FUZZ = os.environ.get("PFCORE_FUZZ") == "1"
TRACE = os.environ.get("PFCORE_TRACE") == "1"
ANNOTATE = os.environ.get("PFCORE_ANNOTATE") == "1"

if sys.platform == "win32":
    compile_args, link_args = ["/O2"], []
else:
    compile_args = ["-O3", "-fno-strict-aliasing", "-Wall", "-Wsign-compare", "-Wno-unused-function"]
    link_args = []
    if DEBUG:
        compile_args += ["-O1", "-g", "-UNDEBUG"]
    if TRACE:
        compile_args += ["-O1"]  # most of what runs is the tracing; half the time to compile
    if SANITIZE:
        flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
        # Cython's own type slots are called through casts that clang's function sanitizer flags
        flags += ["-fno-sanitize=function"]
        compile_args += ["-O1", "-g", *flags, "-shared-libasan"]
        link_args += [*flags, "-shared-libasan"]

    if FUZZ:
        flags = ["-fsanitize=address,fuzzer-no-link", "-fno-omit-frame-pointer"]
        # undefined behaviour ends the process: its runtime, which would say more, is not there to be preloaded
        flags += ["-fsanitize=undefined", "-fno-sanitize=function", "-fsanitize-trap=undefined"]
        compile_args += ["-O1", "-g", *flags]
        # the runtime is preloaded: atheris brings it
        link_args += ["-Wl,-z,undefs"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": DEBUG,
    "nonecheck": True,
    # plain method descriptors: half the price of a call through Cython's own function type
    "binding": False,
    "embedsignature": True,
    "linetrace": TRACE,
}

extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        depends=[str(path) for path in Path("pfcore").rglob("*.h")],
        include_dirs=["pfcore"],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[
            *([("PFCORE_DEBUG", "1")] if DEBUG else []),
            *([("CYTHON_TRACE_NOGIL", "1")] if TRACE else []),
        ],
    )
    for name in MODULES
]

# Cython's plugin for coverage looks for the C files beside the modules
BUILD = None if TRACE else "build/cython"

modules = cythonize(extensions, compiler_directives=DIRECTIVES, annotate=ANNOTATE, build_dir=BUILD)

if TRACE:
    # as it is imported a module runs the headers of inline functions in the .pxd files that it uses, and tells of them
    # as lines of its own: whatever has those numbers would count as run
    for path in Path("pfcore").rglob("*.c"):
        functions, begin, importing = path.read_text().rpartition(f"__pyx_pymod_exec_{path.stem}(PyObject *")
        importing = re.sub(r"__Pyx_TraceLine\(\d+,\d+,\d+,__PYX_ERR\([1-9].*", "", importing)
        path.write_text(functions + begin + importing)

setup(ext_modules=modules)
