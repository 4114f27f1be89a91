// The fields: a slider and a box to type in for every number, and choices. They hold what the reader put there, as typed.

import { element } from "./nodes.js";

export class Fields {
  constructor(lesson, state, changed) {
    this.lesson = lesson;
    this.state = state;
    this.changed = changed;
    this.boxes = new Map();
    this.groups = new Map();
    this.element = element("form", { class: "fields", "aria-label": "Numbers of this lesson" });
    this.element.addEventListener("submit", (event) => event.preventDefault());
    for (const field of lesson.fields) {
      const group = field.kind === "choice" ? this.choice(field) : this.numbers(field);
      group.dataset.field = field.name;
      this.groups.set(field.name, { field, group });
      this.element.append(group);
    }
    this.showRelevant();
  }

  choice(field) {
    const buttons = field.options.map(([key, text]) => {
      const input = element("input", { type: "radio", name: field.name, value: key, checked: this.state[field.name] === key });
      input.addEventListener("change", () => this.put(field, [], key));
      this.boxes.set(`${field.name}:${key}`, { input });
      return element("label", { class: "option" }, input, element("span", {}, text));
    });
    return element("fieldset", { class: "field choice" }, element("legend", {}, field.label),
      element("div", { class: "options" }, buttons), this.complaint(field));
  }

  numbers(field) {
    const legend = element("legend", {}, field.label);
    const body = !Array.isArray(field.default)
      ? this.number(field, [], field.label, false)
      : Array.isArray(field.default[0]) ? this.matrix(field) : this.row(field);
    return element("fieldset", { class: "field" }, legend, body, this.complaint(field));
  }

  row(field) {
    return element("div", { class: "row" }, field.default.map((_, i) => this.number(field, [i], field.columns[i], true)));
  }

  matrix(field) {
    const head = element("tr", {}, element("td"), field.columns.map((name) => element("th", { scope: "col" }, name)));
    const rows = field.default.map((row, i) => element("tr", {}, element("th", { scope: "row" }, field.rows[i]),
      row.map((_, j) => element("td", {}, this.cell(field, [i, j], `${field.label}, ${field.rows[i]}, ${field.columns[j]}`)))));
    return element("table", { class: "matrix" }, element("thead", {}, head), element("tbody", {}, rows));
  }

  number(field, index, name, named) {
    const { box, slider } = this.pair(field, index, named ? `${field.label}, ${name}` : field.label);
    return element("div", { class: named ? "number named" : "number" },
      named ? element("span", { class: "name", "aria-hidden": "true" }, name) : [], slider, box);
  }

  cell(field, index, label) {
    const { box, slider } = this.pair(field, index, label);
    return element("div", { class: "cell" }, box, slider);
  }

  pair(field, index, label) {
    const value = this.get(field, index);
    const box = element("input", { type: "text", class: "box", autocomplete: "off", spellcheck: "false", "aria-label": label });
    const slider = element("input", { type: "range", class: "slider", min: field.min, max: field.max, step: field.step,
      "aria-label": `${label}, slider` });
    box.value = value;
    slider.value = value;
    box.addEventListener("input", () => { this.put(field, index, box.value); slide(slider, box.value); });
    box.addEventListener("keydown", (event) => this.nudge(event, field, index, box));
    slider.addEventListener("input", () => { this.put(field, index, Number(slider.value)); box.value = slider.value; fill(slider); });
    this.boxes.set(key(field.name, index), { input: box, slider });
    fill(slider);
    return { box, slider };
  }

  // Arrow keys step a typed number as they do a slider; with Shift ten times as far.
  nudge(event, field, index, box) {
    const sign = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const now = Number(box.value);
    if (!sign || box.value.trim() === "" || !Number.isFinite(now)) return;
    event.preventDefault();
    this.set(field.name, index, now + sign * field.step * (event.shiftKey ? 10 : 1));
  }

  // Set a number from outside, as a figure does that is dragged: rounded to the field's steps and within the slider's ends.
  set(name, index, value) {
    const { field } = this.groups.get(name);
    const rounded = Math.round(value / field.step) * field.step;
    const number = Number(Math.min(field.max, Math.max(field.min, rounded)).toFixed(6));
    const pair = this.boxes.get(key(name, index));
    pair.input.value = number;
    slide(pair.slider, number);
    this.put(field, index, number);
  }

  // Put a whole state in, as a link does.
  load(state) {
    this.state = state;
    for (const { field } of this.groups.values()) {
      if (field.kind === "choice") {
        for (const [option] of field.options) this.boxes.get(`${field.name}:${option}`).input.checked = option === state[field.name];
      } else {
        each(field.default, (index) => {
          const { input, slider } = this.boxes.get(key(field.name, index));
          input.value = this.get(field, index);
          slide(slider, input.value);
        });
      }
    }
    this.showRelevant();
  }

  put(field, index, value) {
    if (index.length === 0) this.state[field.name] = value;
    if (index.length === 1) this.state[field.name][index[0]] = value;
    if (index.length === 2) this.state[field.name][index[0]][index[1]] = value;
    this.showRelevant();
    this.changed();
  }

  get(field, index) {
    return index.reduce((value, place) => value[place], this.state[field.name]);
  }

  showRelevant() {
    for (const { field, group } of this.groups.values()) {
      group.hidden = Object.entries(field.when).some(([name, value]) => this.state[name] !== value);
    }
  }

  complaint(field) {
    return element("p", { class: "complaint", id: `complaint-${field.name}`, role: "alert", hidden: true });
  }

  // Show what is wrong at its field; returns false if it belongs to none of them.
  complain(message, name, index) {
    this.content();
    const found = this.groups.get(name);
    if (!found) return false;
    const line = found.group.querySelector(".complaint");
    line.textContent = message;
    line.hidden = false;
    const pair = this.boxes.get(key(name, index)) ?? [...this.boxes].find(([at]) => at.startsWith(name))?.[1];
    pair?.input.setAttribute("aria-invalid", "true");
    pair?.input.setAttribute("aria-describedby", line.id);
    return true;
  }

  content() {
    for (const { group } of this.groups.values()) {
      const line = group.querySelector(".complaint");
      line.hidden = true;
      line.textContent = "";
    }
    for (const { input } of this.boxes.values()) {
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-describedby");
    }
  }
}

const key = (name, index) => [name, ...index].join(":");

function each(value, visit, index = []) {
  if (Array.isArray(value)) value.forEach((one, i) => each(one, visit, [...index, i]));
  else visit(index);
}

function slide(slider, value) {
  const number = Number(value);
  if (String(value).trim() !== "" && Number.isFinite(number)) slider.value = number;
  fill(slider);
}

// The track is coloured from 0 to the thumb; CSS cannot know how far that is.
function fill(slider) {
  const [value, min, max] = [slider.value, slider.min, slider.max].map(Number);
  const share = (number) => 100 * Math.min(1, Math.max(0, (number - min) / (max - min)));
  const ends = [share(0), share(value)].sort((a, b) => a - b);
  slider.style.setProperty("--from", `${ends[0]}%`);
  slider.style.setProperty("--to", `${ends[1]}%`);
}
