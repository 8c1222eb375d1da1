// Convergence against steps, a metric against each setting, the settings of two runs; then the first drawing of all.
const value = (columns, name, i) => columns.find((column) => column.name === name)?.values[i] ?? null;

function hover(element, lines) {
  element.addEventListener("mousemove", (event) => tip(event, lines));
  element.addEventListener("mouseleave", () => tip(null, null));
  return element;
}

// Runs that differ in ig.n_steps alone, by what they have in common, fewest steps first; only where steps vary.
function stepGroups() {
  const groups = new Map();
  for (const i of visible()) {
    if (RUNS[i].n_steps === null) continue;
    const others = SETTINGS.filter((column) => column.name !== "ig.n_steps");
    const name = others.map((column) => `${column.name}=${cellText(column, i)}`).join(", ") || "all runs";
    groups.set(name, [...(groups.get(name) || []), i]);
  }
  const varied = [...groups].filter(([, runs]) => new Set(runs.map((i) => RUNS[i].n_steps)).size > 1);
  return varied.map(([name, runs]) => [name, runs.sort((a, b) => RUNS[a].n_steps - RUNS[b].n_steps)]);
}

function drawSteps() {
  const groups = stepGroups();
  const auto = visible().filter((i) => RUNS[i].known && RUNS[i].n_steps === null).length;
  $("steps-controls").hidden = groups.length === 0;
  $("steps-note").textContent = groups.length ? `Runs that differ in ig.n_steps alone.${auto ? ` ${auto} with ig.n_steps=auto left out: each layer has its own number.` : ""}` : "";
  if (!groups.length) return empty($("steps"), "No runs that pass the filter differ in ig.n_steps alone.");
  const before = $("steps-group").value;
  options($("steps-group"), groups.map(([name]) => [name, name]));
  if (groups.some(([name]) => name === before)) $("steps-group").value = before;
  drawGroup();
}

function drawGroup() {
  const [, runs] = stepGroups().find(([name]) => name === $("steps-group").value);
  const xRange = padded(spread(runs.map((i) => RUNS[i].n_steps)), true);
  $("steps").replaceChildren(deltaPlot(stepGroups(), runs), igPlot(runs, xRange));
}

// max |delta| of every group, the chosen one in colour.
function deltaPlot(groups, chosen) {
  const name = "heads/max_abs_delta";
  const of = (i) => value(DATA.metrics, name, i);
  const unit = RUNS[chosen[0]].unit;
  const points = groups.flatMap(([, runs]) => runs).filter((i) => of(i) !== null && RUNS[i].unit === unit);
  if (!points.length) return make("p", { class: "empty" }, `No run has ${name}.`);
  const log = points.every((i) => of(i) > 0);
  const { svg, x, y } = frame({ width: 560, height: 380, title: `completeness delta of IG, heads${groups.length > 1 ? " (grey: other runs)" : ""}`, xLabel: "ig.n_steps (log)", yLabel: `max |delta|, ${unit}${log ? " (log)" : ""}`,
    xLog: true, yLog: log, xRange: padded(spread(points.map((i) => RUNS[i].n_steps)), true), yRange: padded(spread(points.map(of)), log) });
  const chosenFirst = ([, runs]) => runs[0] === chosen[0];
  for (const [group, all] of [...groups].sort((a, b) => chosenFirst(a) - chosenFirst(b))) {
    const runs = all.filter((i) => points.includes(i));
    const stroke = all[0] === chosen[0] ? PALETTE[1] : "#bbb";
    svg.append(make("path", { d: runs.map((i, k) => `${k ? "L" : "M"}${x(RUNS[i].n_steps)} ${y(of(i))}`).join(""), stroke, fill: "none", "stroke-width": 1.6 }));
    for (const i of runs) svg.append(hover(make("circle", { cx: x(RUNS[i].n_steps), cy: y(of(i)), r: 4, fill: stroke }), [RUNS[i].label, group, `${RUNS[i].n_steps} steps`, `max |delta| ${digits(of(i))} ${unit}`]));
  }
  return svg;
}

// IG of the eight heads that are largest at the most steps.
function igPlot(all, xRange) {
  const heads = (i) => mapOf(i, "heads");
  const last = heads(all.at(-1));
  const runs = all.filter((i) => last && heads(i)?.unit === last.unit && heads(i).ig.length === last.ig.length);
  if (new Set(runs.map((i) => RUNS[i].n_steps)).size < 2) return make("p", { class: "empty" }, "IG of single heads: fewer than two of these runs have their heads.");
  const top = [...last.ig.keys()].filter((i) => Number.isFinite(last.ig[i])).sort((a, b) => Math.abs(last.ig[b]) - Math.abs(last.ig[a])).slice(0, 8);
  const texts = top.map((i) => described(last, cellName(last, i)));
  const right = Math.max(110, ...texts.map((text) => 37 + 6.5 * text.length));
  const { svg, x, y, box } = frame({ width: 510 + right, height: 380, right, title: `IG of the ${top.length} largest heads`, xLabel: "ig.n_steps (log)", yLabel: `IG, ${last.axis}`,
    xLog: true, xRange, yRange: padded(spread(runs.flatMap((run) => top.map((i) => heads(run).ig[i])))) });
  let lowest = -Infinity;
  const byHeight = [...top].sort((a, b) => last.ig[b] - last.ig[a]);
  for (const i of byHeight) {
    const [stroke, text] = [PALETTE[top.indexOf(i)], texts[top.indexOf(i)]];
    svg.append(make("path", { d: runs.map((run, k) => `${k ? "L" : "M"}${x(RUNS[run].n_steps)} ${y(heads(run).ig[i])}`).join(""), stroke, fill: "none", "stroke-width": 1.6 }));
    for (const run of runs) svg.append(hover(make("circle", { cx: x(RUNS[run].n_steps), cy: y(heads(run).ig[i]), r: 4, fill: stroke }), [text, RUNS[run].label, `${RUNS[run].n_steps} steps`, `IG ${digits(heads(run).ig[i])}`]));
    lowest = Math.max(y(last.ig[i]), lowest + 13);
    svg.append(make("line", { x1: x(RUNS[runs.at(-1)].n_steps) + 5, y1: y(last.ig[i]), x2: box.right + 22, y2: lowest, stroke: "#ccc" }));
    svg.append(label(box.right + 25, lowest + 4, text));
  }
  return svg;
}

