// The pages. Each view takes `{parts, parameters, get}` and returns elements; the first one is its heading.

import { chart } from "./chart.js";
import { clock, h, percent, table } from "./dom.js";

const path = (...parts) => parts.map(encodeURIComponent).join("/");
const canaryLink = ({ object }, text) =>
  h("a", { href: `#/canaries/${path(object.namespace, object.name)}` }, text ?? `${object.namespace}/${object.name}`);
const objectLink = (object) =>
  h("a", { href: `#/timeline/${path(object.kind, object.namespace, object.name)}` }, `${object.kind} ${object.namespace}/${object.name}`);
const proxyLink = (name) => h("a", { href: `#/proxies/${path(...name.split("/"))}` }, name);
const search = () =>
  h("input", { id: "filter", class: "filter", type: "search", placeholder: "filter  ( / )", "aria-label": "Filter the rows" });

/** `namespace/name` of a proxy. */
const proxyName = (proxy) => `${proxy.namespace}/${proxy.pod}`;
const isStale = (proxy) => proxy.types.some((type) => type.state === "STALE");

function proxyState(proxy) {
  if (proxy.lagging) return ["lagging", "bad"];
  if (proxy.rejected.length > 0) return [`rejects ${proxy.rejected.length}`, "bad"];
  if (proxy.held.length > 0) return [`${proxy.held.length} held back`, "warn"];
  return isStale(proxy) ? ["in progress", "warn"] : ["in sync", "good"];
}

function liveText(split) {
  const all = split.live === split.inScope;
  return h("span", { class: all ? "good" : "warn" }, `${split.live}/${split.inScope}`);
}

function destination(share) {
  const port = share.port > 0 ? `:${share.port}` : "";
  return `${share.host}${port}${share.subset ? ` ${share.subset}` : ""}`;
}

/** The observed share with its bound, or a dash as long as nothing is known. */
function observed(share) {
  const seen = share.observed;
  if (seen?.percent === undefined) return h("span", { class: "muted" }, "–");
  return h("span", { title: `${seen.requests} requests` }, `${percent(seen.percent)} (${percent(seen.lower)} to ${percent(seen.upper)})`);
}

function errors(share) {
  const seen = share.observed;
  if (seen?.errorPercent === undefined) return h("span", { class: "muted" }, "–");
  const worse = seen.verdict === "WORSE";
  return h("span", { class: worse ? "bad" : undefined }, `${percent(seen.errorPercent)} of ${seen.ended}${worse ? ", worse" : ""}`);
}

const shareColumns = [
  ["Destination", (row) => destination(row.share), "wrap"],
  ["Wanted", (row) => percent(row.share.wanted), "number"],
  ["In effect", (row) => h("span", { class: row.share.wanted === row.share.effective ? undefined : "warn" }, percent(row.share.effective)), "number"],
  ["Observed", (row) => observed(row.share), "number"],
  ["Errors", (row) => errors(row.share), "number"],
];

function splitRows(splits) {
  return splits.flatMap((split) => split.shares.map((share, n) => ({ split, share, first: n === 0 })));
}

const splitColumns = [
  ["Route", ({ split, first }) => (first ? [canaryLink(split), ` ${split.name || split.field.replace(/^spec\./, "")}`] : ""), "wrap"],
  ...shareColumns,
  ["Live", ({ split, first }) => (first ? liveText(split) : ""), "number"],
];

async function overview({ get }) {
  const [readiness, proxies, splits, findings] =
    await Promise.all([get("readiness"), get("proxies"), get("splits"), get("findings")]);
  const states = proxies.proxies.map((proxy) => proxyState(proxy)[1]);
  const bad = states.filter((state) => state === "bad").length;
  const moving = states.filter((state) => state === "warn").length;
  const serious = findings.findings.filter((finding) => finding.severity === "ERROR").length;
  const lagging = splits.splits.filter((split) => split.live !== split.inScope || split.invalid.length > 0).length;
  const failing = readiness.kinds.filter((kind) => kind.state !== "SYNCED" && kind.state !== "ABSENT");
  const tile = (href, value, text, kind) =>
    h("div", { class: "tile" }, h("a", { href }, h("b", { class: kind }, String(value)), text));
  return [
    h("h1", {}, "The mesh at a glance"),
    failing.length > 0 && h("p", { class: "notice bad", role: "alert" },
      `Not up to date: ${failing.map((kind) => `${kind.resource} (${kind.reason || kind.state.toLowerCase()})`).join("; ")}`),
    proxies.unanswered.length > 0 && h("p", { class: "notice bad", role: "alert" },
      `The API has not answered for ${proxies.unanswered[0].answeredSecondsAgo} s: changes since then are not known.`),
    h("div", { class: "tiles" },
      tile("#/proxies", proxies.proxies.length, "proxies connected"),
      tile("#/proxies", bad, "reject something or lag", bad ? "bad" : "good"),
      tile("#/proxies", moving, "take in a change", moving ? "warn" : "good"),
      tile("#/canaries", splits.splits.length, "weighted routes"),
      tile("#/canaries", lagging, "of them not live everywhere", lagging ? "warn" : "good"),
      tile("#/findings", serious, `errors in ${findings.findings.length} findings`, serious ? "bad" : "good")),
    h("h2", {}, "Canaries"),
    table("Weighted routes", splitColumns, splitRows(splits.splits.slice(0, 50)), "No route has several weighted destinations."),
    splits.splits.length > 50 && h("p", {}, h("a", { href: "#/canaries" }, `All ${splits.splits.length}`)),
  ];
}

