"use strict";
// Curves over epochs: of methods, mean and range over seeds, or of single runs.

const PANELS = [
  ["Training", [["validation/", "Validation: "], ["train/loss", "Training loss"], ["train/metric_loss", "Metric loss"], ["probe/", "Linear probe: "]]],
  ["Adversary", [["train/adversary_strength", "Strength λ"], ["train/adversary_accuracy", "Accuracy of the class head"], ["train/adversary_loss", "Loss of the class head"], ["train/gradient_norm_", "Gradient norm: "], ["train/adversary", "Adversary"]]],
  ["Learning rates", [["lr-", "Rate: "]]],
  ["Speed", [["train/images_per_second", "Images/s"], ["train/waiting_for_data", "Share of time waiting for data"]]],
];

function curveTitle(name, patterns) {
  for (const [start, title] of patterns) {
    if (name === start) return title;
    if (name.startsWith(start) && title.endsWith(": ")) return title + metricTitle(name.slice(start.length)).replaceAll("_", " ");
  }
  return null;
}

const withCurves = () => Object.keys(data.curves).map((id) => data.runs[id]);
const curveChoice = { panel: "Training", cell: "", lines: "methods" };

function drawCurves() {
  const runs = withCurves();
  if (!runs.length) {
    byId("curves-about").textContent = "None of the runs left a table of its training (metrics.csv).";
    return;
  }
  const left = compared.length - runs.length;
  byId("curves-about").textContent = "As logged in every epoch." + (left > 0 ? ` Of ${count(runs.length, "run")} of ${compared.length}: the first seeds of every cell and method, so that the page stays small.` : "");
  curveChoice.cell ||= runs[0].cell;
  const cells = cellNames.filter((cell) => runs.some((run) => run.cell === cell));
  const again = (key) => (value) => { curveChoice[key] = value; drawCurveCharts(); };
  const available = PANELS.filter(([, patterns]) => runs.some((run) => Object.keys(data.curves[run.id]).some((name) => curveTitle(name, patterns))));
  show("curves-controls",
    selection("Curves", available.map(([name]) => [name, name]), curveChoice.panel, again("panel")),
    selection("Cell", cells.map((name) => [name, name]), curveChoice.cell, again("cell")),
    selection("Lines", [["methods", "methods: mean and range over seeds"], ["runs", "single runs"]], curveChoice.lines, again("lines")));
  drawCurveCharts();
}

function drawCurveCharts() {
  const runs = withCurves().filter((run) => run.cell === curveChoice.cell);
  show("curves-legend", legendOf(data.methods.filter((method) => runs.some((run) => run.method === method))));
  drawPanels(byId("curves-charts"), runs, PANELS.find(([name]) => name === curveChoice.panel)[1], curveChoice.lines);
}

/** Small charts of all the curves that fit the patterns. */
function drawPanels(place, runs, patterns, lines) {
  const names = new Map();
  for (const run of runs) for (const name of Object.keys(data.curves[run.id] ?? {})) {
    const title = curveTitle(name, patterns);
    if (title && !name.endsWith("_no_decay")) names.set(name, title);
  }
  const order = (name) => patterns.findIndex(([start]) => name.startsWith(start));
  // Two numbers of each kind say enough; the rest are in the runs' own tables.
  const kinds = new Map();
  const chosen = [...names.keys()].sort((a, b) => order(a) - order(b) || rank(a) - rank(b)).filter((name) => {
    const kind = order(name);
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
    return kinds.get(kind) <= (patterns[kind][0].startsWith("lr-") ? 5 : 2);
  });
  place.replaceChildren(...chosen.map(() => h("div.chart")));
  if (!chosen.length) return place.replaceChildren(h("p.hint", {}, "None of these runs logged such a curve."));
  chosen.forEach((name, i) => draw(place.children[i], curveSpec(runs, name, names.get(name), lines), `${names.get(name)} over epochs`));
}

const rank = (name) => { const place = data.metrics.findIndex((metric) => name.endsWith(metric.key)); return place < 0 ? 99 : place; };

function curveSpec(runs, name, title, lines) {
  const values = runs.flatMap((run) => {
    const curve = data.curves[run.id]?.[name];
    return curve ? curve[0].map((epoch, i) => ({ epoch, value: curve[1][i], method: run.method, run: run.name, id: String(run.id), seed: run.seed })) : [];
  });
  const isShare = /^(validation|probe)\/|accuracy|waiting/.test(name);
  const x = { field: "epoch", type: "quantitative", title: "epoch", axis: { tickMinStep: 1, format: "d", grid: false }, scale: { nice: false } };
  const y = { type: "quantitative", title: null, scale: { zero: false }, axis: { ...(isShare && { format: ".2~%" }), tickCount: 5 } };
  const color = { field: "method", type: "nominal", ...methodColor, legend: null };
  const strokeDash = { field: "method", type: "nominal", ...methodDash, legend: null };
  const format = isShare ? ".1%" : ".4~g";
  const few = Math.max(...runs.map((run) => data.curves[run.id]?.[name]?.[0].length ?? 0)) < 30;
  const spec = { title, height: 170, data: { values } };
  if (lines === "pair") {
    const pair = { field: "id", type: "nominal", scale: { domain: runs.map((run) => String(run.id)), range: ["var(--c1)", "var(--c2)"] }, legend: null };
    return { ...spec, mark: { type: "line", point: few && { size: 22 }, strokeWidth: 2 }, encoding: { x, y: { ...y, field: "value" }, color: pair, tooltip: [{ field: "run" }, { field: "epoch" }, { field: "value", format }] } };
  }
  if (lines === "runs") {
    return { ...spec, mark: { type: "line", strokeWidth: 1.5, opacity: 0.8, point: few && { size: 18 } }, encoding: { x, y: { ...y, field: "value" }, color, strokeDash, detail: { field: "id" }, tooltip: [{ field: "run" }, { field: "method" }, { field: "seed" }, { field: "epoch" }, { field: "value", format }] } };
  }
  const grouped = [{ aggregate: [{ op: "mean", field: "value", as: "mean" }, { op: "min", field: "value", as: "low" }, { op: "max", field: "value", as: "high" }, { op: "count", as: "runs" }], groupby: ["epoch", "method"] }];
  return {
    ...spec, transform: grouped, encoding: { x },
    layer: [
      { mark: { type: "area", opacity: 0.18 }, encoding: { y: { ...y, field: "low" }, y2: { field: "high" }, color } },
      { mark: { type: "line", strokeWidth: 2, point: few && { size: 22 } }, encoding: { y: { ...y, field: "mean" }, color, strokeDash, tooltip: [{ field: "method" }, { field: "epoch" }, { field: "mean", format }, { field: "low", format }, { field: "high", format }, { field: "runs" }] } },
    ],
  };
}
