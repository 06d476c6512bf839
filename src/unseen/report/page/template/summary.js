"use strict";
// The first screen: does it help, by how much, how sure. Then the paired differences of every cell.

function drawSummary() {
  const { metric } = state;
  const found = others.map((method) => standing(method, metric)).filter(Boolean);
  const level = `${100 * data.level} %`;
  show("what", "Which ", h("b", {}, data.compare), ` generalises to unseen classes? All against `, h("b", {}, data.reference), ".");
  byId("verdict").textContent = headline(found);
  byId("lede").textContent = lede(found, metric, level);
  byId("scale").textContent = `Points of ${metricTitle(metric)}; shaded: differences within ±${percent(data.margin)}, which do not matter.${sign < 0 ? " Of a gap, less is better." : ""}`;
  const reach = Math.max(2 * data.margin, ...found.flatMap((one) => [one.mean, ...(one.interval ?? [])]).map(Math.abs)) * 1.08;
  show("verdicts", found.map((one) => verdictRow(one, reach, level)));
  drawCautions();
  drawFacts();
}

function headline(found) {
  if (!found.length) return "There are no pairs of runs to compare.";
  const by = (verdict) => shortened(found.filter((one) => one.verdict === verdict).map((one) => one.method));
  const better = by("better"), worse = by("worse"), equal = by("equivalent"), open = by("cannot tell");
  const are = (methods) => (methods.length > 1 ? "are" : "is");
  const parts = [
    better.length && `${listed(better)} ${are(better)} better than ${data.reference}`,
    worse.length && `${listed(worse)} ${are(worse)} worse${better.length ? "" : ` than ${data.reference}`}`,
    open.length && (better.length + worse.length
      ? `of ${listed(open)} these runs cannot tell`
      : `whether ${listed(open)} ${are(open)} better than ${data.reference}, these runs cannot tell`),
    equal.length && `${listed(equal)} ${equal.length > 1 ? "make" : "makes"} no difference that matters`,
  ].filter(Boolean);
  const sentence = parts.length > 1 ? `${parts.slice(0, -1).join("; ")}; ${parts.at(-1)}.` : `${parts[0]}.`;
  // The names of methods keep their case, also at the start.
  return sentence.startsWith("whether") ? `W${sentence.slice(1)}` : sentence;
}

function lede(found, metric, level) {
  if (!found.length) return "No method shares a cell and a seed with the reference; see the grid below.";
  const best = found.reduce((a, b) => (sign * (b.mean - a.mean) > 0 ? b : a));
  const where = best.cells === 1 ? `over ${count(best.pairs, "paired seed")}` : `over ${best.cells} cells and ${count(best.pairs, "pair")} of runs`;
  const sure = best.interval ? `${level} interval ${range(best.interval)}` : best.pairs === 1 ? "one seed gives no interval" : "equal differences give no interval";
  return `${found.length > 1 ? "The most: " : ""}${best.method} ${points(best.mean)} points of ${metricTitle(metric)} ${where}; ${sure}.`;
}

function verdictRow(one, reach, level) {
  return h("li.verdict", {},
    h("div.who", {}, h("span.key", { style: `--method:${colorOf(one.method)}`, "aria-hidden": "true" }), h("b", {}, one.method), chip(one.verdict)),
    h("div.much", {}, points(one.mean), h("small", {}, " points")),
    dotAndInterval(one.mean, one.interval, reach, one.method),
    h("p.sure", {}, sureness(one, level)));
}

function sureness(one, level) {
  const interval = one.interval ? `${level} interval ${range(one.interval)}` : "no interval";
  if (one.one) {
    const classes = one.one.class_interval ? `; over its ${one.one.classes} test classes ${range(one.one.class_interval)}` : "";
    return `${interval} over ${count(one.pairs, "paired seed")} in one cell${classes}.`;
  }
  const { all } = one;
  const improved = `improved in ${Math.round(all.improved * all.cells)} of ${all.cells} cells`;
  const beats = `A run of it beats one of ${data.reference} with probability ${all.probability.toFixed(2)}`;
  const least = all.p_value <= all.smallest_p * 1.001 ? ` (${count(all.cells, "cell")} give no less)` : "";
  const p = `Sign-flip p ${probability(all.p_value)}${least}, ${probability(all.p_holm)} after Holm over ${count(data.overall.length, "comparison")}`;
  return `${interval} over cells, ${improved}. ${beats}. ${p}.`;
}

function drawCautions() {
  const unfair = data.settings.filter((one) => one.is_within || !one.is_part);
  const failed = data.runs.filter((run) => run.status !== "success").length;
  const notes = [];
  if (unfair.length) {
    notes.push(h("details", {},
      h("summary", {}, h("b", {}, "Compared runs differ in more than the method and the seed: "), listed([...new Set(unfair.map((one) => one.key))].slice(0, 4)), "."),
      h("ul", {}, unfair.map((one) => h("li", {}, h("code", {}, one.key), one.is_within ? `: ${one.reference} and ${one.value} among the seeds of ${one.method}` : `: ${one.reference} with ${data.reference}, ${one.value} with ${one.method} (${one.pairs} of ${count(one.of, "pair")})`)))));
  }
  const gaps = [
    data.missing.length && `${count(data.missing.length, "run")} missing`,
    data.unequal.length && `${count(data.unequal.length, "set")} of runs tested on other classes and not paired`,
    data.waiting && `${count(data.waiting, "job")} without a record yet`,
    failed && `${failed} failed or interrupted`,
    data.duplicates.length && `${data.duplicates.length} run twice`,
    data.unreadable.length && `${count(data.unreadable.length, "unreadable record")}`,
  ].filter(Boolean);
  if (gaps.length) notes.push(h("p", {}, h("a", { href: "#grid" }, "What the grid lacks"), `: ${gaps.join(", ")}.`));
  if (data.notes.length) notes.push(h("details", {}, h("summary", {}, "How to read these numbers"), h("ul", {}, data.notes.map((note) => h("li", {}, note)))));
  show("cautions", notes);
}

