// Draws figures as SVG, at the width there is. Every number, tick and text comes from the server; what is decided here is
// where on the screen it goes. A figure that can be dragged tells the field, and the field asks the server.

import { element, svg } from "./nodes.js";

const CHARACTER = 6.6; // about how wide a character of the figures' small type is
const kinds = { bars, curve, heat };

export function draw(card, figure, drag) {
  const caption = element("figcaption", {}, element("span", {}, figure.title), legend(figure));
  if (figure.kind === "table") {
    card.replaceChildren(caption, table(figure));
    return;
  }
  const width = Math.max(220, Math.floor(card.clientWidth - padding(card)));
  const picture = kinds[figure.kind](figure, width, drag);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", figure.alt);
  card.replaceChildren(caption, picture);
}

function padding(card) {
  const style = getComputedStyle(card);
  return parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
}

function legend(figure) {
  const entries = figure.kind === "bars" ? [...figure.series, ...(figure.reference ? [{ ...figure.reference, line: true }] : [])] : figure.lines ?? [];
  const unit = figure.kind === "bars" && figure.axis.label ? [element("span", {}, figure.axis.label)] : [];
  if (entries.length < 2) return unit.length ? element("span", { class: "legend" }, unit) : [];
  return element("span", { class: "legend" }, entries.map((each) => element("span", { class: "entry" },
    element("i", { class: `swatch tone-${each.tone}${each.line || each.dashed ? " line" : ""}`, "aria-hidden": "true" }), each.name)), unit);
}

// A number from JSON: what is not finite comes as a text.
const number = (value) => ({ inf: Infinity, "-inf": -Infinity, nan: NaN })[value] ?? value;

const scale = (axis, from, to) => (value) => from + ((value - axis.min) / (axis.max - axis.min)) * (to - from);

const text = (x, y, words, attributes = {}) => svg("text", { x, y, ...attributes }, words);

function frame(width, height) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
}

// Bars stand upright where their texts have room, and lie down where they have not.

function bars(figure, width, drag) {
  const count = figure.labels.length;
  const longest = Math.max(...figure.labels.map((label) => label.length));
  const column = (width - 46) / count;
  const each = (column * 0.8) / figure.series.length;
  const words = Math.max(...figure.series.flatMap((series) => series.texts.map((text) => text.length)));
  const crowded = longest * CHARACTER > column || each < words * CHARACTER;
  if (crowded && count <= 8) return lying(figure, width);
  return upright(figure, width, drag, column);
}

function upright(figure, width, drag, column) {
  const height = 230, top = 24, left = 46;
  const bottom = height - (figure.axis.min < 0 ? 44 : 28);
  const y = scale(figure.axis, bottom, top);
  const picture = frame(width, height);
  gridlines(picture, figure.axis, y, left, width);
  const zero = y(Math.min(figure.axis.max, Math.max(figure.axis.min, 0)));
  const many = figure.series.length;
  const thick = Math.min(64, (column * (many > 1 ? 0.82 : 0.6)) / many);
  const skip = Math.ceil((Math.max(...figure.labels.map((label) => label.length)) * CHARACTER + 4) / column);
  figure.labels.forEach((label, i) => {
    const middle = left + column * (i + 0.5);
    const marked = figure.marked.includes(i) ? " marked" : "";
    if (i % skip === 0) picture.append(text(middle, height - 8, label, { class: `label${marked}`, "text-anchor": "middle" }));
    const level = figure.reference ? y(clamp(number(figure.reference.values[i]), figure.axis)) : Infinity;
    figure.series.forEach((series, k) => {
      const value = number(series.values[i]);
      const end = y(clamp(value, figure.axis));
      const x = middle + (k - many / 2) * thick + 1;
      const shape = { x, y: Math.min(zero, end), width: Math.max(1, thick - 2), height: Math.max(1, Math.abs(end - zero)), rx: Math.min(3, thick / 4) };
      picture.append(svg("rect", { ...shape, class: barClass(figure, series, i, value) }));
      if (thick >= 5.2 * CHARACTER) {
        picture.append(text(x + thick / 2 - 1, value < 0 ? end + (figure.drag ? 20 : 14) : Math.min(end, level) - (figure.drag ? 12 : 7), series.texts[i], { class: "value", "text-anchor": "middle" }));
      }
    });
    if (figure.reference) {
      picture.append(svg("line", { x1: middle - thick * 0.7, x2: middle + thick * 0.7, y1: level, y2: level, class: "reference" }));
    }
    if (figure.drag) grips(picture, figure, i, { x: middle - column / 2, width: column, top, bottom, end: y(clamp(number(figure.series[0].values[i]), figure.axis)), middle }, drag);
  });
  picture.append(svg("line", { x1: left, x2: width, y1: zero, y2: zero, class: "zero" }));
  return picture;
}

