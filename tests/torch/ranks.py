"""The ranks of a test of lastlayer.torch.distributed: some processes of one machine, over gloo.

    python ranks.py WORLD FOLDER        each rank writes what became of each scenario to FOLDER/RANK.jsonl

Ranks tell each other through a file, not through the group, whether a scenario went well; after a failure they form a
new group, so that one failure is not the next one's. test_distributed.py starts this and reads the reports.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))  # laws.py

import ranks_agree  # noqa: F401  (enters its scenarios)
from ranks_fail import ENDINGS, guilty
from ranks_problem import SCENARIOS, STALLED, TIMEOUT, usable


def form(folder: Path, rank: int, world: int, generation: int) -> dist.Store:
    """Form the default group; return a store in which the ranks can leave each other notes."""
    store = dist.FileStore(str(folder / f"store-{generation}"), world)
    store.set_timeout(datetime.timedelta(seconds=6 * TIMEOUT))
    soon = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=soon)
    return dist.PrefixStore("notes", store)


def together(notes: dist.Store, name: str, world: int, rank: int, well: bool) -> bool:
    """Return whether a scenario went well on all ranks."""
    notes.set(f"{name} {rank}", "well" if well else "badly")
    return all(notes.get(f"{name} {other}") == b"well" for other in range(world))


def run(rank: int, world: int, folder: Path) -> None:
    """Run all scenarios of a world as one of its ranks."""
    warnings.simplefilter("error")
    generation = 0
    notes = form(folder, rank, world, generation)
    with (folder / f"{rank}.jsonl").open("w") as report:
        for name, scene in SCENARIOS[world].items():
            begin, error = time.monotonic(), None
            try:
                scene()
            except BaseException:
                error = traceback.format_exc()
            line = {"scenario": name, "error": error, "seconds": time.monotonic() - begin}
            print(json.dumps(line), file=report, flush=True)
            if not together(notes, name, world, rank, error is None):
                dist.destroy_process_group()
                generation += 1
                notes = form(folder, rank, world, generation)
    dist.destroy_process_group()


def end(rank: int, world: int, folder: Path) -> None:
    """Run what ends a group as one of its ranks."""
    for generation, (name, scene) in enumerate(ENDINGS.items()):
        form(folder, rank, world, generation)
        usable()
        found = scene()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
        if name == "stalled" and guilty():
            time.sleep(STALLED + 1)
        if name == "stalled":
            dist.destroy_process_group()


def main(world: str, folder: str) -> None:
    """Start the ranks; they share one import of torch where processes can fork."""
    work, size = (end, 3) if world == "end" else (run, int(world))
    start = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    ranks = [start.Process(target=work, args=(rank, size, Path(folder))) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
