// The pages of the web UI: cluster (index.html) and application (app.html).
//
// Data: GET /api/v1/events (server-sent events): `cluster` carries a ClusterReport, `apps` all AppReports; both come
// whole, at once and on every change. Logs: GET /api/v1/apps/{id}/logs; curves: GET /api/v1/apps/{id}/history, each
// ten seconds. Rendering makes a tree of plain objects
// and brings the DOM in step with it by key, so that focus, scroll and selection stay where they are.

// ---------------------------------------------------------------- DOM

const SVG = new Set(["svg", "path", "polyline"]);

/** An element to be: h("td", {class: "num"}, "12"). */
function h(tag, attrs, ...kids) {
  const present = (kid) => kid !== null && kid !== undefined && kid !== false && kid !== "";
  return { tag, attrs: attrs || {}, kids: kids.flat(Infinity).filter(present) };
}

function setAttribute(node, name, value, before) {
  if (name === "key") return;
  if (name === "style") {
    for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
  } else if (name.startsWith("on")) {
    node[name] = value;
  } else if (name === "checked" || name === "value") {
    if (node[name] !== value) node[name] = value;
  } else if (value !== before) {
    if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
}

/** Brings the children of `parent` in step with `kids`. */
function patch(parent, kids) {
  const keyed = new Map();
  for (const node of parent.childNodes) if (node.ourKey !== undefined) keyed.set(node.ourKey, node);
  let at = parent.firstChild;
  for (const kid of kids) {
    if (typeof kid !== "object") {
      const text = String(kid);
      if (at && at.nodeType === Node.TEXT_NODE) {
        if (at.data !== text) at.data = text;
        at = at.nextSibling;
      } else {
        parent.insertBefore(document.createTextNode(text), at);
      }
      continue;
    }
    const key = kid.attrs.key;
    let node = key === undefined ? at : keyed.get(key);
    const fits = node && node.nodeType === Node.ELEMENT_NODE && node.localName === kid.tag && node.ourKey === key;
    if (!fits) {
      node = SVG.has(kid.tag) ? document.createElementNS("http://www.w3.org/2000/svg", kid.tag) : document.createElement(kid.tag);
      node.ourKey = key;
      node.ourAttrs = {};
    }
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
    const before = node.ourAttrs || {};
    for (const name of Object.keys(before)) if (!(name in kid.attrs)) setAttribute(node, name, null, undefined);
    patch(node, kid.kids);
    for (const [name, value] of Object.entries(kid.attrs)) setAttribute(node, name, value, before[name]);
    node.ourAttrs = kid.attrs;
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const byId = (id) => document.getElementById(id);
const show = (id, ...kids) => patch(byId(id), h("", {}, kids).kids);

// ---------------------------------------------------------------- words and numbers

const count = (n) => (n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en"));
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || `${one}s`}`;
const cores = (millis) => (millis / 1000).toFixed(millis % 100 ? 2 : 1);

function bytes(n) {
  if (n === null || n === undefined) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (n >= size) return `${n / size >= 100 || n % size === 0 ? Math.round(n / size) : (n / size).toFixed(1)} ${unit}`;
  }
  return `${n} B`;
}

function span(ms) {
  if (ms === null || ms === undefined) return "–";
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const clock = (unixMs) => new Date(unixMs).toLocaleString("en-GB", { hour12: false });
const since = (unixMs) => (unixMs ? h("time", { datetime: new Date(unixMs).toISOString(), title: clock(unixMs) }, `${span(Date.now() - unixMs)} ago`) : "–");

const SIGNALS = { 1: "SIGHUP", 2: "SIGINT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM" };

function exitText(exit) {
  switch (exit.cause) {
    case "success": return "success";
    case "failed": return `exit code ${exit.code}`;
    case "signal": return `killed by signal ${exit.signal}${SIGNALS[exit.signal] ? ` (${SIGNALS[exit.signal]})` : ""}`;
    case "out-of-memory": return `out of memory: peak ${bytes(exit.peak_bytes)}, limit ${bytes(exit.limit_bytes)}`;
    case "disk-full": return "disk full";
    case "killed-by-am": return "stopped by its master";
    case "killed-by-user": return "stopped by a user";
    case "preempted": return "preempted";
    case "node-lost": return "node lost";
    case "launch-failed": return `launch failed: ${exit.reason}`;
    case "lease-expired": return "lease expired";
    case "fenced": return "fenced by a newer one";
    default: return exit.cause;
  }
}

const badExit = (exit) => ["failed", "signal", "out-of-memory", "disk-full", "launch-failed"].includes(exit.cause);
const incarnation = (container) => container.replace(/^container_(\d+)_0*(\d+)$/, "$1-$2");
const shortId = (container) => container.replace(/^container_\d*(\d{4})_0*(\d+)$/, "…$1-$2");

function pill(state, text) {
  return h("span", { class: "pill", "data-state": state }, text || state);
}

/** A bar with its words above: what is used of what there is. */
function meter(name, used, limit, words) {
  const share = limit > 0 && used !== null && used !== undefined ? Math.min(1, used / limit) : 0;
  const level = share > 0.95 ? "full" : share > 0.85 ? "high" : "fine";
  return h("div", { class: "meter", "data-meter": name, "data-level": level },
    h("span", { class: "meter-words" }, words),
    h("span", { class: "bar", role: "img", "aria-label": `${name} ${Math.round(share * 100)} %` },
      h("span", { class: "fill", style: { width: `${(share * 100).toFixed(1)}%` } })));
}

function figure(id, label, value, note, extra) {
  return h("div", { class: "figure", key: id, id: `figure-${id}` },
    h("span", { class: "label" }, label), h("span", { class: "value" }, value), extra, note && h("span", { class: "note" }, note));
}

function table(id, columns, rows, empty) {
  if (!rows.length) return h("p", { class: "empty", key: `${id}-empty` }, empty);
  const head = columns.map(([label, kind]) => h("th", { scope: "col", class: kind }, label));
  return h("table", { key: id, id: `${id}-table` }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}

const cell = (label, kind, ...kids) => h("td", { "data-label": label, class: kind, "data-empty": kids.length === 1 && kids[0] === "–" }, kids);

// ---------------------------------------------------------------- what is known

const known = { cluster: null, apps: null, heardAt: 0, clusterAt: 0, appsAt: 0, connection: "connecting" };
const page = document.body.dataset.page;
const wanted = decodeURIComponent(location.pathname.split("/")[2] || "");
const opened = new Set();
const history = [];

const jobName = (app) => `${app.job.name}-${app.job.id}`;
const isOver = (app) => ["finished", "failed", "killed"].includes(app.state);

function thisApp() {
  const apps = known.apps || [];
  return apps.find((app) => app.app === wanted)
    || apps.find((app) => !isOver(app) && (jobName(app) === wanted || app.job.name === wanted))
    || apps.find((app) => jobName(app) === wanted || app.job.name === wanted);
}

/** The application's slots: the master's word where it has spoken, and what the resource manager knows. */
function slotsOf(app) {
  const slots = new Map();
  for (let slot = 0; slot < app.containers_wanted; slot++) slots.set(slot, { slot });
  for (const said of (app.status && app.status.slots) || []) slots.set(said.slot, { ...said });
  for (const run of app.containers) {
    if (run.slot === null || run.slot === undefined) continue;
    const slot = slots.get(run.slot) || { slot: run.slot };
    if (!slot.run && (!slot.container || slot.container === run.container || run.state.state !== "exited")) slot.run = run;
    if (slot.container === run.container) slot.run = run;
    slots.set(run.slot, slot);
  }
  for (const ask of app.waiting) {
    const slot = slots.get(ask.slot) || { slot: ask.slot };
    slot.ask = ask;
    slots.set(ask.slot, slot);
  }
  return [...slots.values()].sort((a, b) => a.slot - b.slot).map((slot) => describe(slot, app));
}

function describe(slot, app) {
  const run = slot.run;
  const alive = run && run.state.state !== "exited";
  const status = alive && slot.status && slot.container === run.container ? slot.status : null;
  const waiting = [...new Set([...(slot.ask ? slot.ask.reasons : []), ...(alive ? [] : slot.waiting || [])])];
  let state = "waiting";
  if (alive) state = run.state.state === "running" && status ? status.phase : run.state.state;
  else if (isOver(app)) state = "exited";
  const tasks = (status && status.tasks) || [];
  const lags = tasks.map((task) => task.lag).filter((lag) => lag !== null && lag !== undefined);
  const behind = tasks.map((task) => task.lag_ms).filter((ms) => ms !== null && ms !== undefined);
  const restores = tasks.map((task) => task.restore).filter(Boolean);
  const lastExit = slot.last_exit || (run && run.state.exit) || null;
  const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
  return {
    ...slot, run, alive, status, waiting, state, lastExit,
    lag: lags.length ? sum(lags, (lag) => lag) : null,
    behind: behind.length ? Math.max(...behind) : null,
    open: tasks.flatMap((task) => task.waits || []),
    restore: restores.length && {
      done: sum(restores, (r) => r.done), total: sum(restores, (r) => r.total), rows: sum(restores, (r) => r.rows),
      local: restores.filter((r) => r.from_local).length, of: restores.length,
      took: Math.max(...restores.map((r) => r.took_ms)),
    },
  };
}

/** Remembers throughput and lag for as long as the page is open. */
function remember(app) {
  const processed = new Map();
  for (const slot of slotsOf(app)) if (slot.status) processed.set(slot.container, slot.status.processed);
  const lag = slotsOf(app).reduce((total, slot) => total + (slot.lag || 0), 0);
  history.push({ at: performance.now(), processed, lag });
  while (history.length > 2 && history[0].at < performance.now() - 180000) history.shift();
}

/** Messages per second between two moments; a container that started anew counts from nought. */
function rateBetween(from, to) {
  let messages = 0;
  for (const [container, now] of to.processed) messages += Math.max(0, now - (from.processed.get(container) ?? now));
  return (messages * 1000) / Math.max(1, to.at - from.at);
}

function recentRate() {
  const last = history.at(-1);
  const first = history.find((moment) => moment.at >= (last ? last.at : 0) - 5000);
  return last && first && last.at - first.at > 900 ? rateBetween(first, last) : null;
}

function sparkline(id, values) {
  const top = Math.max(...values, 1);
  const points = values.map((v, i) => `${((i / Math.max(1, values.length - 1)) * 100).toFixed(1)},${(22 - (v / top) * 20).toFixed(1)}`);
  return h("svg", { class: "spark", id: `spark-${id}`, viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" },
    values.length > 1 && h("polyline", { points: points.join(" ") }));
}

function sampled(of) {
  const buckets = [];
  const end = performance.now();
  for (let back = 60; back > 0; back--) {
    const inside = history.filter((m) => m.at > end - back * 3000 && m.at <= end - (back - 1) * 3000);
    if (inside.length) buckets.push(of(inside[0], inside.at(-1)));
  }
  return buckets;
}

// ---------------------------------------------------------------- cluster page

function renderCluster() {
  const { cluster, apps } = known;
  if (!cluster || !apps) return;
  const total = (of) => cluster.nodes.filter((n) => n.state !== "lost").reduce((sum, node) => sum + of(node), 0);
  const states = new Map();
  for (const node of cluster.nodes) states.set(node.state, (states.get(node.state) || 0) + 1);
  const notActive = [...states].filter(([state]) => state !== "active").map(([state, n]) => `${n} ${state}`).join(", ");
  const memory = [total((n) => n.used.memory_bytes), total((n) => n.total.memory_bytes)];
  const cpu = [total((n) => n.used.cpu_millis), total((n) => n.total.cpu_millis)];
  const live = apps.filter((app) => !isOver(app));
  show("summary",
    figure("nodes", "Nodes", count(states.get("active") || 0), notActive || "all active"),
    figure("apps", "Applications", count(live.length), `${count(apps.length - live.length)} over`),
    figure("containers", "Containers", count(total((n) => n.containers)), `on ${plural(cluster.nodes.length, "node")}`),
    figure("memory", "Memory free", bytes(memory[1] - memory[0]), null, meter("memory", memory[0], memory[1], `${bytes(memory[0])} of ${bytes(memory[1])} used`)),
    figure("cpu", "CPU free", cores(cpu[1] - cpu[0]), null, meter("cpu", cpu[0], cpu[1], `${cores(cpu[0])} of ${cores(cpu[1])} cores used`)));
  show("apps", table("apps", [["Job"], ["State"], ["Containers", "wide"], ["Input lag", "num"], ["Queue"], ["Attempt", "num"], ["Submitted"], ["Note"]],
    apps.map(appRow), "No application yet. Submit one: samza-submit job.toml"));
  show("nodes", table("nodes", [["Node"], ["State"], ["Rack"], ["Memory", "wide"], ["CPU", "wide"], ["Containers", "num"], ["Last beat", "num"], ["Labels"]],
    cluster.nodes.map(nodeRow), "No node yet. Start one: nm --rm <this resource manager> --root <folder>"));
  const age = Date.now() - cluster.started_unix_ms;
  show("about", h("span", {}, `resource manager ${cluster.version}`), h("span", {}, `epoch ${cluster.epoch}`), h("span", { title: clock(cluster.started_unix_ms) }, `up ${span(age)}`));
}

// What is not as it should be although the job runs.
function warningsOf(app) {
  return (!isOver(app) && app.status && app.status.warnings) || [];
}

function appRow(app) {
  const slots = slotsOf(app);
  const lags = slots.map((slot) => slot.lag).filter((lag) => lag !== null);
  const waiting = slots.flatMap((slot) => slot.waiting)[0];
  const note = app.diagnostics || waiting || warningsOf(app)[0] || (app.status && app.status.message) || "";
  const running = `${app.containers_running} of ${app.containers_wanted} running`;
  return h("tr", { key: app.app, id: `app-${app.app}`, "data-app": app.app, "data-job": jobName(app), "data-state": app.state },
    cell("Job", "main", h("a", { href: `/apps/${encodeURIComponent(app.app)}` }, jobName(app)), h("span", { class: "sub mono" }, app.app)),
    cell("State", "", pill(app.state)),
    cell("Containers", "wide", isOver(app) ? "–" : meter("containers", app.containers_running, app.containers_wanted, running)),
    cell("Input lag", "num", lags.length ? count(lags.reduce((a, b) => a + b, 0)) : "–"),
    cell("Queue", "", app.queue),
    cell("Attempt", "num", app.attempt),
    cell("Submitted", "", since(app.submitted_unix_ms)),
    cell("Note", "note", note));
}

function nodeRow(node) {
  const beat = node.lease_age_ms + (performance.now() - known.clusterAt);
  const free = { memory: node.total.memory_bytes - node.used.memory_bytes, cpu: node.total.cpu_millis - node.used.cpu_millis };
  const labels = Object.entries(node.labels).map(([name, value]) => h("span", { class: "chip", key: name }, `${name}=${value}`));
  const others = node.hosts.filter((host) => host !== node.node).join(", ");
  return h("tr", { key: node.node, id: `node-${node.node}`, "data-node": node.node, "data-state": node.state },
    cell("Node", "main", h("span", { class: "strong" }, node.node), others && h("span", { class: "sub mono" }, others)),
    cell("State", "", pill(node.state), node.unhealthy && h("span", { class: "sub warn" }, node.unhealthy)),
    cell("Rack", "", node.rack || "–"),
    cell("Memory", "wide", meter("memory", node.used.memory_bytes, node.total.memory_bytes, `${bytes(free.memory)} free of ${bytes(node.total.memory_bytes)}`)),
    cell("CPU", "wide", meter("cpu", node.used.cpu_millis, node.total.cpu_millis, `${cores(free.cpu)} free of ${cores(node.total.cpu_millis)}`)),
    cell("Containers", "num", count(node.containers)),
    cell("Last beat", "num", h("span", { class: "beat", "data-late": beat > 1500 ? "" : null }, span(beat))),
    cell("Labels", "", labels.length ? labels : "–"));
}

// ---------------------------------------------------------------- application page

function renderApp() {
  if (!known.apps) return;
  const app = thisApp();
  for (const section of document.querySelectorAll("main > section:not(#head, #logs)")) section.hidden = !app;
  if (!app) {
    show("head", h("h1", {}, "No such application"), h("p", { class: "empty" }, `The resource manager knows no application ${wanted}. `, h("a", { href: "/" }, "All applications")));
    return;
  }
  const slots = slotsOf(app);
  document.title = `${jobName(app)} · ${app.state} · samza`;
  show("crumbs", h("a", { href: "/" }, "Cluster"), h("span", { "aria-current": "page" }, jobName(app)));
  renderHead(app);
  renderSummary(app, slots);
  const columns = [["Slot", "num"], ["State"], ["Node"], ["Tasks"], ["Input lag", "num"], ["Memory", "wide"], ["CPU", "wide"], ["Started"], ["Restarts", "num"], ["Last exit"], ["", "acts"]];
  show("slots", table("slots", columns, slots.flatMap((slot) => slotRows(slot, app)), "Its application master has not asked for containers yet."));
  renderCurves(app);
  const runs = [["Container"], ["Role"], ["State"], ["Node"], ["Process", "num"], ["Started"], ["Ran for", "num"], ["Exit"], ["", "acts"]];
  show("history", table("history", runs, app.containers.map(runRow), "No container yet."));
  renderLogControls(app);
  const cluster = known.cluster;
  show("about", cluster && h("span", {}, `resource manager ${cluster.version}`), h("span", { class: "mono" }, app.app), h("span", {}, `queue ${app.queue}`));
}

function renderHead(app) {
  const age = app.status_age_ms === null || app.status_age_ms === undefined ? null : app.status_age_ms + (performance.now() - known.appsAt);
  const stale = age !== null && age > 5000 && !isOver(app);
  const ended = app.ended_unix_ms ? ` · ended ${clock(app.ended_unix_ms)}` : "";
  const report = age === null ? "no report yet" : `report ${span(age)} old`;
  show("head",
    h("h1", { "data-app": app.app, "data-state": app.state }, jobName(app), " ", pill(app.state)),
    h("p", { class: "faint" }, `attempt ${app.attempt} · submitted `, since(app.submitted_unix_ms), ended,
      !isOver(app) && h("span", {}, " · ", h("span", { id: "report-age", class: stale ? "warn" : "", "data-stale": stale ? "" : null }, report))),
    app.status && app.status.message && !isOver(app) && h("p", { id: "message" }, app.status.message),
    ...((app.status && !isOver(app) && app.status.topics) || []).flatMap((topic) => topic.notes).map((note) => h("p", { class: "notice" }, note)),
    app.status && app.status.at_least_once && h("p", { class: "notice", id: "delivery" }, `exactly-once; outputs to ${app.status.at_least_once.join(", ")} are at-least-once`),
    ...warningsOf(app).map((warning, at) => h("p", { id: `warning-${at}`, class: "warn" }, warning)),
    app.diagnostics && h("p", { id: "diagnostics", class: "notice", "data-state": app.state }, app.diagnostics));
}

function renderSummary(app, slots) {
  const on = slots.filter((slot) => slot.alive && slot.on_preferred !== null && slot.on_preferred !== undefined);
  const near = on.filter((slot) => slot.on_preferred).length;
  const lags = slots.map((slot) => slot.lag).filter((lag) => lag !== null);
  const rate = recentRate();
  const processed = slots.reduce((sum, slot) => sum + (slot.status ? slot.status.processed : 0), 0);
  const restoring = slots.filter((slot) => slot.state === "restoring").length;
  const waiting = slots.filter((slot) => slot.state === "waiting").length;
  const notes = [restoring && `${restoring} restoring`, waiting && `${waiting} waiting`].filter(Boolean).join(", ");
  const restarts = slots.reduce((sum, slot) => sum + (slot.restarts || 0), 0);
  const rates = sampled((first, last) => (last.at - first.at > 400 ? rateBetween(first, last) : NaN)).filter((v) => !Number.isNaN(v));
  show("summary",
    figure("running", "Running", `${app.containers_running} of ${app.containers_wanted}`, notes || (isOver(app) ? "over" : "all there")),
    figure("rate", "Messages a second", count(rate), `${count(processed)} by the containers now running`, sparkline("rate", rates)),
    figure("lag", "Input lag", lags.length ? count(lags.reduce((a, b) => a + b, 0)) : "–", "messages not yet read", sparkline("lag", sampled((_, last) => last.lag))),
    figure("near", "On preferred hosts", on.length ? `${near} of ${on.length}` : "–", on.length ? "state or brokers at hand" : "no preference"),
    figure("restarts", "Restarts", count(restarts), restarts ? "in all slots" : "none"));
}

// ---------------------------------------------------------------- curves

const QUARTER = 15 * 60;
const curves = { bySlot: {}, app: null };

async function readCurves() {
  const app = thisApp();
  if (!app || isOver(app)) return;
  const answer = await fetch(`/api/v1/apps/${encodeURIComponent(app.app)}/history`, { signal: AbortSignal.timeout(5000) });
  if (answer.ok) Object.assign(curves, { bySlot: await answer.json(), app: app.app });
  render();
}

/** A curve over the last quarter of an hour; where nothing is known it has a gap. */
function curve(name, slot, points, of, words) {
  const values = points.map((point) => [point.at, of(point)]);
  const there = values.filter(([, value]) => value !== null && value !== undefined);
  const last = there.length ? there.at(-1)[1] : null;
  const top = Math.max(...there.map(([, value]) => value), 0);
  const end = points.length ? points.at(-1).at : 0;
  let pen = "M";
  const path = values.map(([at, value]) => {
    if (value === null || value === undefined) { pen = "M"; return ""; }
    const place = `${pen}${(100 - ((end - at) / QUARTER) * 100).toFixed(2)} ${(26 - (top ? value / top : 0) * 24).toFixed(1)}`;
    pen = "L";
    return place;
  }).join("");
  const label = `${name} of slot ${slot}: now ${words(last)}, at most ${words(there.length ? top : null)}`;
  return h("div", { class: "curve", "data-curve": name, "data-points": there.length },
    h("svg", { viewBox: "0 0 100 28", preserveAspectRatio: "none", role: "img", "aria-label": label }, path && h("path", { d: path })),
    h("span", { class: "sub" }, `${words(last)} · most ${words(there.length ? top : null)}`));
}

function renderCurves(app) {
  const slots = Object.entries(curves.app === app.app ? curves.bySlot : {});
  byId("curves-section").hidden = !slots.length;
  const rows = slots.map(([slot, points]) => h("tr", { key: slot, "data-curves": slot },
    cell("Slot", "num strong title", slot),
    cell("Messages a second", "wide", curve("rate", slot, points, (p) => p.rate, count)),
    cell("Input lag", "wide", curve("lag", slot, points, (p) => p.lag, count)),
    cell("CPU", "wide", curve("cpu", slot, points, (p) => p.cpu_millis, (n) => (n === null ? "–" : cores(n)))),
    cell("Memory", "wide", curve("memory", slot, points, (p) => p.memory_bytes, bytes))));
  show("curves", table("curves", [["Slot", "num"], ["Messages a second", "wide"], ["Input lag", "wide"], ["CPU", "wide"], ["Memory", "wide"]], rows, ""));
}

const taskNames = (tasks) => {
  const names = tasks || [];
  const numbered = names.every((name) => /^Partition \d+$/.test(name));
  return names.length && numbered ? `Partition ${names.map((name) => name.slice(10)).join(", ")}` : names.join(", ") || "–";
};

function stateCell(slot) {
  const parts = [pill(slot.state)];
  if (slot.state === "restoring" && slot.restore) {
    const { done, total, took } = slot.restore;
    const left = done > 0 ? `, ${span((took * (total - done)) / done)} left` : "";
    parts.push(meter("restore", done, total, `${total ? Math.floor((done / total) * 100) : 0} %${left}`));
  }
  if (slot.waiting.length) {
    const waited = slot.ask ? ` for ${span(slot.ask.waited_ms + (performance.now() - known.appsAt))}` : "";
    parts.push(h("span", { class: "sub warn waiting" }, `${slot.waiting.join("; ")}${waited}`));
  }
  return parts;
}

function nodeCell(slot) {
  if (!slot.alive) return "–";
  const marks = { true: ["preferred", "on a preferred host"], false: ["elsewhere", "not on a preferred host"] }[slot.on_preferred];
  return [h("span", {}, slot.run.node), marks && h("span", { class: "mark", "data-preferred": marks[0], title: marks[1] }, marks[0])];
}

// How much of the last 10 s some of a container's work waited; cgroup v1 does not tell.
function waitedText(pressure) {
  const some = pressure ? ["cpu", "memory", "io"].filter((what) => pressure[what] > 0) : [];
  return some.length > 0 && h("span", { class: "sub waited", title: "of the last 10 s" }, `waited for ${some.map((what) => `${what} ${pressure[what]} %`).join(", ")}`);
}

function slotRows(slot, app) {
  const run = slot.alive ? slot.run : null;
  const open = opened.has(slot.slot);
  const toggle = () => { if (!opened.delete(slot.slot)) opened.add(slot.slot); render(); };
  const limit = run && run.resource;
  const row = h("tr", {
    key: `slot-${slot.slot}`, id: `slot-${slot.slot}`, class: "slot", "data-slot": slot.slot, "data-state": slot.state,
    "data-container": run ? run.container : null, "data-node": run ? run.node : null, "data-restarts": slot.restarts || 0,
  },
  cell("Slot", "num strong title", slot.slot),
  cell("State", "state", stateCell(slot)),
  cell("Node", "nowrap", nodeCell(slot)),
  cell("Tasks", "tasks", taskNames(slot.tasks)),
  cell("Input lag", "num lag", count(slot.lag), slot.behind > 0 && h("span", { class: "sub", title: "age of the last message processed" }, span(slot.behind))),
  cell("Memory", "wide", run ? meter("memory", run.memory_bytes, limit.memory_bytes, `${bytes(run.memory_bytes)} of ${bytes(limit.memory_bytes)}`) : "–"),
  cell("CPU", "wide", run ? [meter("cpu", run.cpu_millis, limit.cpu_millis, `${run.cpu_millis === null ? "–" : cores(run.cpu_millis)} of ${cores(limit.cpu_millis)}`), waitedText(run.pressure)] : "–"),
  run ? cell("Started", "", since(run.started_unix_ms), h("span", { class: "sub mono incarnation", title: "incarnation" }, incarnation(run.container))) : cell("Started", "", "–"),
  cell("Restarts", "num", count(slot.restarts || 0)),
  cell("Last exit", "exit", slot.lastExit ? h("span", { class: badExit(slot.lastExit) ? "bad" : "" }, exitText(slot.lastExit), slot.last_exit_unix_ms && h("span", { class: "sub" }, since(slot.last_exit_unix_ms))) : "–"),
  cell("", "acts",
    slot.run && logButton(slot.run.container, app),
    h("button", { type: "button", class: "quiet", "aria-expanded": String(open), "aria-controls": `detail-${slot.slot}`, onclick: toggle }, open ? "less" : "more")));
  return open ? [row, h("tr", { key: `detail-${slot.slot}`, id: `detail-${slot.slot}`, class: "detail" }, h("td", { colspan: "11" }, detail(slot)))] : [row];
}

function detail(slot) {
  const byName = new Map(((slot.status && slot.status.tasks) || []).map((task) => [task.task, task]));
  const names = slot.tasks && slot.tasks.length ? slot.tasks : [...byName.keys()];
  const rows = names.map((name) => {
    const task = byName.get(name) || {};
    return h("tr", { key: name, "data-task": name },
      cell("Task", "title", name), cell("Input lag", "num", count(task.lag)), cell("Processed", "num", count(task.processed)),
      cell("Restore", "", restoreText(task.restore)));
  });
  const list = (title, items) => items && items.length > 0 && h("div", {}, h("h3", {}, title), h("ul", {}, items.map((item) => h("li", {}, item))));
  return h("div", { class: "details" },
    rows.length > 0 && table(`tasks-${slot.slot}`, [["Task"], ["Input lag", "num"], ["Processed", "num"], ["Restore"]], rows, ""),
    list("Would rather be on", slot.preferred),
    list("Preferred, but no node of this cluster", slot.unmatched),
    list("Waits for an open transaction of its producers", slot.open.map((of) => `${of.input.stream.system}.${of.input.stream.stream}.${of.input.partition}, for ${span(of.age_ms)}`)),
    list("Waits because", slot.waiting),
    slot.run && h("div", {}, h("h3", {}, "Container"), h("p", { class: "mono wrap" }, slot.run.container),
      slot.status && h("p", { class: "faint" }, `${plural(slot.status.commits, "commit")}, ${plural(slot.status.processed, "message")} since its start`)));
}

function restoreText(restore) {
  if (!restore) return "–";
  const from = restore.from_local ? "local state and the changelog's tail" : "changelog";
  const percent = restore.total ? Math.floor((restore.done / restore.total) * 100) : 100;
  const why = restore.reason ? ` (${restore.reason})` : "";
  const left = restore.eta_ms ? `, ${span(restore.eta_ms)} left` : "";
  return percent < 100 ? `${percent} % from ${from}${why}${left}` : `${plural(restore.rows, "row")} from ${from} in ${span(restore.took_ms)}${why}`;
}

function runRow(run) {
  const ran = run.started_unix_ms ? span((run.ended_unix_ms || Date.now()) - run.started_unix_ms) : "–";
  const exit = run.state.exit;
  return h("tr", { key: run.container, id: run.container, "data-container": run.container, "data-role": run.role, "data-state": run.state.state },
    cell("Container", "mono wrap", run.container),
    cell("Role", "nowrap", run.role === "app-master" ? "application master" : run.role),
    cell("State", "", pill(run.state.state)),
    cell("Node", "nowrap", run.node),
    cell("Process", "num", run.pid || "–"),
    cell("Started", "", since(run.started_unix_ms)),
    cell("Ran for", "num", ran),
    cell("Exit", "exit", exit ? h("span", { class: badExit(exit) ? "bad" : "" }, exitText(exit)) : "–"),
    cell("", "acts", logButton(run.container)));
}

// ---------------------------------------------------------------- logs

const logs = { container: null, stream: "stdout", follow: true, abort: null, size: 0 };
const KEEP = 600000;

function logButton(container) {
  return h("button", { type: "button", class: "quiet log", "data-log": container, onclick: () => openLog(container, "stdout", true) }, "log");
}

function openLog(container, stream, jump) {
  Object.assign(logs, { container, stream });
  window.history.replaceState(null, "", `#log=${container}&stream=${stream}`);
  byId("logs").hidden = false;
  render();
  if (jump) byId("logs").scrollIntoView({ block: "start", behavior: "smooth" });
  readLog();
}

function closeLog() {
  if (logs.abort) logs.abort.abort();
  Object.assign(logs, { container: null, abort: null });
  window.history.replaceState(null, "", location.pathname);
  byId("logs").hidden = true;
}

function renderLogControls(app) {
  if (!logs.container) return;
  const name = (run) => `${run.role === "app-master" ? "application master" : run.role} · ${run.node} · ${shortId(run.container)}${run.state.exit ? ` · ${exitText(run.state.exit)}` : ""}`;
  const stream = (which) => h("button", { type: "button", "aria-pressed": String(logs.stream === which), "data-stream": which, onclick: () => openLog(logs.container, which, false) }, which);
  show("logs-controls",
    h("select", { id: "logs-container", "aria-label": "Container", value: logs.container, onchange: (event) => openLog(event.target.value, logs.stream, false) },
      app.containers.map((run) => h("option", { key: run.container, value: run.container }, name(run)))),
    h("span", { class: "tabs", role: "group", "aria-label": "Stream" }, stream("stdout"), stream("stderr")),
    h("label", {}, h("input", { type: "checkbox", id: "logs-follow", checked: logs.follow, onchange: (event) => { logs.follow = event.target.checked; readLog(); } }), " follow"),
    h("button", { type: "button", class: "quiet", id: "logs-close", onclick: closeLog }, "close"));
}

function appendLog(text) {
  const view = byId("logs-text");
  const atEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 24;
  // eslint-disable-next-line no-control-regex
  view.append(text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, ""));
  logs.size += text.length;
  while (logs.size > KEEP && view.childNodes.length > 1) {
    logs.size -= view.firstChild.data.length;
    view.firstChild.remove();
  }
  if (atEnd) view.scrollTop = view.scrollHeight;
}

/** Reads the chosen log from its last lines on, and again from there when a followed one breaks off. */
async function readLog() {
  if (logs.abort) logs.abort.abort();
  const abort = new AbortController();
  const { container, stream, follow } = Object.assign(logs, { abort, size: 0 });
  const state = (text) => { byId("logs-state").textContent = text; };
  const query = new URLSearchParams({ container, stream, tail: "500", ...(follow && { follow: "true" }) });
  try {
    state("reading …");
    const answer = await fetch(`/api/v1/apps/${encodeURIComponent(wanted)}/logs?${query}`, { signal: abort.signal });
    byId("logs-text").replaceChildren();
    if (!answer.ok) return state((await answer.text()).slice(0, 300) || `The resource manager answered ${answer.status}.`);
    state(follow ? "live" : "");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) appendLog(part.value);
    const run = ((thisApp() || {}).containers || []).find((other) => other.container === container);
    if (!byId("logs-text").hasChildNodes()) return state(`${stream} is empty`);
    if (!follow || !run || run.state.exit) return state(run && run.state.exit ? `end: ${exitText(run.state.exit)}` : "end");
  } catch (error) {
    if (error.name === "AbortError") return undefined;
  }
  state("connection lost, reconnecting");
  return setTimeout(() => { if (logs.abort === abort) readLog(); }, 1000);
}

