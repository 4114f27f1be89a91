"""The training curve as inline SVG: batch losses, held-out losses, and the unigram baseline as a line across."""

from __future__ import annotations

import math
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 16, 62

Point = tuple[float, float]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= about)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class Axes:
    """Data coordinates to picture coordinates."""

    def __init__(self, x_high: float, y_low: float, y_high: float) -> None:
        self.x_high, self.y_low, self.y_high = x_high, y_low, y_high

    def x(self, value: float) -> float:
        """Steps to the right."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_high

    def y(self, value: float) -> float:
        """Nats upwards."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.y_high - value) / (self.y_high - self.y_low)

    def points(self, points: list[Point]) -> str:
        """Return the points attribute of a polyline."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _grid(axes: Axes) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for y in ticks(axes.y_low, axes.y_high):
        at = axes.y(y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at:.1f}" dy=".35em" text-anchor="end">{y:g}</text>')
    for x in ticks(0, axes.x_high):
        at = axes.x(x)
        anchor = "end" if at > WIDTH - RIGHT - 20 else "middle"
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 24}" text-anchor="{anchor}">{x:,g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
    parts.append(f'<text x="{middle_x:.0f}" y="{HEIGHT - 8}" text-anchor="middle">training step</text>')
    turn = f'transform="translate(16 {middle_y:.0f}) rotate(-90)"'
    parts.append(f'<text {turn} text-anchor="middle">nats per token</text>')
    return parts


def curve(training: list[Point], held_out: list[Point], unigram: float) -> str:
    """Return the <svg> element; its label tells in words what it shows."""
    values = [y for _, y in (*training, *held_out)] + [unigram]
    margin = 0.06 * (max(values) - min(values)) or 0.5
    steps = max([x for x, _ in (*training, *held_out)], default=0)
    axes = Axes(max(1.0, steps), min(values) - margin, max(values) + margin)
    told = f"Loss in nats per token over {steps:,g} training steps. Unigram baseline {unigram:.2f}."
    if held_out:
        told += f" Held-out loss from {held_out[0][1]:.2f} to {held_out[-1][1]:.2f}."
    across = axes.y(unigram)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">',
        *_grid(axes),
        f'<line class="unigram" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{across:.1f}" y2="{across:.1f}"/>',
        f'<polyline class="training" points="{axes.points(training)}"/>',
        f'<polyline class="held-out" points="{axes.points(held_out)}"/>',
        *(f'<circle class="held-out" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="5"/>' for x, y in held_out),
        "</svg>",
    ]
    return "\n".join(parts)


def _entry(name: str, drawn: str) -> str:
    return f'<li><svg viewBox="0 0 30 12" aria-hidden="true">{drawn}</svg> {name}</li>'


def legend() -> str:
    """Return the <ul> that explains the lines."""
    line = '<line class="{}" x1="0" x2="30" y1="6" y2="6"/>'
    circle = '<circle class="held-out" cx="15" cy="6" r="5"/>'
    entries = (
        _entry("training batches (with dropout)", line.format("training")),
        _entry("held-out text", line.format("held-out") + circle),
        _entry("unigram baseline", line.format("unigram")),
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'
