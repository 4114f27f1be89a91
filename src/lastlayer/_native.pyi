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
def address(array: object) -> int: ...
def uniforms(seed: int, offset: int, step: int, one: bool, rows: int, samples: int, second: bool, out: int) -> None: ...
def draw(
    dtype: int | None,
    z: Tile,
    uniforms: int,
    samples: int,
    rules: list[int],
    order: list[int],
    edits: list[int],
    replacement: bool,
    out: list[int],
    threads: int,
) -> None: ...
def tempered(dtype: int | None, z: Tile, rules: list[int], order: list[int], scaled: int, threads: int) -> None: ...
def multinomial(
    dtype: int | None, p: Tile, uniforms: int, samples: int, replacement: bool, index: int, status: int, threads: int
) -> None: ...
def masses(dtype: int | None, z: Tile, temperature: int, top: int, mass: int, threads: int) -> None: ...
def choose(
    top: int,
    mass: int,
    rows: int,
    blocks: int,
    temperature: int,
    uniforms: int,
    samples: int,
    chosen: int,
    fraction: int,
    threads: int,
) -> None: ...
def inside(dtype: int | None, z: Tile, temperature: int, fraction: int, index: int, threads: int) -> None: ...
def topk(dtype: int | None, z: Tile, k: int, value: int, index: int, threads: int) -> None: ...
