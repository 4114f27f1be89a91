"""Draws by several processes, each holding a part of the classes, beside those of one process.

torchrun ... draws_shards.py FOLDER        what each rank does: FOLDER/z.npy in, FOLDER/index.npy out
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

import lastlayer.torch.distributed as D


def cuts(classes: int, ranks: int) -> list[int]:
    """Return where the parts of the ranks begin and end: parts of different sizes, at no multiple of a block."""
    return [classes * i * (i + 1) // (ranks * (ranks + 1)) for i in range(ranks + 1)]


def drawn(z: NDArray[np.float32], asked: list[dict[str, Any]], ranks: int) -> Any:
    """Return 4 draws per row for each of the options, by so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "z.npy", z)
        (Path(folder) / "asked.json").write_text(json.dumps(asked))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launch, __file__, folder], env=environment, check=True)
        return np.load(Path(folder) / "index.npy")


def main(folder: Path) -> None:
    """What each rank does."""
    dist.init_process_group("gloo")
    z, rank = np.load(folder / "z.npy"), dist.get_rank()
    first, end = cuts(z.shape[1], dist.get_world_size())[rank : rank + 2]
    part = torch.from_numpy(z[:, first:end].copy())
    asked = json.loads((folder / "asked.json").read_text())
    index = [D.categorical(part, 4, **options).index.numpy() for options in asked]
    if rank == 0:
        np.save(folder / "index.npy", np.stack(index))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
