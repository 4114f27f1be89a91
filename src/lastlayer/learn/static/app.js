// The page: shows a lesson from its description, asks the server what follows from the state, draws the answer.
// Nothing is computed here. At most one question is under way; while it is, only the latest state waits, so answers come
// in order and no older one can overwrite a newer.

import { Fields } from "./fields.js";
import { draw } from "./figures.js";
import * as link from "./link.js";
import { build, element } from "./nodes.js";

const main = document.getElementById("lesson");
const spoken = document.getElementById("spoken");
let lessons = [];
let shown = null;

start();

async function start() {
  try {
    const response = await fetch("/api/lessons");
    lessons = await response.json();
  } catch {
    main.replaceChildren(element("p", { class: "complaint" }, "The server does not answer. Is lastlayer learn still running?"));
    return;
  }
  listLessons();
  addEventListener("hashchange", show);
  // The fragment of the address is the state, so this link must not change it.
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
  show();
}

function listLessons() {
  document.getElementById("lessons").replaceChildren(...lessons.map((lesson, i) => element("li", {},
    element("a", { href: `#${lesson.slug}`, title: lesson.title }, element("span", { class: "count" }, String(i + 1)),
      element("span", { class: "title" }, lesson.title)))));
}

function show() {
  const { slug, texts } = link.read();
  const place = Math.max(0, lessons.findIndex((lesson) => lesson.slug === slug));
  const state = link.toState(lessons[place].fields, texts);
  if (shown?.lesson === lessons[place]) {
    shown.load(state);
    return;
  }
  shown?.close();
  shown = new Shown(lessons[place], place, state);
  if (slug) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

class Shown {
  constructor(lesson, place, state) {
    this.lesson = lesson;
    this.closed = false;
    this.asking = false;
    this.waiting = false;
    this.frame = 0;
    this.figures = new Map();
    this.fields = new Fields(lesson, state, () => this.changed());
    this.parts = layout(lesson, place, this.fields.element);
    main.replaceChildren(...this.parts.all);
    document.title = `${lesson.title} · lastlayer learn`;
    for (const [i, anchor] of [...document.querySelectorAll("#lessons a")].entries()) {
      if (i === place) anchor.setAttribute("aria-current", "page");
      else anchor.removeAttribute("aria-current");
    }
    this.parts.copy.addEventListener("click", () => this.copyLink());
    this.parts.reset.addEventListener("click", () => { location.hash = `#${lesson.slug}`; });
    this.sized = new ResizeObserver(() => this.redraw());
    this.sized.observe(this.parts.figures);
    this.ask();
  }

  close() {
    this.closed = true;
    this.sized.disconnect();
    clearTimeout(this.speaking);
    cancelAnimationFrame(this.frame);
  }

  // A link to this lesson: the fields stay where they are, and so does the focus.
  load(state) {
    this.fields.load(state);
    this.changed();
  }

  changed() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.ask();
    });
  }

  async ask() {
    if (this.asking) {
      this.waiting = true;
      return;
    }
    this.asking = true;
    this.waiting = false;
    this.hold();
    const body = JSON.stringify(this.fields.state);
    try {
      const response = await fetch(`/api/lessons/${this.lesson.slug}`, {
        method: "POST", headers: { "content-type": "application/json" }, body });
      const answer = await response.json();
      if (!this.closed) this.take(response.ok, answer);
    } catch {
      if (!this.closed) this.complain("The server does not answer. Is lastlayer learn still running?", "", []);
    }
    this.asking = false;
    if (this.waiting && !this.closed) this.ask();
  }

  hold() {
    const hash = link.toHash(this.lesson.slug, this.lesson.fields, this.fields.state);
    if (location.hash !== hash && !(location.hash === "" && hash === `#${this.lesson.slug}`)) history.replaceState(null, "", hash);
  }

  take(fine, answer) {
    if (!fine) {
      this.complain(answer.error, answer.field, answer.index ?? []);
      return;
    }
    this.fields.content();
    this.parts.general.hidden = true;
    this.parts.results.classList.remove("stale");
    this.answer = answer;
    this.parts.numbers.dataset.count = answer.numbers.length;
    this.parts.numbers.replaceChildren(...answer.numbers.map(number));
    this.parts.steps.replaceChildren(...answer.steps.map(step));
    this.parts.says.replaceChildren(...answer.says.filter((text) => text.length).map((text) => element("p", {}, text.map((node) => build(node)))));
    this.redraw();
    this.speak();
    main.dataset.ready = this.lesson.slug;
    main.dataset.answers = Number(main.dataset.answers ?? 0) + 1;
  }

  // The figures of the last good answer stay, greyed: a number half typed is no reason to lose sight of them.
  complain(message, name, index) {
    const placed = this.fields.complain(message, name, index);
    this.parts.general.textContent = placed ? "" : message;
    this.parts.general.hidden = placed;
    this.parts.results.classList.add("stale");
    main.dataset.ready = this.lesson.slug;
  }

  redraw() {
    if (!this.answer || this.closed) return;
    const drag = (name, index, value) => this.fields.set(name, index, value);
    for (const [i, figure] of this.answer.figures.entries()) {
      if (!this.figures.has(i)) {
        const card = element("figure", { class: `card of-${figure.kind}` });
        this.figures.set(i, card);
        this.parts.figures.append(card);
      }
      draw(this.figures.get(i), figure, drag);
    }
  }

  // A screen reader hears the results when the reader pauses, not while a slider moves.
  speak() {
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => {
      spoken.textContent = this.answer.numbers.map((n) => `${n.label}: ${n.text} ${n.unit}`.trim()).join(". ");
    }, 500);
  }

  async copyLink() {
    this.hold();
    try {
      await navigator.clipboard.writeText(location.href);
      this.parts.copy.textContent = "Copied";
    } catch {
      this.parts.copy.textContent = "The address bar has it";
    }
    setTimeout(() => { this.parts.copy.textContent = "Copy link"; }, 1500);
  }
}