async function canaries({ parts, get }) {
  const [namespace, name] = parts;
  const { splits } = await get("splits");
  if (name === undefined) {
    return [h("h1", {}, "Canaries"), search(),
      table("Weighted routes", splitColumns, splitRows(splits), "No route has several weighted destinations.")];
  }
  const own = splits.filter(({ object }) => object.namespace === namespace && object.name === name);
  const key = path("VirtualService", namespace, name);
  const [status, history, timeline] = await Promise.all([
    get(`objects/virtualservice/${path(namespace, name)}`), get(`history/${path(namespace, name)}`), get(`timeline/${key}`)]);
  const behind = status.proxies.filter((proxy) => proxy.state !== "LIVE");
  return [
    h("h1", {}, `${namespace}/${name}`),
    status.invalid.map((why) => h("p", { class: "notice bad" }, `The newest version is rejected: ${why}`)),
    status.held.map((why) => h("p", { class: "notice" }, `Held back: ${why}`)),
    h("p", {}, status.live ? h("span", { class: "good" }, "Live") : h("span", { class: "warn" }, "Not live everywhere"),
      ` on ${status.proxies.length - behind.length} of ${status.proxies.length} proxies, generation ${status.generation}.`),
    own.map((split) => routeSection(split, history.routes.find((route) => route.field === split.field && same(route.definedIn, split.definedIn)))),
    own.length === 0 && h("p", { class: "muted" }, "It has no route with several weighted destinations."),
    behind.length > 0 && [h("h2", {}, "Proxies that do not have it"),
      table("Proxies that do not have it", [
        ["Proxy", (proxy) => proxyLink(nodeName(proxy.id)), "wrap"],
        ["State", (proxy) => proxy.state.toLowerCase()],
        ["Why", (proxy) => proxy.reason, "wrap"]], behind, "")],
    h("h2", {}, "What happened"),
    entries(timeline),
  ];
}

const same = (a, b) => a?.namespace === b?.namespace && a?.name === b?.name;

/** `namespace/pod` of a node id, `sidecar~IP~POD.NAMESPACE~DOMAIN`. */
function nodeName(id) {
  const workload = id.split("~")[2] ?? id;
  const dot = workload.lastIndexOf(".");
  return dot < 0 ? workload : `${workload.slice(dot + 1)}/${workload.slice(0, dot)}`;
}

function routeSection(split, history) {
  const rows = split.shares.map((share) => ({ split, share }));
  const points = (history?.points ?? []).map((point) => ({ time: Date.parse(point.time), shares: point.shares }));
  const names = split.shares.map(destination);
  return [
    h("h2", {}, split.name ? `${split.name} (${split.field})` : split.field),
    table("Shares", shareColumns, rows, ""),
    judgement(split),
    chart(`Shares of ${split.field} over time`, names, points),
  ];
}

const verdicts = {
  WORSE: "fails more often than the first destination",
  NO_WORSE: "fails no more often than the first destination",
  TOO_FEW_REQUESTS: "has too few requests to say whether it fails more often",
};

/** What the observation says, and how much of the traffic it does not see. */
function judgement(split) {
  const of = split.observation;
  if (!of) return h("p", { class: "muted" }, "Load reports are off, so nothing is observed.");
  const unseen = of.inScope - of.reporting;
  const judged = split.shares.filter((share) => verdicts[share.observed?.verdict]).map((share) =>
    h("p", { class: share.observed.verdict === "WORSE" ? "bad" : undefined },
      `${share.subset || share.host} ${verdicts[share.observed.verdict]}: the difference is between ` +
      `${percent(share.observed.differenceLower)} and ${percent(share.observed.differenceUpper)}.`));
  const names = of.sharedWith.map((route) => `${route.object.namespace}/${route.object.name} ${route.field}`);
  return [
    judged,
    h("p", { class: unseen > 0 ? "notice" : "muted" },
      `${of.reporting} of ${of.inScope} proxies report requests with these weights`,
      unseen > 0 ? `; those of the other ${unseen} are not seen` : "",
      `. Window ${of.windowSeconds} s, bounds at ${of.level} %.`),
    names.length > 0 && h("p", { class: "notice" }, `The counts include other routes to the same clusters: ${names.join(", ")}.`),
    of.missingReplicas.map((why) => h("p", { class: "notice" }, `A replica is missing in the counts: ${why}`)),
    of.leftOut && h("p", { class: "notice" }, "Some reports are missing in the counts because a limit was reached."),
  ];
}