// ---------------------------------------------------------------- events

let due = false;

/** Renders once before the next frame, however often it is called. */
function render() {
  if (due) return;
  due = true;
  setTimeout(() => { due = false; (page === "app" ? renderApp : renderCluster)(); }, 16);
}

function connection(state) {
  known.connection = state;
  const words = { connecting: "connecting", live: "live", lost: "connection lost, reconnecting" }[state];
  const place = byId("connection");
  if (place.dataset.connection !== state) Object.assign(place, { textContent: words }).dataset.connection = state;
  document.body.classList.toggle("stale", state === "lost");
}

const takes = {
  cluster: (report) => Object.assign(known, { cluster: report, clusterAt: performance.now() }),
  apps: (reports) => {
    Object.assign(known, { apps: reports, appsAt: performance.now() });
    const app = page === "app" && thisApp();
    if (app) remember(app);
  },
};

function listen() {
  const source = new EventSource("/api/v1/events");
  const began = performance.now();
  const heard = (take, report) => {
    known.heardAt = performance.now();
    take(report);
    connection("live");
    render();
  };
  let over = false;
  const again = () => {
    if (over) return;
    over = true;
    source.close();
    clearInterval(watch);
    connection(known.heardAt || known.connection === "lost" ? "lost" : "connecting");
    setTimeout(listen, 1000);
  };
  // A quiet cluster sends nothing, and so does a machine that is gone: ask.
  const ask = async () => {
    const answer = await fetch("/api/v1/cluster", { signal: AbortSignal.timeout(3000) });
    heard(takes.cluster, await answer.json());
  };
  const watch = setInterval(() => { if (performance.now() - Math.max(known.heardAt, began) > 3000) ask().catch(again); }, 3100);
  for (const name of ["cluster", "apps"]) source.addEventListener(name, (event) => heard(takes[name], JSON.parse(event.data)));
  source.onerror = again;
}

listen();
setInterval(render, 1000);
if (page === "app") {
  // The next look comes anyway: an error of one is nothing to tell.
  const look = () => readCurves().catch(() => {});
  setTimeout(look, 500);
  setInterval(look, 10000);
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && logs.container) closeLog(); });
const asked = /^#log=(container_\w+)&stream=(stdout|stderr)$/.exec(location.hash);
if (page === "app" && asked) openLog(asked[1], asked[2], false);
