// Axes and colours, the heatmaps of one run, the scatter of all.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"]; // Okabe and Ito
const LOW = [33, 102, 172], HIGH = [178, 24, 43], WHITE = [247, 247, 247]; // blue, red: safe for the colour-blind

function colour(share) {
  const end = share < 0 ? LOW : HIGH;
  const t = Math.min(Math.abs(share), 1);
  return `rgb(${WHITE.map((from, k) => Math.round(from + t * (end[k] - from))).join(",")})`;
}

function empty(place, reason) {
  place.replaceChildren(make("p", { class: "empty" }, reason));
}

function label(x, y, text, attributes = {}) {
  return make("text", { x, y, ...attributes }, text);
}

function spread(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  return [low, high];
}

// Round numbers from low to high, about n of them; on a log axis powers of ten, or 1, 2, 5 of them where those are few.
function ticks([low, high], n, log) {
  const found = [];
  // Of ends that no step leads between, or that are not finite, there are none.
  if (!Number.isFinite(high - low) || high - low <= 1e-12 * Math.max(Math.abs(low), Math.abs(high))) return found;
  if (log) {
    const few = Math.log10(high / low) < 3;
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const times of few ? [1, 2, 5] : [1]) found.push(times * 10 ** power);
    }
  } else {
    const raw = (high - low) / n;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((times) => times * power >= raw);
    for (let k = Math.ceil(low / step); k * step <= high + step / 1e6; k += 1) found.push(k * step);
  }
  const inside = found.filter((value) => value >= low - 1e-9 * Math.abs(low) && value <= high + 1e-9 * Math.abs(high));
  return log && inside.length < 2 ? ticks([low, high], n, false) : inside;
}

