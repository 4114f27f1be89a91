"""The results as one HTML page that needs nothing else: no script, no network, style and picture inside."""

from __future__ import annotations

import re
import unicodedata
from html import escape
from typing import Any

from lastlayer.demo import chart

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #5a626b; --paper: #ffffff; --line: #d5dae0; --mark: #ffe3a8;
  --training: #3b76c4; --held-out: #b8480b; --unigram: #5a626b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --dim: #a4adb8; --paper: #14171a; --line: #363c43;
  --mark: #5c4508; --training: #7fb0ee; --held-out: #ff9a5a; --unigram: #a4adb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
p, li { overflow-wrap: anywhere; }
.dim, caption, figcaption { color: var(--dim); font-size: .9rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .9rem 0 .3rem; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; } .left, th:first-child { text-align: left; } tbody th { font-weight: 400; }
.numbers tbody tr:first-child > * { font-weight: 700; }
code, .text { font-family: ui-monospace, monospace; font-size: .875rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .7rem; border: 1px solid var(--line); }
td.text { padding: .3rem 0; border-width: 0 0 1px; white-space: normal; }
mark { background: var(--mark); color: inherit; }
figure { margin: 0; } figure > svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--dim); font: 13px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--dim); }
svg polyline, svg line { fill: none; stroke-width: 1; }
svg .training { stroke: var(--training); stroke-width: 1.5; }
svg .held-out { stroke: var(--held-out); stroke-width: 2; } svg circle.held-out { fill: var(--held-out); }
svg .unigram { stroke: var(--unigram); stroke-width: 2; stroke-dasharray: 7 5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .4rem 0; padding: 0; }
.legend svg { width: 30px; height: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { svg text { font-size: 21px; } .numbers { font-size: .8125rem; }
  .numbers th, .numbers td { padding-right: .3rem; } .numbers tbody th { overflow-wrap: anywhere; } }
"""


def visible(text: str) -> str:
    """Return the text with control characters, which neither HTML nor a terminal should get, as U+FFFD."""
    text = text.replace("\r\n", "\n")
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """Return the text on one line, newlines as ↵ and each other run of white space as one space."""
    return re.sub(r"\s+", " ", visible(text).replace("\n", "↵"))


def clock(seconds: float) -> str:
    """Return a duration: 12.3 s, or 1 min 5 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def score_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return name, nats per token, bits per byte, perplexity of the model and of the baseline."""
    return [
        (name, f"{s['nats_per_token']:.4f}", f"{s['bits_per_byte']:.4f}", f"{s['perplexity']:,.1f}")
        for name in ("model", "unigram")
        for s in (results["held_out"][name],)
    ]


def head_rows(shape: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return name, milliseconds, ratio, MiB, ratio of every head on one shape."""

    def cell(value: float | None, form: str) -> str:
        return "not measured" if value is None else format(value, form)

    return [
        (row["name"], "disagrees", "", "", "")
        if not row["agrees"]
        else (
            row["name"],
            cell(row["median_milliseconds"], ",.1f"),
            cell(row["time_ratio"], ".2f"),
            cell(None if row["peak_bytes"] is None else row["peak_bytes"] / 2**20, ",.1f"),
            cell(row["memory_ratio"], ".2f"),
        )
        for row in shape["heads"]
    ]


def _table(caption: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for name, *cells in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{values}</tr>')
    return (
        f'<div class="table"><table class="numbers"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _facts(pairs: dict[str, Any]) -> str:
    told = ((name.replace("_", " "), value) for name, value in pairs.items() if value is not None)
    cells = (f"<dt>{escape(k)}</dt><dd>{escape(f'{v:,}' if isinstance(v, int) else str(v))}</dd>" for k, v in told)
    return f"<dl>{''.join(cells)}</dl>"


def trained(results: dict[str, Any]) -> str:
    """Return one sentence on the training."""
    training, timing = results["training"], results["timing"]
    told = f"{training['steps']:,} steps, {training['tokens']:,} tokens, {clock(timing['training_seconds'])}"
    told += f", {timing['tokens_per_second']:,.0f} tokens/s" if training["steps"] else ""
    return told + ("; stopped by Ctrl-C" if training["interrupted"] else "")


def _training(results: dict[str, Any]) -> str:
    training, unigram = results["training"], results["held_out"]["unigram"]["nats_per_token"]
    svg = chart.curve(training["curve"], training["held_out"], unigram)
    told = f"{chart.legend()}{escape(trained(results))}"
    return f"<h2>Training</h2><figure>{svg}<figcaption>{told}</figcaption></figure>"


def _scores(results: dict[str, Any]) -> str:
    held_out = results["held_out"]
    caption = f"{held_out['tokens']:,} held-out tokens, {held_out['bytes']:,} bytes of UTF-8"
    columns = ("", "nats per token", "bits per byte", "perplexity")
    return (
        f"<h2>Held-out text</h2>{_table(caption, columns, score_rows(results))}"
        '<p class="dim">Nats per token: mean of −log p. Perplexity: e to that power. Bits per byte: all nats, divided '
        "by ln 2 and by the bytes scored; comparable between tokenizers. Unigram: training frequencies with add-one "
        "smoothing, on the same tokens.</p>"
    )


def _marked(before: str, marked: str, after: str) -> str:
    return f"{escape(before)}<mark>{escape(marked)}</mark>{escape(after)}"


def _surprise_table(results: dict[str, Any], which: str, title: str) -> str:
    rows = "".join(
        f"<tr><td>{s['bits']:.1f}</td><td>{s['in_training']:,}</td>"
        f'<td class="text left">{_marked(*(one_line(s[part]) for part in ("before", "token", "after")))}</td></tr>'
        for s in results[which]
    )
    return (
        f'<div class="table"><table><caption>{title}</caption><thead><tr><th scope="col">bits</th>'
        '<th scope="col">in training</th><th scope="col" class="left">held-out text</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _surprises(results: dict[str, Any]) -> str:
    return (
        "<h2>Most surprising tokens</h2><p>Surprisal −log₂ p in bits, how often the token occurs in the training part, "
        "and the token (marked) in its context.</p>"
        + _surprise_table(results, "most_surprising", "Of all held-out tokens")
        + _surprise_table(results, "most_surprising_known", "Of those that occur in training")
    )


def _samples(results: dict[str, Any]) -> str:
    parts = [
        f"<h3>Temperature {s['temperature']:g}</h3>"
        f'<p class="text">{_marked("", visible(s["prompt"]), visible(s["text"]))}</p>'
        f'<p class="dim">{s["bits_per_token"]:.2f} bits per drawn token, to the model at temperature 1</p>'
        for s in results["samples"]
    ]
    return f"<h2>Drawn texts</h2><p>Each continues the marked beginning of the held-out text.</p>{''.join(parts)}"


def _head(results: dict[str, Any]) -> str:
    head = results["head"]
    if not head["shapes"]:
        return ""
    columns = ("head", "ms", "ratio", "extra MiB", "ratio")
    parts = []
    for shape in head["shapes"]:
        sizes = ", ".join(f"{name} = {size:,}" for name, size in shape["shape"].items())
        logits, gradients = shape["logits_bytes"] / 2**20, shape["gradient_bytes"] / 2**20
        parts.append(_table(f"{sizes}: {shape['inputs']}", columns, head_rows(shape)))
        apart = max(row["difference"] for row in shape["heads"])
        told = (
            f"The logits alone would be {logits:,.1f} MiB, the gradients are {gradients:,.1f} MiB. Loss and gradients "
        )
        told += f"of the heads differ by at most {apart:.1e}, relative in norm."
        parts.append(f'<p class="dim">{told}</p>')
    return (
        f'<h2>The last layer, measured in this run</h2>{"".join(parts)}<p class="dim">Ratios to '
        f"<code>{escape(head['baseline'])}</code>. Time: {escape(head['how_time'])}. Memory: "
        f"{escape(head['how_memory'])}. A head is timed only if its loss and gradients agree with "
        "the baseline's.</p>"
    )


def page(results: dict[str, Any]) -> str:
    """Return the report."""
    model, unigram = (results["held_out"][name]["nats_per_token"] for name in ("model", "unigram"))
    lead = f"{model:.3f} nats per held-out token, against {unigram:.3f} for unigram frequencies."
    body = "\n".join(part(results) for part in (_training, _scores, _surprises, _samples, _head))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lastlayer demo: {escape(results["settings"]["text"])}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>A language model trained with lastlayer</h1>
<p>{escape(results["settings"]["text"])}: {lead}</p>
{body}
<h2>Settings</h2>
{_facts(results["settings"])}
<h2>Machine</h2>
{_facts(results["machine"])}
</main>
</body>
</html>
"""


def samples(results: dict[str, Any]) -> str:
    """Return the drawn texts as plain text."""
    return "\n".join(
        f"--- temperature {s['temperature']:g}, {s['bits_per_token']:.2f} bits per token\n{s['prompt']}{s['text']}\n"
        for s in results["samples"]
    )
