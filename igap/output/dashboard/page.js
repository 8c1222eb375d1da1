"use strict";
// The data, the table of runs with its order and filter, the chosen run. Texts go into the page by textContent only.
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "text", "line", "path", "circle"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  for (const child of children) element.append(child); // a string becomes a text node
  return element;
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
}

function digits(number) {
  return number === null || Number.isNaN(number) ? "not defined" : String(Number(number.toPrecision(5)));
}

function tip(event, lines) {
  const box = $("tip");
  box.hidden = !lines;
  if (!lines) return;
  box.textContent = lines.join("\n");
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8)}px`;
}

// The maps of every run by site: {unit, rows, columns, ig, ap, ...}, or a text that says why there is none.
const MAPS = RUNS.map(({ maps, unit }) => Object.fromEntries(Object.entries(maps).map(([site, map]) => [site, typeof map === "string" ? map : decoded(map, unit)])));
const SITES = [...new Set(MAPS.flatMap(Object.keys))].sort((a, b) => (b === "heads") - (a === "heads"));

function decoded(map, unit) {
  const raw = Uint8Array.from(atob(map.numbers), (character) => character.charCodeAt(0));
  const view = new DataView(raw.buffer);
  const all = new Float64Array(raw.length / map.bytes);
  for (let i = 0; i < all.length; i += 1) {
    all[i] = map.bytes === 4 ? view.getFloat32(4 * i, true) : view.getFloat64(8 * i, true);
  }
  const n = all.length / 2;
  const score = map.unit === "score";
  // Its unit as points that share a plot have it, on an axis, and under the mouse.
  const units = { unit: score ? "" : unit, axis: score ? "score (effect / gap)" : `effect (${unit})`, tip: score ? "scores, no unit" : `effects, in ${unit}` };
  return { ...map, ...units, score, ig: all.subarray(0, n), ap: all.subarray(n) };
}

// The map of a run that can be drawn, or undefined.
const mapOf = (i, site) => (typeof MAPS[i][site] === "object" ? MAPS[i][site] : undefined);

// The name of a cell: one pass, as the name of a position may hold anything.
function cellName(map, i) {
  const parts = { row: map.rows[Math.floor(i / map.columns.length)], column: map.columns[i % map.columns.length] };
  return map.name.replace(/\{(row|column)\}/g, (_, part) => parts[part]);
}

const described = (map, name) => `${map.kind} ${name}`.trim();

function chooseFrom(select, values) {
  const before = select.value;
  options(select, values.map((value) => [value, value]));
  if (values.includes(before)) select.value = before;
  select.parentElement.hidden = values.length < 2;
}

// Columns of the table: the run, its settings that differ, the chosen metrics.
const SETTINGS = DATA.settings.filter((column) => column.shown);
const METRICS = DATA.metrics.filter((column) => column.shown);
const COLUMNS = [{ name: "run", numeric: false, values: RUNS.map((run) => run.label) }, ...SETTINGS,
  ...METRICS.map((column) => ({ ...column, numeric: true, metric: true }))];

const state = { order: RUNS.map((_, i) => i), kept: new Set(RUNS.map((_, i) => i)), sort: null, down: false, chosen: 0, unknown: [] };
const visible = () => state.order.filter((i) => state.kept.has(i));

function cellText(column, i) {
  const value = column.values[i];
  if (column.metric) return value === null ? "-" : digits(value);
  return value === null ? (RUNS[i].known ? "not set" : "unknown") : value;
}

// What the label of a run's prompts stands for.
function promptTexts(i) {
  const texts = DATA.settings.filter((column) => column.name.startsWith("prompts.") && column.values[i] !== null);
  return texts.map((column) => `${column.name}=${column.values[i]}`).join("\n");
}

function compare(column, a, b) {
  const [x, y] = [column.values[a], column.values[b]];
  if (x === null || y === null) return (x === null) - (y === null); // last, either way
  const difference = column.numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
  return state.down ? -difference : difference;
}

function sortBy(column) {
  state.down = state.sort === column ? !state.down : false;
  state.sort = column;
  state.order.sort((a, b) => compare(column, a, b) || a - b);
  drawTable();
  drawScatter();
}

// The column of this name, any metric or setting; a group's name, as overrides have it, is that of its kind.
function columnNamed(name) {
  const all = [...COLUMNS, ...DATA.metrics, ...DATA.settings];
  const wanted = [name.toLowerCase(), `${name.toLowerCase()}.kind`];
  return all.find((column) => column.name === name) ?? all.find((column) => wanted.includes(column.name.toLowerCase()));
}

// A text has to be in the row; NAME<NUMBER and so on hold for one column.
function test(word) {
  const parts = word.match(/^(.+?)(<=|>=|!=|<|>|=)(.+)$/);
  const column = parts && columnNamed(parts[1]);
  if (parts && !column) state.unknown.push(parts[1]);
  if (!column) {
    const wanted = word.toLowerCase();
    return (i) => COLUMNS.some((one) => cellText(one, i).toLowerCase().includes(wanted));
  }
  const [, , sign, text] = parts;
  const limit = Number(text);
  return (i) => {
    const value = column.values[i];
    if (value === null) return false;
    const equal = String(value) === text || (text !== "" && Number(value) === limit);
    if (sign === "=" || sign === "!=") return equal === (sign === "=");
    const number = Number(value);
    return { "<": number < limit, ">": number > limit, "<=": number <= limit, ">=": number >= limit }[sign];
  };
}

function filter() {
  state.unknown = [];
  const words = $("filter").value.replace(/\s*(<=|>=|!=|<|>|=)\s*/g, "$1").split(/\s+/).filter(Boolean);
  const tests = words.map(test);
  state.kept = new Set(RUNS.map((_, i) => i).filter((i) => tests.every((one) => one(i))));
  const first = visible()[0];
  if (first !== undefined && !state.kept.has(state.chosen)) choose(first);
  drawTable();
  drawAll();
}

function drawTable() {
  const head = COLUMNS.map((column) => {
    const mark = state.sort === column ? (state.down ? " \u25bc" : " \u25b2") : "";
    const button = make("button", { type: "button" }, column.name.replace(/([./])/g, "$1\u200b") + mark);
    button.addEventListener("click", () => sortBy(column));
    const sorted = state.sort === column ? (state.down ? "descending" : "ascending") : "none";
    return make("th", { scope: "col", "aria-sort": sorted, ...(column.numeric && { class: "number" }) }, button);
  });
  $("runs").tHead.replaceChildren(make("tr", {}, ...head));
  const rows = visible().map((i) => {
    const cells = COLUMNS.map((column) => {
      const cell = make("td", column.numeric ? { class: "number" } : {}, cellText(column, i));
      if (column.metric && column.values[i] === null) cell.title = column.reasons[i] || "not measured";
      if (column.label) cell.title = promptTexts(i);
      return cell;
    });
    const row = make("tr", { "data-run": i, ...(i === state.chosen && { class: "chosen" }) }, ...cells);
    row.addEventListener("click", () => choose(i));
    return row;
  });
  $("runs").tBodies[0].replaceChildren(...rows);
  const unknown = state.unknown.map((name) => `; no column is called ${name}`).join("");
  $("count").textContent = `${rows.length} of ${RUNS.length} runs${unknown}`;
}

function choose(i) {
  state.chosen = i;
  $("run").value = i;
  for (const row of $("runs").tBodies[0].rows) row.classList.toggle("chosen", Number(row.dataset.run) === i);
  chooseFrom($("site"), Object.keys(MAPS[i]));
  drawMaps();
}
