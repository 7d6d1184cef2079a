"""Attacks on a gateway in default configuration, one after another and in pairs, and what they do to a victim.

    python -m benchmarks.attacks                    # all of them, then thirty pairs
    python -m benchmarks.attacks --only pings,garbage+scrapes --seconds 2

A gateway, a worker and a victim, who has 20,000 packets a second done, for each; one or two attackers, with `nice 19`,
since they stand for other machines. An attack is held off if the gateway lives, the victim's p99 is at most twice what
it was just before plus 10 ms, none of his packets is refused, the gateway's memory is at most 256 MiB above its start
(for attackers of several links so much for each, and its budget and a quarter at most), and within 32 MiB of it half a
minute after they left. Ends with 1 if any was not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import resource
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks.attacks.attacker import Attack, all_attacks
from benchmarks.attacks.trial import MIB, Outcome, Stage, measure
from packetflow import run

PAIRS = 30


def chosen(names: str | None, table: dict[str, Attack]) -> list[list[Attack]]:
    """``a,b+c``: a, and then b and c at once."""
    if names is None:
        return [[attack] for attack in table.values()]
    groups = [group.split("+") for group in names.split(",")]
    unknown = [name for group in groups for name in group if name not in table]
    if unknown:
        raise SystemExit(f"--only: no such attack: {', '.join(unknown)}; --list shows them")
    return [[table[name] for name in group] for group in groups]


def pairs(count: int, seed: int, table: dict[str, Attack]) -> list[list[Attack]]:
    """So many different ones; what needs a configuration of its own is not among them."""
    every = list(itertools.combinations([attack for attack in table.values() if attack.config is None], 2))
    return [list(pair) for pair in random.Random(seed).sample(every, min(count, len(every)))]


async def attempt(group: list[Attack], stage: Stage | None, options: argparse.Namespace) -> Outcome:
    """On `stage`, or on one of its own."""
    limits = {"seconds": options.seconds, "quiet": options.quiet, "slack": options.slack / 1e3,
              "recovery": options.recovery}  # fmt: skip
    try:
        if stage is not None:
            return await measure(stage, group, **limits)
        async with Stage(next((attack.config for attack in group if attack.config is not None), None)) as fresh:
            return await measure(fresh, group, **limits)
    except (OSError, RuntimeError, TimeoutError) as error:
        outcome = Outcome(group)
        outcome.faults.append(f"not measured: {type(error).__name__}: {error}")
        return outcome


def line(outcome: Outcome) -> str:
    quiet, during = outcome.quiet.get("p99", 0.0) * 1e3, outcome.during.get("p99", 0.0) * 1e3
    verdict = "held" if not outcome.faults else "FAILED: " + "; ".join(outcome.faults)
    return (
        f"{outcome.name:<26} p99 {quiet:6.1f} -> {during:8.1f} ms   {outcome.more / MIB:7.1f} MiB more, "
        f"{outcome.left / MIB:6.1f} left after {outcome.recovered:4.1f} s   {verdict}"
    )


def attackers_line(outcome: Outcome) -> str:
    """What the attackers counted, to see that they did what they were meant to."""
    return "\n".join(
        f"    {attacker['name']}: "
        + ", ".join(f"{count:,} {what}" for what, count in sorted(attacker.get("tally", {}).items()))
        + (f" ({attacker['trouble']})" if attacker.get("trouble") else "")
        for attacker in outcome.attackers
    )


def markdown(outcomes: list[Outcome]) -> str:
    """A table of the single attacks, and one of those at once."""
    tables = []
    for several in (False, True):
        chosen = [outcome for outcome in outcomes if (len(outcome.attacks) > 1) is several]
        rows = ["| attack | | p99, ms | MiB more | |", "|---|---|---:|---:|---|"]
        for outcome in chosen:
            meaning = "" if several else outcome.attacks[0].meaning.rstrip(".").replace("|", "\\|")
            faults = "; ".join(outcome.faults).replace("|", "\\|")
            rows.append(
                f"| {outcome.name.replace('_', ' ').replace('+', ' + ')} | {meaning} "
                f"| {outcome.quiet.get('p99', 0) * 1e3:.1f}, {outcome.during.get('p99', 0) * 1e3:.1f} "
                f"| {outcome.more / MIB:,.0f}, {max(0, outcome.left) / MIB:,.0f} | {faults or 'held'} |"
            )
        tables += ["\n".join(rows)] * bool(chosen)
    return "\n\n".join(tables)


def as_json(outcome: Outcome) -> dict[str, Any]:
    record = asdict(outcome) | {"name": outcome.name, "held": not outcome.faults}
    del record["attacks"]
    return record


async def series(options: argparse.Namespace, groups: list[list[Attack]]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    stage: Stage | None = None
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # and all processes end with this one
    try:
        for group in groups:
            alone = not options.keep or any(attack.config is not None for attack in group)
            if stage is None and not alone:
                stage = await Stage().__aenter__()
            outcome = await attempt(group, None if alone else stage, options)
            if outcome.faults and stage is not None and not alone:
                await stage.__aexit__()  # the next one begins anew
                stage = None
            outcomes.append(outcome)
            if not options.json:
                print(line(outcome), flush=True)
                if options.verbose:
                    print(attackers_line(outcome), flush=True)
    finally:
        if stage is not None:
            await stage.__aexit__()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,...", help="these, and no pairs; NAME+NAME: at once")
    parser.add_argument("--pairs", type=int, metavar="N", help=f"pairs after all the others ({PAIRS}; 0 with --only)")
    parser.add_argument("--no-single", action="store_true", help="the pairs alone")
    parser.add_argument("--seed", type=int, help="for the pairs; printed where none is given")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack (5)")
    parser.add_argument(
        "--quiet", type=float, default=1.5, help="seconds before each in which the victim is alone (1.5)"
    )
    parser.add_argument(
        "--slack", type=float, default=10.0, help="ms above twice its quiet value for the victim's p99 (10)"
    )
    parser.add_argument("--recovery", type=float, default=30.0, help="seconds in which memory is to be given back (30)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="one gateway for all, as long as it holds; memory is compared with that before each",
    )
    parser.add_argument("--list", action="store_true", help="what there is, and what it stands for")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="in the end a table: the victim's p99 before and meanwhile; memory at most, and after",
    )
    parser.add_argument("--json", action="store_true", help="everything measured, and nothing else")
    parser.add_argument("-v", "--verbose", action="store_true", help="what the attackers counted, too")
    options = parser.parse_args()
    table = all_attacks()
    if options.list:
        for attack in table.values():
            print(f"{attack.kind:<12} {attack.name:<26} {attack.meaning}")
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    count = options.pairs if options.pairs is not None else PAIRS if options.only is None else 0
    groups = [] if options.no_single else chosen(options.only, table)
    groups += pairs(count, seed, table) if count else []
    if count and not options.json:
        print(f"seed of the pairs: {seed}", flush=True)
    began = time.monotonic()
    outcomes = run(series(options, groups))
    failed = [outcome for outcome in outcomes if outcome.faults]
    if options.json:
        print(json.dumps({"seed": seed, "seconds": options.seconds, "outcomes": [as_json(each) for each in outcomes]}))
    else:
        if options.markdown:
            print(markdown(outcomes))
        print(f"{len(outcomes) - len(failed)} of {len(outcomes)} held off, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