function layout(lesson, place, fields) {
  const parts = {
    copy: element("button", { type: "button", class: "quiet" }, "Copy link"),
    reset: element("button", { type: "button", class: "quiet" }, "Reset"),
    general: element("p", { class: "complaint general", role: "alert", hidden: true }),
    numbers: element("dl", { class: "numbers" }),
    figures: element("div", { class: "figures" }),
    steps: element("ol", { class: "steps" }),
    says: element("div", { class: "says" }),
  };
  const head = element("header", { class: "head" },
    element("p", { class: "eyebrow" }, `Lesson ${place + 1} of ${lessons.length}`),
    element("h1", {}, lesson.title), element("p", { class: "question" }, nodes(lesson.question)));
  const intro = element("section", { class: "intro" }, lesson.prose.map((text) => element("p", {}, nodes(text))),
    element("div", { class: "formula" }, lesson.formula.map((line) => element("div", {}, spaced(line)))));
  const tries = element("div", { class: "tries" }, element("span", { class: "try" }, "Try"), lesson.tries.map((each) => {
    const state = { ...Object.fromEntries(lesson.fields.map((field) => [field.name, field.default])), ...each.state };
    return element("a", { href: link.toHash(lesson.slug, lesson.fields, state) }, each.label);
  }));
  parts.results = element("div", { class: "results" }, parts.numbers, parts.says, parts.figures);
  const play = element("section", { class: "play", "aria-label": "Play with the numbers" },
    element("div", { class: "controls" }, fields, element("div", { class: "tools" }, parts.reset, parts.copy)),
    element("div", { class: "outcome" }, parts.general, parts.results));
  const work = element("section", { class: "work" }, element("h2", {}, "With your numbers"), parts.steps);
  const notes = element("section", { class: "notes" }, lesson.notes.map((note) =>
    element("div", { class: "note" }, element("h2", {}, note.heading), element("p", {}, nodes(note.text)))));
  parts.all = [head, intro, tries, play, work, notes, pager(place)];
  return parts;
}

function pager(place) {
  const to = (i, text, kind) => lessons[i]
    ? [element("a", { href: `#${lessons[i].slug}`, class: kind }, element("small", {}, text), lessons[i].title)] : [];
  return element("nav", { class: "pager", "aria-label": "Next and previous lesson" }, to(place - 1, "Previous", "previous"), to(place + 1, "Next", "next"));
}

// The pieces of a formula with spaces between them, where lines may break.
const spaced = (pieces) => pieces.flatMap((piece) => [build(piece), " "]);

const nodes = (texts) => texts.map((node) => build(node));

function number({ label, text, value, unit, tone }) {
  return element("div", { class: `result ${tone}` }, element("dt", {}, label),
    element("dd", { "data-value": String(value) }, element("span", { class: "value" }, text), unit ? [" ", element("span", { class: "unit" }, unit)] : []));
}

function step({ name, math }) {
  return element("li", {}, element("span", { class: "what" }, nodes(name)), element("div", { class: "formula" }, spaced(math)));
}