function drawVaried() {
  const column = DATA.metrics.find(({ name }) => name === $("metric").value);
  const runs = visible().filter((i) => column && column.values[i] !== null);
  $("varied-note").textContent = "";
  if (!SETTINGS.length) return empty($("varied"), "No setting differs among these runs.");
  if (!runs.length) return empty($("varied"), column ? `No run that passes the filter has a number for ${column.name}.` : "No run has a metric.");
  const varied = SETTINGS.filter((one) => new Set(runs.map((i) => one.values[i]).filter((text) => text !== null)).size > 1);
  if (!varied.length) return empty($("varied"), "No setting differs among the runs that pass the filter.");
  $("varied-note").textContent = `${runs.length} of ${visible().length} runs have a number for ${column.name}.`;
  // Numbers of two units share no axis: a plot each.
  const units = new Set(column.in_unit ? runs.map((i) => RUNS[i].unit) : []);
  const groups = units.size > 1 ? [...units].map((unit) => [runs.filter((i) => RUNS[i].unit === unit), `, ${unit}`]) : [[runs, ""]];
  $("varied").replaceChildren(...varied.flatMap((one) => groups.map(([of, unit]) => variedPlot(one, column, of, unit))));
}

function variedPlot(varied, column, all, unit) {
  const runs = all.filter((i) => varied.values[i] !== null);
  const numbers = varied.numeric ? runs.map((i) => Number(varied.values[i])) : [];
  const names = varied.numeric ? null : [...new Set(runs.map((i) => varied.values[i]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  if (names && names.length > 40) return make("p", { class: "empty" }, `${varied.name}: ${names.length} different texts, too many for an axis.`);
  const [low, high] = spread(numbers);
  const log = varied.numeric && low > 0 && high / low >= 10;
  const place = (i) => (names ? names.indexOf(varied.values[i]) : Number(varied.values[i]));
  const { svg, x, y } = frame({ width: 390, height: 320, title: varied.name, xLabel: varied.name + (log ? " (log)" : ""), yLabel: column.name + unit, names,
    xLog: log, xRange: names ? [-0.6, names.length - 0.4] : padded([low, high], log), yRange: padded(spread(runs.map((i) => column.values[i]))) });
  for (const i of runs) {
    const point = make("circle", { cx: x(place(i)), cy: y(column.values[i]), r: 4, fill: PALETTE[0], "fill-opacity": 0.55 });
    svg.append(hover(point, [RUNS[i].label, `${varied.name}=${varied.values[i]}`, `${column.name} ${digits(column.values[i])}${unit.replace(",", "")}`]));
  }
  return svg;
}

function drawDiff() {
  const [a, b] = [Number($("first").value), Number($("second").value)];
  const unknown = [a, b].filter((i) => !RUNS[i].known);
  const keys = DATA.settings.filter((column) => !column.label && column.values[a] !== column.values[b]);
  $("diff").hidden = unknown.length > 0 || keys.length === 0;
  if (unknown.length) $("diff-note").textContent = `The settings of ${unknown.map((i) => RUNS[i].label).join(", ")} could not be read.`;
  else $("diff-note").textContent = keys.length ? `${keys.length} setting${keys.length > 1 ? "s differ" : " differs"}.` : a === b ? "The same run twice." : "Every setting is the same.";
  $("diff").tHead.replaceChildren(make("tr", {}, ...["setting", RUNS[a].label, RUNS[b].label].map((text) => make("th", { scope: "col" }, text))));
  $("diff").tBodies[0].replaceChildren(...keys.map((column) => make("tr", {}, make("td", {}, column.name), make("td", {}, cellText(column, a)), make("td", {}, cellText(column, b)))));
}

function drawAll() {
  drawScatter();
  drawSteps();
  drawVaried();
}

function start() {
  for (const id of ["run", "first", "second"]) options($(id), RUNS.map((run, i) => [i, run.label]));
  $("second").value = Math.min(1, RUNS.length - 1);
  options($("metric"), DATA.metrics.map(({ name }) => [name, name]));
  const preferred = DATA.metrics.findIndex(({ name }) => name === "heads/pearson");
  if (preferred >= 0) $("metric").selectedIndex = preferred;
  $("filter").addEventListener("input", filter);
  $("run").addEventListener("change", () => choose(Number($("run").value)));
  $("metric").addEventListener("change", drawVaried);
  startColours();
  chooseFrom($("scatter-site"), SITES);
  $("site").addEventListener("change", drawMaps);
  $("scatter-site").addEventListener("change", drawScatter);
  $("steps-group").addEventListener("change", drawGroup);
  for (const id of ["first", "second"]) $(id).addEventListener("change", drawDiff);
  drawTable();
  choose(0);
  drawAll();
  drawDiff();
  document.body.dataset.ready = "yes";
}

start();