async function proxies({ parts, get }) {
  if (parts.length > 1) return proxy(parts.join("/"), get);
  const answer = await get("proxies");
  const order = { bad: 0, warn: 1, good: 2 };
  const list = answer.proxies.toSorted((a, b) =>
    order[proxyState(a)[1]] - order[proxyState(b)[1]] || proxyName(a).localeCompare(proxyName(b)));
  return [h("h1", {}, "Proxies"), search(), proxyTable(list, answer.meshRevision)];
}

function proxyTable(list, newest) {
  return table("Connected proxies", [
    ["Proxy", (proxy) => proxyLink(proxyName(proxy)), "wrap"],
    ["State", (proxy) => stateText(proxy)],
    ["Revision", (proxy) => `${proxy.acked ?? "none"} of ${proxy.wanted ?? newest}`, "number"],
    ["Stream", (proxy) => proxy.streams.map((stream) => stream.variant).join(", ")],
    ["Since", (proxy) => clock(proxy.streams[0]?.since).slice(0, 19)],
  ], list, "No proxy is connected.");
}

function stateText(proxy) {
  const [text, kind] = proxyState(proxy);
  return h("span", { class: kind, title: proxy.lagging || undefined }, text);
}

async function proxy(name, get) {
  const query = `proxy=${encodeURIComponent(name)}`;
  const [dump, diff] = await Promise.all([get(`dump?${query}`), get(`diff?${query}`)]);
  const own = dump.proxy;
  return [
    h("h1", {}, name),
    h("p", {}, stateText(own), own.lagging ? `: ${own.lagging}` : "", ` · ${own.id} · scope ${own.scope}`),
    own.rejected.map((item) => h("p", { class: "notice bad" },
      `Rejects ${item.type} ${item.name}${item.virtualHost ? ` (virtual host ${item.virtualHost})` : ""}: ${item.message} `,
      item.objects.map((object) => [objectLink(object), " "]))),
    own.held.map((item) => h("p", { class: "notice" },
      `${item.type} ${item.virtualHost || item.name} is held back: cluster ${item.missingCluster} does not exist. `,
      item.objects.map((object) => [objectLink(object), " "]))),
    h("h2", {}, "Types"),
    table("Types", [["Type", (type) => type.type], ["State", (type) => type.state.toLowerCase().replace("_", " ")]], own.types, ""),
    h("h2", {}, "Against a fresh translation"),
    table("Differences", [
      ["Type", (item) => item.type], ["Resource", (item) => item.name, "wrap"], ["Field", (item) => item.field, "wrap"],
      ["Sent", (item) => JSON.stringify(item.sent), "wrap mono"], ["Fresh", (item) => JSON.stringify(item.fresh), "wrap mono"],
    ], diff.differences, "No difference: it was sent just what a translation from scratch gives."),
    own.kept.length > 0 && [h("h2", {}, "Kept clusters"), h("p", { class: "wrap" }, `No longer defined, but still referenced: ${own.kept.join(", ")}`)],
    h("h2", {}, `Resources (${dump.resources.length})`),
    search(),
    table("Resources", [
      ["Type", (item) => item.type], ["Name", (item) => resource(item), "wrap"], ["State", (item) => item.state.toLowerCase()],
      ["Version", (item) => item.version, "mono"]], dump.resources, "It was sent nothing yet."),
  ];
}

function resource(item) {
  const body = h("pre", {});
  const details = h("details", {}, h("summary", { class: "wrap" }, item.name), body);
  // Written when it is opened: a proxy may have thousands.
  details.addEventListener("toggle", () => { body.textContent = JSON.stringify(item.resource, null, 2); }, { once: true });
  return details;
}

async function timeline({ parts, get }) {
  if (parts.length < 3) {
    const answer = await get("timeline");
    return [h("h1", {}, "Time line"), h("p", { class: "muted" }, "Of all objects. Follow a name for one of them."), entries(answer)];
  }
  const [kind, namespace, name] = parts;
  const answer = await get(`timeline/${path(kind, namespace, name)}`);
  const split = kind.toLowerCase() === "virtualservice" ? { object: { namespace, name } } : undefined;
  return [h("h1", {}, `${kind} ${namespace}/${name}`),
    split && h("p", {}, canaryLink(split, "Shares and proxies of this VirtualService")), entries(answer)];
}