// Among bars of one kind the marked one has the accent; among several kinds colour already has a meaning.
function barClass(figure, series, i, value) {
  const tone = figure.series.length === 1 && figure.marked.includes(i) ? "accent" : series.tone;
  return `bar tone-${tone}${Number.isFinite(value) ? "" : " endless"}`;
}

// A column that can be taken anywhere; the ring shows that it can.
function grips(picture, figure, i, at, drag) {
  const handle = svg("rect", { x: at.x, y: at.top, width: at.width, height: at.bottom - at.top, class: "grip upright" });
  const ring = svg("circle", { cx: at.middle, cy: at.end, r: 6, class: "handle" });
  handle.addEventListener("pointerdown", (event) => follow(event, picture, (x, y) => {
    const share = (at.bottom - y) / (at.bottom - at.top);
    drag(figure.drag, [i], figure.axis.min + share * (figure.axis.max - figure.axis.min));
  }));
  picture.append(ring, handle);
}

function lying(figure, width) {
  const many = figure.series.length;
  const thick = many > 1 ? 13 : 16, group = 20 + many * (thick + 3) + 10;
  const height = figure.labels.length * group + 4;
  const widest = Math.max(...figure.series.flatMap((series) => series.texts.map((words) => words.length))) * CHARACTER + 8;
  const left = figure.axis.min < 0 ? widest : 2;
  const x = scale(figure.axis, left, width - widest);
  const zero = x(Math.min(figure.axis.max, Math.max(figure.axis.min, 0)));
  const picture = frame(width, height);
  figure.labels.forEach((label, i) => {
    const marked = figure.marked.includes(i) ? " marked" : "";
    picture.append(text(0, i * group + 15, label, { class: `label${marked}` }),
      svg("line", { x1: zero, x2: zero, y1: i * group + 18, y2: i * group + 24 + many * (thick + 3), class: "zero" }));
    figure.series.forEach((series, k) => {
      const value = number(series.values[i]);
      const end = x(clamp(value, figure.axis));
      const y = i * group + 21 + k * (thick + 3);
      picture.append(svg("rect", { x: Math.min(zero, end), y, width: Math.max(1, Math.abs(end - zero)), height: thick, rx: 3,
        class: barClass(figure, series, i, value) }));
      picture.append(text(value < 0 ? end - 5 : end + 5, y + thick - 3, series.texts[i], { class: "value", "text-anchor": value < 0 ? "end" : "start" }));
    });
    if (figure.reference) {
      const level = x(clamp(number(figure.reference.values[i]), figure.axis));
      picture.append(svg("line", { x1: level, x2: level, y1: i * group + 18, y2: i * group + 24 + many * (thick + 3), class: "reference" }));
    }
  });
  return picture;
}

const clamp = (value, axis) => (Number.isNaN(value) ? 0 : Math.min(axis.max, Math.max(axis.min, value)));

function gridlines(picture, axis, y, left, width) {
  for (const [value, label] of axis.ticks) {
    picture.append(svg("line", { x1: left, x2: width, y1: y(value), y2: y(value), class: "grid" }),
      text(left - 7, y(value) + 4, label, { class: "tick", "text-anchor": "end" }));
  }
}