function drawFacts() {
  const finished = data.runs.filter((run) => run.status === "success").length;
  const seeds = new Set(compared.map((run) => run.seed)).size;
  const facts = [[finished, "finished runs"], [data.cells.length, data.cells.length === 1 ? "cell" : "cells"], [data.methods.length, "methods"], [seeds, seeds === 1 ? "seed" : "seeds"]];
  show("facts", facts.map(([number, words]) => h("div", {}, h("dt", {}, words), h("dd", {}, String(number)))));
}

const MOST_CELLS = 24;
let intervalOver = "seeds";

function drawDifferences() {
  const over = intervalOver;
  const cells = cellNames.slice(0, MOST_CELLS);
  const rows = differencesOf(state.metric).filter((one) => cells.includes(one.cell)).map((one) => {
    const mean = over === "seeds" ? one.mean : one.class_mean;
    const interval = over === "seeds" ? one.interval : one.class_interval;
    return { cell: one.cell, method: one.method, mean: 100 * mean, low: interval && 100 * interval[0], high: interval && 100 * interval[1], verdict: one.verdict, of: over === "seeds" ? count(one.seeds.length, "seed") : count(one.classes, "class", "classes"), values: one.values, isMean: isNumber(mean) };
  }).filter((row) => row.isMean);
  const seeds = over === "seeds" ? rows.flatMap((row) => row.values.map((value) => ({ cell: row.cell, method: row.method, value: 100 * value }))) : [];
  if (cells.length > 1 && over === "seeds") {
    for (const all of data.overall.filter((one) => one.metric === state.metric)) {
      rows.push({ cell: "all cells", method: all.method, mean: 100 * all.mean, low: all.interval && 100 * all.interval[0], high: all.interval && 100 * all.interval[1], verdict: all.verdict, of: count(all.cells, "cell") });
    }
  }
  const left = cellNames.length - cells.length;
  const dots = [...rows.map((row) => row.mean), ...seeds.map((row) => row.value), -100 * data.margin, 100 * data.margin];
  const domain = [Math.min(...dots, quantile(rows.map((row) => row.low), 0.1)), Math.max(...dots, quantile(rows.map((row) => row.high), 0.9))];
  const isCut = rows.some((row) => row.low < domain[0] - 0.01 || row.high > domain[1] + 0.01);
  byId("differences-about").textContent = `${metricTitle(state.metric)} of each method less ${data.reference}, in points; ` +
    (over === "seeds" ? "dot and line: mean and its interval over paired seeds, faint ticks: single seeds." : "dot and line: mean and its interval over the test classes, seeds averaged: how it would be with other classes.") +
    (isCut ? " A few intervals go on beyond the chart." : "") +
    (left > 0 ? ` The first ${MOST_CELLS} cells; ${left} more are in the table.` : "");
  if (!rows.length) return show("differences-chart", h("p.hint", {}, "There is nothing to subtract."));
  const y = { field: "cell", type: "nominal", sort: ["all cells", ...cells], title: null, axis: { labelLimit: isNarrow() ? 110 : 280, grid: false, ticks: false, domain: false, labelPadding: 10, labelColor: "var(--ink)" }, scale: { paddingInner: 0.35 } };
  const x = { type: "quantitative", title: "points", scale: { domain, nice: 6 }, axis: { tickCount: isNarrow() ? 5 : 9, orient: cells.length > 10 ? "top" : "bottom" } };
  const yOffset = { field: "method", type: "nominal", sort: others };
  // Vega's legend is one row, cut off where it does not fit beside the names of the cells.
  const width = byId("differences-chart").clientWidth - y.axis.labelLimit;
  const legend = { columns: Math.max(1, Math.floor(width / (30 + 7.5 * Math.max(...others.map((name) => name.length))))) };
  const color = { field: "method", type: "nominal", legend, scale: { domain: others, range: others.map(colorOf) } };
  const shape = { field: "method", type: "nominal", legend, scale: { domain: others, range: others.map((_, i) => shapeOf(i)) } };
  const tooltip = [{ field: "cell", title: "cell" }, { field: "method", title: "method" }, { field: "mean", title: "points", format: "+.2f" }, { field: "low", title: "from", format: "+.2f" }, { field: "high", title: "to", format: "+.2f" }, { field: "of", title: "over" }, { field: "verdict", title: "verdict" }];
  const step = Math.max(cells.length > 10 ? 9 : 13, 22 - 2 * others.length);
  draw(byId("differences-chart"), {
    height: { step },
    data: { values: rows },
    encoding: { y, yOffset },
    layer: [
      { data: { values: [{ low: -100 * data.margin, high: 100 * data.margin }] }, mark: { type: "rect", color: "var(--band)" }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, y: null, yOffset: null } },
      { data: { values: [{ zero: 0 }] }, mark: { type: "rule", color: "var(--soft)", size: 1 }, encoding: { x: { ...x, field: "zero" }, y: null, yOffset: null } },
      { data: { values: seeds }, mark: { type: "tick", thickness: 1.5, size: 7, opacity: 0.5 }, encoding: { x: { ...x, field: "value" }, color } },
      { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", size: 2, strokeCap: "round", clip: true }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, color } },
      { mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { x: { ...x, field: "mean" }, color, shape, tooltip } },
    ],
  }, `Differences of ${metricTitle(state.metric)} to ${data.reference} with their intervals, by cell and method`);
}
