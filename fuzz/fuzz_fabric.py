"""Stateful fuzzing of the whole gateway in simulated time: links, principals, handlers, elements, time.

The input is a script for `tests.scripts.play`: after each of its steps the
invariants of all tables hold, and in the end all are empty.

    fuzz_fabric.py CORPUS ...                    coverage-guided, by atheris (tools/fuzz)
    fuzz_fabric.py --random SECONDS [--seed N]   random scripts, without atheris
    fuzz_fabric.py --play FILE or HEX            one script again
"""

import gc
import os
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

clock = time.monotonic


def random_script(generator: random.Random) -> bytes:
    return generator.randbytes(int(generator.choice([40, 120, 400, 1200])))


def at_random(seconds: float, seed: int) -> int:
    """Plays random scripts; a failing one is made small and printed, with its seed. 0: none failed."""
    from tests.scripts import Broken, minimal, play

    play(b"")
    gc.freeze()  # what is there by now stays: collecting it after every script would be half of the time
    began = clock()
    number = 0
    while clock() - began < seconds:
        data = random_script(random.Random(seed + number))
        try:
            play(data)
        except Broken:
            smaller, broken = minimal(data)
            print(f"seed {seed + number} ({number} scripts were fine); as bytes: {smaller.hex()}")
            print(broken)
            return 1
        number += 1
    print(f"{number} scripts from seed {seed} on: nothing found")
    return 0


def main(arguments: list[str]) -> int:
    if "--random" in arguments:
        seed = random.SystemRandom().getrandbits(40)
        if "--seed" in arguments:
            seed = int(arguments[arguments.index("--seed") + 1])
        print(f"seed {seed}", flush=True)
        return at_random(float(arguments[arguments.index("--random") + 1]), seed)
    if "--play" in arguments:
        from tests.scripts import play

        text = arguments[arguments.index("--play") + 1]
        is_hex = re.fullmatch(r"(?:[0-9a-f]{2})+", text) is not None
        play(bytes.fromhex(text) if is_hex else Path(text).read_bytes())
        return 0
    import atheris

    # the compiled core counts its own branches; counting those of the Python above takes two thirds of the scripts
    from tests.scripts import Broken, minimal, play

    play(b"")
    gc.freeze()

    def test_one_input(data: bytes) -> None:
        try:
            play(data)
        except Broken:
            smaller, broken = minimal(data)
            print(f"as bytes: {smaller.hex()}\n{broken}", flush=True)
            raise

    atheris.Setup([sys.argv[0], *arguments], test_one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # the order of sets is part of what happens: the same script again must be the same
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main(sys.argv[1:]))