function curve(figure, width, drag) {
  const height = 260, top = 24, bottom = height - 40, left = 52, right = width - 12;
  const x = scale(figure.x, left, right), y = scale(figure.y, bottom, top);
  const picture = frame(width, height);
  gridlines(picture, figure.y, y, left, right);
  picture.append(text(left, 11, figure.y.label, { class: "axis" }));
  for (const [value, label] of figure.x.ticks) {
    picture.append(text(x(value), bottom + 17, label, { class: "tick", "text-anchor": "middle" }));
  }
  picture.append(svg("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "zero" }),
    text((left + right) / 2, height - 5, figure.x.label, { class: "axis", "text-anchor": "middle" }));
  for (const { x: place, label } of figure.uprights) {
    const late = x(place) > left + 0.7 * (right - left);
    picture.append(svg("line", { x1: x(place), x2: x(place), y1: top - 8, y2: bottom, class: "upright" }),
      text(x(place) + (late ? -5 : 5), top - 1, label, { class: "axis halo", "text-anchor": late ? "end" : "start" }));
  }
  // An inner picture cuts off what leaves the axes.
  const plot = svg("svg", { x: left, y: top - 4, width: right - left, height: bottom - top + 8, overflow: "hidden" });
  for (const line of figure.lines) {
    plot.append(svg("path", { d: path(line.points, (v) => x(v) - left, (v) => y(v) - top + 4), class: `curve stroke-${line.tone}${line.dashed ? " dashed" : ""}` }));
  }
  picture.append(plot);
  const held = figure.points.find((point) => point.field);
  for (const point of figure.points) {
    const px = x(number(point.x)), py = y(number(point.y));
    if (!Number.isFinite(px) || !Number.isFinite(py)) continue;
    const late = px > left + 0.75 * (right - left);
    const low = rises(figure.lines[0].points, number(point.x)) !== late && py < bottom - 24;
    picture.append(svg("circle", { cx: px, cy: py, r: point.field ? 8 : 5, class: point.field ? "handle" : "point" }));
    // Several points are told apart by their curves, which the legend names.
    if (figure.points.length === 1) {
      picture.append(text(px + (late ? -13 : 13), py + (low ? 18 : -8), point.label, { class: "label halo", "text-anchor": late ? "end" : "start" }));
    }
  }
  if (held) pulls(picture, figure, held, { left, right, top, bottom }, drag);
  return picture;
}

// The point goes where the pointer's x is. If the field is the height, it is that of the first curve there.
function pulls(picture, figure, held, box, drag) {
  const handle = svg("rect", { x: box.left, y: box.top - 4, width: box.right - box.left, height: box.bottom - box.top + 8, class: "grip" });
  handle.addEventListener("pointerdown", (event) => follow(event, picture, (px) => {
    const share = Math.min(1, Math.max(0, (px - box.left) / (box.right - box.left)));
    const place = figure.x.min + share * (figure.x.max - figure.x.min);
    const value = held.along === "x" ? place : heightAt(figure.lines[0].points, place);
    drag(held.field, held.place === null ? [] : [held.place], value);
  }));
  picture.append(handle);
}

// On which side of the point the curve leaves room for its name.
const rises = (points, place) => heightAt(points, place + 0.001) > heightAt(points, place);

function heightAt(points, place) {
  const next = Math.max(1, points.findIndex(([x]) => x >= place));
  const [[x0, y0], [x1, y1]] = [points[next - 1], points[next]];
  return y0 + ((place - x0) / (x1 - x0)) * (y1 - y0);
}

// The picture is drawn anew while it is dragged, so the window listens, and the first picture's place counts.
function follow(event, picture, moved) {
  event.preventDefault();
  const box = picture.getBoundingClientRect();
  const move = (at) => moved(at.clientX - box.left, at.clientY - box.top);
  const stop = () => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", stop);
    removeEventListener("pointercancel", stop);
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", stop);
  addEventListener("pointercancel", stop);
  move(event);
}

function path(points, x, y) {
  let drawn = "", pen = false;
  for (const [a, b] of points) {
    const value = number(b);
    if (!Number.isFinite(value)) {
      pen = false;
      continue;
    }
    drawn += `${pen ? "L" : "M"}${x(number(a)).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  }
  return drawn;
}

function heat(figure, width) {
  const head = 24, row = 34;
  const left = Math.max(...figure.rows.map((label) => label.length)) * CHARACTER + 12;
  const column = (width - left) / figure.columns.length;
  const picture = frame(width, head + figure.rows.length * row + 2);
  figure.columns.forEach((label, j) => picture.append(text(left + column * (j + 0.5), 15, label, { class: "label", "text-anchor": "middle" })));
  figure.rows.forEach((label, i) => {
    const top = head + i * row;
    picture.append(text(left - 10, top + row / 2 + 4, label, { class: "label", "text-anchor": "end" }));
    figure.columns.forEach((_, j) => {
      const marked = figure.marked.some(([a, b]) => a === i && b === j);
      const place = { x: left + column * j + 1.5, y: top + 1.5, width: column - 3, height: row - 3, rx: 4 };
      picture.append(svg("rect", { ...place, class: `cell tone-${figure.shades[i][j] < 0 ? "wrong" : "accent"}`, "fill-opacity": 0.04 + 0.46 * Math.abs(figure.shades[i][j]) }));
      if (marked) picture.append(svg("rect", { ...place, class: "frame" }));
      picture.append(text(left + column * (j + 0.5), top + row / 2 + 4, figure.texts[i][j], { class: `value${marked ? " marked" : ""}`, "text-anchor": "middle" }));
    });
  });
  return picture;
}

function table(figure) {
  const head = element("tr", {}, figure.columns.map((name, j) => (name ? element("th", { scope: "col" }, name) : element("td", { class: j ? "" : "corner" }))));
  const rows = figure.rows.map((row, i) => element("tr", { class: figure.marked.includes(i) ? "marked" : null },
    row.map((words, j) => (j === 0 ? element("th", { scope: "row" }, words) : element("td", {}, words)))));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": figure.title },
    element("table", {}, element("thead", {}, head), element("tbody", {}, rows)));
}