function scale([low, high], [from, to], log) {
  const f = log ? Math.log10 : (x) => x / 2; // the distance of the two largest numbers is none
  return (value) => from + ((f(value) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
}

function padded([low, high], log) {
  if (log) return [low / 1.25, Math.min(high * 1.25, Number.MAX_VALUE)];
  const margin = 0.12 * (high / 2 - low / 2) || Math.abs(high) * 0.1 || 1;
  return [Math.max(low - margin, -Number.MAX_VALUE), Math.min(high + margin, Number.MAX_VALUE)];
}

// Texts for an axis: 15 characters, from where they begin to differ if that is late.
function shortened(names) {
  let same = 0;
  while (names.length > 1 && same < names[0].length && names.every((name) => name[same] === names[0][same])) same += 1;
  const from = same > 10 ? same - 3 : 0;
  return names.map((name) => `${from ? "\u2026" : ""}${name.slice(from, from + 15)}${name.length > from + 15 ? "\u2026" : ""}`);
}

// An empty plot with axes: {svg, x, y}. Either axis is a range of numbers, or {names} for places 0, 1, 2 ...
function frame({ width, height, title, xLabel, yLabel, xRange, yRange, xLog, yLog, names, right = 12 }) {
  const box = { left: 66, right: width - right, top: 28, bottom: height - (names ? 92 : 44) };
  const svg = make("svg", { width, height, role: "img", "aria-label": title });
  const x = scale(xRange, [box.left, box.right], xLog);
  const y = scale(yRange, [box.bottom, box.top], yLog);
  svg.append(label(box.left, 16, title, { class: "title" }));
  const short = names && shortened(names);
  const xTicks = names ? [...names.keys()] : ticks(xRange, 5, xLog);
  for (const value of xTicks) {
    const text = names ? short[value] : digits(value);
    const turned = names ? { transform: `rotate(-25 ${x(value)} ${box.bottom + 16})`, "text-anchor": "end" } : { "text-anchor": "middle" };
    svg.append(make("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }));
    svg.append(label(x(value), box.bottom + 16, text, turned));
  }
  for (const value of ticks(yRange, 5, yLog)) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    svg.append(label(box.left - 5, y(value) + 4, digits(value), { "text-anchor": "end" }));
  }
  svg.append(make("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
  svg.append(label((box.left + box.right) / 2, height - 8, xLabel, { "text-anchor": "middle" }));
  const middle = (box.top + box.bottom) / 2;
  svg.append(label(13, middle, yLabel, { "text-anchor": "middle", transform: `rotate(-90 13 ${middle})` }));
  return { svg, x, y, box };
}

// Heatmaps of one run: IG and AP on one scale, their difference on its own, each symmetric about 0.
function drawMaps() {
  const site = $("site").value;
  const map = mapOf(state.chosen, site);
  const run = RUNS[state.chosen];
  const own = SETTINGS.filter((column) => column.values[state.chosen] !== null);
  $("run-settings").textContent = [`key ${run.key}`, ...run.about, ...own.map((column) => `${column.name}=${column.values[state.chosen]}`)].join(";  ");
  $("maps-note").textContent = "";
  if (!map) return empty($("maps"), `No ${site} of ${run.label}: ${MAPS[state.chosen][site]}.`);
  const difference = map.ap.map((ap, i) => ap - map.ig[i]);
  const most = (...lists) => Math.max(0, ...spread([].concat(...lists.map((list) => Array.from(list, Math.abs)))).filter(Number.isFinite));
  const [both, third] = [most(map.ig, map.ap), most(difference)];
  const panels = [["IG", map.ig, both], ["AP", map.ap, both], ["AP - IG", difference, third]];
  const bound = run.metric ? "" : " and a tenth of |F(clean)|";
  const notes = map.score ? [] : [make("p", { class: "empty" }, `No score of this run is defined (no gap of at least prompts.min_gap${bound}): effects in ${run.unit} are shown.`)];
  const cells = shownCells(map);
  $("maps-note").textContent = cells.note;
  $("maps").replaceChildren(...notes, ...panels.map((panel) => heatmap(map, cells, ...panel, difference)));
}

// Rows and columns of a map that are drawn, in its order: where there are too many, those with the largest numbers.
function shownCells(map) {
  const n = map.columns.length;
  const size = (i) => Math.max(Math.abs(map.ig[i]) || 0, Math.abs(map.ap[i]) || 0);
  const largest = (names, limit, weight) => {
    const weights = names.map((_, k) => weight(k));
    const kept = [...names.keys()].sort((a, b) => weights[b] - weights[a] || a - b).slice(0, limit);
    return kept.sort((a, b) => a - b);
  };
  const most = (places) => places.reduce((so_far, i) => Math.max(so_far, size(i)), 0);
  const rows = largest(map.rows, map.row === "layer" ? 128 : 40, (row) => most(map.columns.map((_, column) => row * n + column)));
  const columns = largest(map.columns, map.column === "position" ? 64 : 128, (column) => most(rows.map((row) => row * n + column)));
  const left = [[rows, map.rows, map.row], [columns, map.columns, map.column]].filter(([shown, all]) => shown.length < all.length);
  const texts = left.map(([shown, all, what]) => `the ${shown.length} of ${all.length.toLocaleString("en")} ${what}s with the largest |value|`);
  return { rows, columns, note: texts.length ? `Shown: ${texts.join("; ")}.` : "" };
}

function heatmap(map, { rows, columns }, title, values, limit, difference) {
  const turned = map.column === "position";
  const size = Math.max(turned ? 8 : 4, Math.min(26, Math.floor(330 / columns.length), Math.floor(520 / rows.length)));
  const [names, across] = [rows.map((row) => map.rows[row]), columns.map((column) => map.columns[column])];
  const texts = turned ? across.map((name) => (name.length > 16 ? `${name.slice(0, 15)}\u2026` : name)) : across;
  const widest = (all) => Math.max(...all.map((name) => name.length));
  const [left, top, bar] = [Math.max(40, 23 + 6.5 * widest(names)), 26, Math.max(columns.length * size, 170)];
  const [bottom, low] = [top + rows.length * size, turned ? 6.5 * widest(texts) : 0];
  const svg = make("svg", { width: left + bar + 16, height: bottom + low + 90, role: "img", "aria-label": title, "data-map": title });
  svg.append(label(left, 16, title, { class: "title" }));
  const every = (n, space) => Math.ceil(n / Math.max(1, Math.floor((n * size) / space)));
  for (let row = 0; row < rows.length; row += every(rows.length, turned ? 13 : 22)) svg.append(label(left - 5, top + (row + 0.5) * size + 4, names[row], { "text-anchor": "end" }));
  for (let column = 0; column < columns.length; column += every(columns.length, turned ? 13 : 22)) {
    const [x, y] = [left + (column + 0.5) * size, bottom + 13];
    svg.append(label(turned ? x + 4 : x, turned ? y - 8 : y, texts[column], turned ? { "text-anchor": "end", transform: `rotate(-90 ${x + 4} ${y - 8})` } : { "text-anchor": "middle" }));
  }
  svg.append(label(left + (columns.length * size) / 2, bottom + low + 28, map.column, { "text-anchor": "middle" }));
  svg.append(label(11, (top + bottom) / 2, map.row, { "text-anchor": "middle", transform: `rotate(-90 11 ${(top + bottom) / 2})` }));
  rows.forEach((row, y) => columns.forEach((column, x) => {
    const i = row * map.columns.length + column;
    const fill = Number.isNaN(values[i]) ? "#bbb" : colour(limit ? values[i] / limit : 0);
    svg.append(make("rect", { class: "cell", "data-name": cellName(map, i), "data-i": i, x: left + x * size, y: top + y * size, width: size - 0.5, height: size - 0.5, fill }));
  }));
  for (let k = 0; k < 60; k += 1) {
    svg.append(make("rect", { x: left + (k * bar) / 60, y: bottom + low + 42, width: bar / 60 + 0.5, height: 11, fill: colour((k - 29.5) / 29.5) }));
  }
  [[0, -limit, "start"], [0.5, 0, "middle"], [1, limit, "end"]].forEach(([share, value, anchor]) => {
    svg.append(label(left + share * bar, bottom + low + 66, digits(Number(value.toPrecision(3))), { "text-anchor": anchor }));
  });
  svg.append(label(left + bar / 2, bottom + low + 82, map.axis, { "text-anchor": "middle" }));
  svg.addEventListener("mousemove", ({ target, clientX, clientY }) => {
    const i = target.dataset.i;
    tip({ clientX, clientY }, i === undefined ? null : [described(map, target.dataset.name), `IG ${digits(map.ig[i])}`, `AP ${digits(map.ap[i])}`,
      `AP - IG ${digits(difference[i])}`, map.tip]);
  });
  svg.addEventListener("mouseleave", () => tip(null, null));
  return svg;
}

// The scatter: a canvas, of the points kept in `scatter`. Hovering a head marks it in every run of the same model.
const MAX_POINTS = 60000;
const scatter = { points: [], base: null, runs: [] };

// The chosen setting's value, or the run itself, is a colour. The same whatever the order and the filter, where the
// palette has one for each value there is; else for each that is drawn, and beyond its length round the colour wheel.
let colourOf = () => PALETTE[0];

function setColours() {
  const column = SETTINGS.find(({ name }) => name === $("colour").value);
  const text = (i) => (column ? cellText(column, i) : RUNS[i].label);
  const different = (runs) => {
    const texts = [...new Set(runs.map(text))];
    return column ? texts.sort((a, b) => a.localeCompare(b, "en", { numeric: true })) : texts;
  };
  const all = different([...RUNS.keys()]);
  const drawn = different([...scatter.runs].sort((a, b) => a - b));
  const values = all.length <= PALETTE.length ? all : drawn;
  const pick = (k) => (values.length <= PALETTE.length ? PALETTE[k] : `hsl(${Math.round((360 * k) / values.length)} 75% ${k % 2 ? 32 : 50}%)`);
  colourOf = (run) => pick(values.indexOf(text(run)));
  return drawn.map((value) => [value, scatter.runs.filter((run) => text(run) === value)]);
}

// By run where the palette has a colour for each, else by the setting with the fewest values.
function startColours() {
  const counts = SETTINGS.map((column) => [column.name, new Set(RUNS.map((_, i) => cellText(column, i))).size]);
  options($("colour"), [["", "run"], ...counts.map(([name]) => [name, name])]);
  const few = counts.filter(([, n]) => n <= PALETTE.length).sort(([, a], [, b]) => a - b);
  if (RUNS.length > PALETTE.length && few.length) $("colour").value = few[0][0];
  $("colour").addEventListener("change", drawScatter);
}

function drawScatter() {
  const site = $("scatter-site").value;
  const kept = visible();
  const mapped = kept.filter((i) => mapOf(i, site));
  // Scores of all metrics share their unit, none; of effects the first run's is drawn.
  const maps = mapped.map((i) => mapOf(i, site));
  const first = maps.find((map) => map.score) ?? maps[0];
  const drawable = mapped.filter((_, k) => maps[k].unit === first.unit);
  let held = 0;
  scatter.runs = drawable.filter((i, k) => (held += mapOf(i, site).ig.length) <= MAX_POINTS || k === 0);
  const notes = [`${scatter.runs.length} of ${kept.length} runs drawn.`];
  const out = (n, why) => n && notes.push(`${n} left out: ${why}.`);
  const absent = first?.score ? kept.filter((i) => !(site in MAPS[i])).length : kept.length - mapped.length;
  out(absent, `without ${site}`);
  if (first?.score) out(kept.length - absent - drawable.length, "without scores");
  else {
    for (const unit of new Set(maps.map((map) => map.unit))) {
      if (unit !== first.unit) out(maps.filter((map) => map.unit === unit).length, `effects in ${unit}, not in ${first.unit}`);
    }
  }
  if (scatter.runs.length < drawable.length) notes.push(`The first in the table's order, ${MAX_POINTS.toLocaleString("en")} points at most; filter or sort to see others.`);
  if (drawable.length && !first.score) notes.push(`No score is defined: effects in ${first.unit}.`);
  notes.push(`Hover over a ${site === "heads" ? "head" : "point"} to see it in the other runs of its model.`);
  $("scatter-note").textContent = notes.join(" ");
  $("linked").replaceChildren();
  $("legend").replaceChildren();
  if (!scatter.runs.length) return empty($("scatter"), `No run with ${site} passes the filter.`);
  const all = scatter.runs.flatMap((i) => [...mapOf(i, site).ig, ...mapOf(i, site).ap]);
  const range = padded(spread(all));
  const { svg, x, y } = frame({ width: 640, height: 520, title: `${site}; dashed: y = x`, xLabel: `IG, ${first.axis}`, yLabel: `AP, ${first.axis}`, xRange: range, yRange: range });
  svg.append(make("path", { d: `M${x(range[0])} ${y(range[0])}L${x(range[1])} ${y(range[1])}`, stroke: "#888", "stroke-dasharray": "5 4" }));
  const canvas = make("canvas", { width: 640, height: 520, "aria-label": "IG against AP" });
  canvas.style.marginTop = "-520px";
  scatter.points = scatter.runs.flatMap((run) => Array.from(mapOf(run, site).ig, (ig, i) => ({ run, i, name: cellName(mapOf(run, site), i), x: x(ig), y: y(mapOf(run, site).ap[i]) }))).filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y));
  const groups = setColours();
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.globalAlpha = scatter.points.length > 5000 ? 0.35 : 0.75;
  for (const point of scatter.points) dot(context, point, colourOf(point.run), 2.6);
  scatter.base = context.getImageData(0, 0, 640, 520);
  canvas.addEventListener("mousemove", (event) => link(event, context, canvas));
  canvas.addEventListener("mouseleave", () => { tip(null, null); });
  $("scatter").replaceChildren(svg, canvas);
  $("legend").append(...groups.map(([value, runs]) => legendEntry(context, value, runs)));
}

// Under the mouse, its points come to the front.
function legendEntry(context, value, runs) {
  const several = $("colour").value ? ` (${runs.length} run${runs.length > 1 ? "s" : ""})` : "";
  const entry = key(colourOf(runs[0]), value + several);
  entry.addEventListener("mouseenter", () => mark(context, scatter.points.filter((point) => runs.includes(point.run)), 2.6));
  entry.addEventListener("mouseleave", () => context.putImageData(scatter.base, 0, 0));
  return entry;
}

function mark(context, points, radius) {
  context.putImageData(scatter.base, 0, 0);
  context.globalAlpha = 1;
  for (const point of points) dot(context, point, "#000", radius + 1.5);
  for (const point of points) dot(context, point, colourOf(point.run), radius);
}

function key(fill, text) {
  const svg = make("svg", { width: 12, height: 12, style: "display:inline-block" }, make("circle", { cx: 6, cy: 6, r: 5, fill }));
  return make("div", {}, svg, ` ${text}`);
}

function dot(context, { x, y }, fill, radius) {
  context.fillStyle = fill;
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fill();
}

function link(event, context, canvas) {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let [nearest, least] = [null, 64];
  for (const point of scatter.points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < least) [nearest, least] = [point, distance];
  }
  if (!nearest) return tip(null, null);
  const { run, i, name } = nearest;
  const map = (of) => mapOf(of, $("scatter-site").value);
  const text = described(map(run), name);
  tip(event, [text, `run ${RUNS[run].label}`, `IG ${digits(map(run).ig[i])}`, `AP ${digits(map(run).ap[i])}`]);
  const same = scatter.points.filter((point) => point.name === name && RUNS[point.run].model === RUNS[run].model);
  mark(context, same, 4.5);
  const rows = same.map((point) => make("tr", {},
    make("td", {}, key(colourOf(point.run), RUNS[point.run].label)),
    make("td", { class: "number" }, digits(map(point.run).ig[point.i])), make("td", { class: "number" }, digits(map(point.run).ap[point.i]))));
  $("linked").replaceChildren(make("table", { "data-name": name }, make("caption", {}, `${text} in ${same.length} run${same.length > 1 ? "s" : ""} of ${RUNS[run].model}`),
    make("thead", {}, make("tr", {}, make("th", {}, "run"), make("th", { class: "number" }, "IG"), make("th", { class: "number" }, "AP"))), make("tbody", {}, ...rows)));
}