const alarming = new Set(["REJECTED", "NACKED", "LAGGING", "API_SILENT", "API_FAILING", "API_FORBIDDEN", "FILE_UNREADABLE", "MISSING_CLUSTER", "NO_ENDPOINTS"]);
const noteworthy = new Set(["HELD", "UNSEEN", "DELETED", "NO_REQUESTS"]);
const welcome = new Set(["ACKED", "REQUESTS", "ENDPOINTS", "RELEASED", "CAUGHT_UP", "API_ANSWERS", "FILE_READABLE"]);

function entries(answer) {
  const rows = answer.entries.toReversed().map((entry) => {
    const kind = alarming.has(entry.kind) ? "bad" : noteworthy.has(entry.kind) ? "warn" : welcome.has(entry.kind) ? "good" : undefined;
    const more = entry.proxies.map((proxy) => h("div", { class: "muted wrap" }, proxyLink(proxy.proxy), proxy.reason ? `: ${proxy.reason}` : ""));
    return h("li", {}, h("time", { datetime: entry.time }, clock(entry.time)),
      h("span", { class: kind }, entry.kind.toLowerCase().replaceAll("_", " ")),
      h("div", { class: "wrap" }, !answer.object && entry.object ? [objectLink(entry.object), ": "] : "", entry.text, more));
  });
  const since = answer.wholeSince ? `Complete since ${clock(answer.wholeSince)}` : "";
  return [
    h("p", { class: "muted" }, `${since}${answer.replica ? `, as replica ${answer.replica} saw it` : ""}. Newest first.`),
    rows.length === 0 ? h("p", { class: "muted" }, "Nothing happened.") : h("ol", { class: "entries" }, rows),
  ];
}

async function explain({ parameters, get }) {
  const field = (name, label, hint, extra) =>
    h("label", {}, label, h("span", {}, hint), extra?.rows
      ? h("textarea", { name, ...extra }, parameters.get(name) ?? "")
      : h("input", { name, value: parameters.get(name) ?? "", autocomplete: "off", spellcheck: "false", ...extra }));
  const known = await get("proxies");
  const submit = (event) => {
    event.preventDefault();
    const data = [...new FormData(event.target)].filter(([, value]) => value !== "");
    const address = `#/explain?${new URLSearchParams(data)}`;
    // The same question again asks again.
    if (location.hash === address) dispatchEvent(new HashChangeEvent("hashchange"));
    else location.hash = address;
  };
  return [
    h("h1", {}, "Where does a request go?"),
    h("form", { onsubmit: submit },
      field("from", "From", "the client pod, NAMESPACE/POD", { required: true, list: "proxies" }),
      h("datalist", { id: "proxies" }, known.proxies.slice(0, 1000).map((proxy) => h("option", { value: proxyName(proxy) }))),
      field("request", "Request", "METHOD URL, like GET http://web/api; or leave it empty and give a connection"),
      field("headers", "Headers", "one on each line, like x-user: alice", { rows: 2 }),
      field("tcp", "Connection", "HOST:PORT, for what is not HTTP"),
      field("sni", "Server name", "SNI of a TLS client"),
      h("div", {}, h("button", { type: "submit" }, "Explain"))),
    await explanation(parameters, get),
  ];
}

async function explanation(parameters, get) {
  if (!parameters.get("from")) return "";
  const query = new URLSearchParams();
  for (const [name, value] of parameters) {
    const values = name === "headers" ? value.split(/\r?\n/).filter((line) => line.trim() !== "") : [value];
    values.forEach((each) => query.append(name, each));
  }
  try {
    const answer = await get(`explain?${query}`);
    return h("section", { "aria-label": "Answer", "aria-live": "polite" },
      h("h2", {}, answer.succeeds ? "It is served" : h("span", { class: "bad" }, "It fails")),
      !answer.proxy && h("p", { class: "notice" }, "The proxy of this pod is not connected: this is what it would get."),
      h("pre", {}, answer.text));
  } catch (error) {
    return h("p", { class: "notice bad", role: "alert" }, error.message);
  }
}

async function findings({ get }) {
  const answer = await get("findings");
  const kinds = { ERROR: "bad", WARNING: "warn" };
  return [h("h1", {}, "Findings"), search(), table("Findings", [
    ["Severity", (item) => h("span", { class: kinds[item.severity] }, item.severity.toLowerCase())],
    ["Code", (item) => item.code, "mono"],
    ["Object", (item) => [item.object ? objectLink(item.object) : "", item.origin ? h("div", { class: "muted wrap" }, item.origin) : ""], "wrap"],
    ["Field", (item) => item.field, "wrap mono"],
    ["Problem", (item) => [item.message, item.advice ? h("div", { class: "muted" }, item.advice) : ""], "wrap"],
  ], answer.findings, "No problem was found.")];
}

export const views = { "": overview, canaries, proxies, timeline, explain, findings };
