// Builds elements. Text always becomes a text node, so nothing that an object or a proxy says is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== undefined && child !== null && child !== false && child !== ""));
  return element;
}

/** An HTML element with attributes and children: elements, texts, or lists of them. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * A table. `columns` are `[title, cell of a row, class]`; on a narrow screen each cell has its title beside it.
 */
export function table(caption, columns, rows, empty) {
  if (rows.length === 0) return h("p", { class: "muted" }, empty);
  const head = columns.map(([title, , kind]) => h("th", { scope: "col", class: kind }, title));
  const body = rows.map((row) =>
    h("tr", {}, columns.map(([title, cell, kind]) => h("td", { class: kind, "data-label": title }, h("span", {}, cell(row))))));
  return h("div", { class: "scroll" },
    h("table", { class: "stack" },
      h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

/** A share or a rate in percent, with as many digits as tell something. */
export function percent(value) {
  if (value === undefined || value === null) return "–";
  const digits = value === 0 || value >= 10 ? 1 : 2;
  return `${Number(value.toFixed(digits))} %`;
}

/** A time of the API in this browser's zone, to the millisecond. */
export function clock(text) {
  const time = new Date(text);
  const two = (n, digits = 2) => String(n).padStart(digits, "0");
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  return `${day} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${two(time.getMilliseconds(), 3)}`;
}
