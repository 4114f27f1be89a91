"""Types of the native module; addresses and strides are checked by _backends/cpu.py."""

Tile = tuple[int, int, int, int, int]  # address, rows, classes, row stride, class stride

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def environment(name: str) -> str | None: ...
def share_threads(directory: str) -> bool: ...
def reserve(address: int, bytes: int) -> None: ...
def fold(dtype: int | None, z: Tile, weight: tuple[int, int], state: int, moment: bool, threads: int) -> None: ...
def statistics(
    dtype: int | None,
    z: Tile,
    weight: tuple[int, int],
    target: int,
    state: int,
    out: int,
    entropy: bool,
    threads: int,
) -> None: ...
def gradient(
    dtype: int | None,
    z: Tile,
    out: Tile,
    max: int,
    rest: int,
    numbers: int,
    target: int,
    first_class: int,
    weight: tuple[int, int],
    inverse_softcap: float,
    threads: int,
) -> None: ...
def check_targets(target: int, rows: int, classes: int, ignored: int, threads: int) -> tuple[int, int]: ...
def loss(
    dtype: int | None,
    z: Tile,
    out: Tile,
    weight: tuple[int, int],
    target: int,
    ignored: int,
    nll: tuple[float, int],
    cross: tuple[float, int],
    square: tuple[float, int],
    scale: float,
    inverse_softcap: float,
    losses: int,
    threads: int,
) -> float: ...
def softmax(dtype: int | None, z: Tile, out: Tile, log: bool, threads: int) -> None: ...
