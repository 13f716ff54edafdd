// Finds the view of the address behind `#`, and shows it again whenever weir says that something has changed.

import { h } from "./dom.js";
import { views } from "./views.js";

const main = document.getElementById("main");
const state = document.getElementById("state");

/** An answer of the API, or an error with what it says. */
async function get(path) {
  const response = await fetch(`/api/v1/${path}`);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.message ?? `HTTP status ${response.status}`), { status: response.status });
  return answer;
}

/** The view's name, its further parts and its parameters. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...parts] = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { name: name ?? "", parts, parameters: new URLSearchParams(query) };
}

let shown = 0;
let lastAddress;

async function show() {
  const turn = ++shown;
  const here = place();
  const view = views[here.name];
  const moved = lastAddress !== location.hash;
  lastAddress = location.hash;
  document.querySelectorAll("nav a").forEach((link) => {
    const current = here.name !== "" && link.getAttribute("href") === `#/${here.name}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  let content;
  try {
    content = view ? await view({ ...here, get }) : h("p", {}, "There is no such page. ", h("a", { href: "#/" }, "Overview"));
    connected();
  } catch (error) {
    content = [h("h1", {}, error.status === 404 ? "Not found" : "No answer"), h("p", { class: "notice bad", role: "alert" }, error.message)];
  }
  if (turn !== shown) return;
  const filter = document.getElementById("filter");
  const kept = !moved && filter ? { text: filter.value, focused: document.activeElement === filter } : undefined;
  main.replaceChildren(...[content].flat(9).filter(Boolean));
  const heading = main.querySelector("h1");
  document.title = heading ? `${heading.textContent} · weir` : "weir";
  if (kept) restoreFilter(kept);
  if (moved && turn > 1) main.focus({ preventScroll: true });
}

function restoreFilter({ text, focused }) {
  const filter = document.getElementById("filter");
  if (!filter) return;
  filter.value = text;
  applyFilter(text);
  if (focused) filter.focus();
}

function applyFilter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of main.querySelectorAll("tbody tr")) {
    row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  }
}

function connected() {
  state.textContent = `live, ${new Date().toLocaleTimeString()}`;
  state.className = "";
}

/** weir sends an event when proxies or objects change. A form that someone fills in is left alone. */
function follow() {
  const events = new EventSource("/api/v1/events");
  events.addEventListener("changed", () => {
    if (!main.querySelector("form") && !document.hidden) show();
  });
  events.onerror = () => {
    state.textContent = "no connection to weir; what is shown may be old";
    state.className = "bad";
  };
  events.onopen = connected;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("filter")?.focus();
  } else if (event.key === "o") {
    location.hash = "#/";
  } else {
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) location.hash = link.getAttribute("href");
  }
});
document.addEventListener("input", (event) => {
  if (event.target.id === "filter") applyFilter(event.target.value);
});
document.addEventListener("visibilitychange", () => document.hidden || main.querySelector("form") || show());
addEventListener("hashchange", show);
show();
follow();
