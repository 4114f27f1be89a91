// The link holds the state: #lesson?field=1,2,3&other=4;5, with only what differs from the defaults.

export function read() {
  const [slug, query = ""] = location.hash.slice(1).split("?");
  return { slug: decode(slug), texts: new URLSearchParams(query) };
}

export function toState(fields, texts) {
  const state = {};
  for (const field of fields) {
    const text = texts.get(field.name);
    state[field.name] = text === null ? structuredClone(field.default) : parse(field, text);
  }
  return state;
}

// A link of the wrong shape is sent as it is: the server says what is wrong, at the field.
function parse(field, text) {
  if (!Array.isArray(field.default)) return text;
  if (!Array.isArray(field.default[0])) return fit(text.split(","), field.default);
  return fit(text.split(";"), field.default).map((row, i) =>
    Array.isArray(row) ? row : fit(String(row).split(","), field.default[i]));
}

const fit = (parts, like) => like.map((value, i) => (i < parts.length ? parts[i] : structuredClone(value)));

export function toHash(slug, fields, state) {
  const query = [];
  for (const field of fields) {
    const text = write(state[field.name]);
    if (text !== write(field.default)) query.push(`${field.name}=${encodeURIComponent(text).replaceAll("%2C", ",").replaceAll("%3B", ";")}`);
  }
  return `#${slug}${query.length ? "?" + query.join("&") : ""}`;
}

function write(value) {
  if (!Array.isArray(value)) return String(value);
  return value.map(write).join(Array.isArray(value[0]) ? ";" : ",");
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
