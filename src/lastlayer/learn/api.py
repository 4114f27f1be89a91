"""The lessons as JSON: what the page shows of a lesson, and what follows from the reader's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lastlayer.learn.figures import finite
from lastlayer.learn.lesson import Choice, Field, Lesson, Mistake, plain
from lastlayer.learn.lessons import LESSONS
from lastlayer.learn.notation import pieces, rich

Json = dict[str, Any]


def lessons() -> list[Json]:
    """Return all lessons, in order: their texts, formulas and fields.

    Example:
        >>> [lesson["slug"] for lesson in lessons()][:2]
        ['odds', 'softmax']
    """
    return [_describe(lesson) for lesson in LESSONS]


def answer(slug: str, given: Mapping[str, Any]) -> Json:
    """Return what follows from the values of a lesson's fields.

    Args:
        slug: which lesson.
        given: values by field; the default stands for what is missing.

    Returns:
        Numbers, figures, steps and sentences, as JSON has them.

    Raises:
        KeyError: no such lesson.
        Mistake: a value that does not fit, or numbers that the library refuses; in one line.

    Example:
        >>> found = answer("softmax", {"logits": [0, 0, 0]})
        >>> found["numbers"][0]["value"]
        0.3333333333333333
    """
    lesson = _named(slug)
    state = lesson.read(given)
    try:
        found = lesson.answer(state)
    except Mistake:
        raise
    except ValueError as error:
        raise Mistake(str(error).splitlines()[0]) from error
    return {
        "numbers": [
            {"label": n.label, "value": _plain(n.value), "text": n.text, "unit": n.unit, "tone": n.tone}
            for n in found.numbers
        ],
        "figures": list(found.figures),
        "steps": [{"name": rich(step.name), "math": pieces(step.latex)} for step in found.steps],
        "says": [rich(text) for text in found.says],
    }


def _named(slug: str) -> Lesson:
    for lesson in LESSONS:
        if lesson.slug == slug:
            return lesson
    raise KeyError(slug)


def _plain(value: float | str) -> Any:
    return value if isinstance(value, str | int) else finite(value)


def _describe(lesson: Lesson) -> Json:
    return {
        "slug": lesson.slug,
        "title": lesson.title,
        "question": rich(lesson.question),
        "prose": [rich(text) for text in lesson.prose],
        "formula": [pieces(line) for line in lesson.formula],
        "fields": [_field(field) for field in lesson.fields],
        "notes": [{"heading": heading, "text": rich(text)} for heading, text in lesson.notes],
        "tries": [{"label": label, "state": _tuples(dict(state))} for label, state in lesson.tries],
    }


def _tuples(value: Any) -> Any:
    return {name: plain(each) for name, each in value.items()}


def _field(field: Field) -> Json:
    shared = {"name": field.name, "label": field.label, "default": plain(field.default), "when": dict(field.when)}
    if isinstance(field, Choice):
        return {**shared, "kind": "choice", "options": [[key, text] for key, text in field.options.items()]}
    return {
        **shared,
        "kind": "numbers",
        "min": field.min,
        "max": field.max,
        "step": field.step,
        "columns": list(field.columns),
        "rows": list(field.rows),
    }
