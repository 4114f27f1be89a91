"""A formula for a page: MathML, which browsers draw by themselves, or its plain text where that cannot be had.

latex2mathml does the work (the `explain` extra). What it cannot read is shown as plain text, never half converted.
"""

from __future__ import annotations

import re
from html import escape
from xml.etree import ElementTree

# Functions are names, after which a space belongs unless a bracket follows: "log p", "exp(z)".
NAMES = re.compile(r"(<mi>(?:log|exp|ln|min|max|arg|argmax)</mi>)(?!<mo[^>]*>&#x00028;)")
NAMESPACE = re.compile(r' xmlns="[^"]*"')


def formula(latex: str, plain: str) -> str:
    """Return a formula as MathML inside HTML.

    Args:
        latex: the formula, without dollar signs.
        plain: the same in plain text, for who reads the page aloud and where there is no MathML.

    Returns:
        A `math` element, or a `code` element with the plain text.

    Example:
        >>> formula("", "p < 1")
        '<code>p &lt; 1</code>'
    """
    found = _converted(latex) if latex else ""
    return found or f"<code>{escape(plain)}</code>"


def _converted(latex: str) -> str:
    try:
        from latex2mathml.converter import convert
    except ModuleNotFoundError:
        return ""
    try:
        # HTML needs no namespace, and a page that names no address is easier to trust.
        found = NAMESPACE.sub("", convert(latex)).replace('display="inline"', 'displaystyle="true"')
        text = "".join(ElementTree.fromstring(found).itertext())
    except Exception:  # the converter raises whatever its parser meets
        return ""
    if "\\" in text:
        return ""
    return NAMES.sub(r'\1<mspace width="0.17em"></mspace>', found)
