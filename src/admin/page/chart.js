// Draws shares over time: what was wanted (dashed), what was in effect (line), what was observed with its bound (band).

import { h, percent, s } from "./dom.js";

const WIDTH = 900, HEIGHT = 260, LEFT = 48, RIGHT = 10, TOP = 10, BOTTOM = 28;
const COLOURS = 4;

/** `destinations`: names; `points`: `{time: ms, shares: [{wanted, effective, observed, lower, upper}]}`, oldest first. */
export function chart(title, destinations, points) {
  if (points.length < 2) return h("p", { class: "muted" }, "The chart begins with the second sample, some seconds from now.");
  const [from, to] = [points[0].time, points.at(-1).time];
  const x = (time) => LEFT + ((time - from) / Math.max(1, to - from)) * (WIDTH - LEFT - RIGHT);
  const y = (share) => TOP + (1 - Math.min(100, Math.max(0, share)) / 100) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, 25, 50, 75, 100].map((share) => [
    s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share) }),
    s("text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end" }, `${share} %`),
  ]);
  for (let n = 0; n <= 4; n += 1) {
    const time = from + ((to - from) * n) / 4;
    const anchor = n === 0 ? "start" : n === 4 ? "end" : "middle";
    parts.push(s("text", { x: x(time), y: HEIGHT - 8, "text-anchor": anchor }, new Date(time).toLocaleTimeString()));
  }
  destinations.forEach((_, index) => {
    const colour = index % COLOURS;
    const values = points.map((point) => ({ time: point.time, ...point.shares[index] }));
    for (const run of runs(values, (value) => value.lower !== undefined)) {
      const upper = run.map((value) => `${x(value.time)} ${y(value.upper)}`);
      const lower = run.map((value) => `${x(value.time)} ${y(value.lower)}`).reverse();
      parts.push(s("path", { class: `band area${colour}`, d: `M${[...upper, ...lower].join("L")}Z` }));
      parts.push(s("path", { class: `line${colour}`, d: `M${run.map((value) => `${x(value.time)} ${y(value.observed)}`).join("L")}` }));
    }
    parts.push(s("path", { class: `wanted line${colour}`, d: steps(values.map((value) => [x(value.time), y(value.effective)])) }));
  });
  const last = points.at(-1).shares;
  const text = destinations.map((name, n) => `${name}: in effect ${percent(last[n]?.effective)}, observed ${percent(last[n]?.observed)}`);
  return h("figure", {},
    s("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. Now ${text.join("; ")}.` }, parts),
    h("ul", { class: "legend" }, destinations.map((name, n) => h("li", { class: `key${n % COLOURS}` }, `■ ${name}`)),
      h("li", { class: "muted" }, "dashed: weight in effect; line and band: observed share with its bound")));
}

/** The parts of a list in which every value has what is asked for. */
function runs(values, has) {
  const found = [[]];
  for (const value of values) {
    if (has(value)) found.at(-1).push(value);
    else if (found.at(-1).length > 0) found.push([]);
  }
  return found.filter((run) => run.length > 0);
}

/** A line that stays level until the next value. */
function steps(points) {
  return points.map(([x, y], n) => (n === 0 ? `M${x} ${y}` : `H${x}V${y}`)).join("");
}
