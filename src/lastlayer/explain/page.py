"""A trace as one HTML file that needs nothing else: no script, no network, no font; MathML for the formulas.

Dark or light as the reader's system is; readable on a phone and on paper. Sibling: notebook.py, whose HTML this frames.
"""

from __future__ import annotations

from html import escape

from lastlayer.explain.notebook import STYLE, body
from lastlayer.explain.trace import Trace

PAGE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #ffffff; --mark: #3b76c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #14171a; --mark: #7fb0ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 48rem; padding: 1.2rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
.lastlayer h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
.lastlayer ol { margin: 1.2rem 0; }
.lastlayer .end { border-top: 2px solid var(--mark); padding-top: .9rem; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
@media print { body { max-width: none; padding: 0; } .lastlayer li { break-inside: avoid; }
  .lastlayer .numbers { overflow: visible; } }
"""


def html(trace: Trace) -> str:
    """Return a whole HTML page.

    Example:
        >>> html(Trace("nothing", "pass", "float64", {}, (), 1.0)).splitlines()[0]
        '<!DOCTYPE html>'
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{escape(trace.title)}</title>
<style>{STYLE}{PAGE}</style>
</head>
<body>
<main>
{body(trace, "h1")}
</main>
</body>
</html>
"""
