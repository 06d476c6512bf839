"use strict";
// Which unseen classes gain by a method, and which lose.

const ENDS = 12;
const classChoice = { cell: "", first: "", second: "" };

function drawClasses() {
  const entries = data.classes.filter((one) => one.metric === state.metric);
  if (!entries.length) {
    show("classes-controls");
    show("classes-chart");
    byId("classes-about").textContent = `No two methods have ${metricTitle(state.metric)} by class in one cell.`;
    return;
  }
  const entry = entries.find((one) => one.cell === classChoice.cell) ?? entries[0];
  const methods = data.methods.filter((method) => method in entry.values);
  const first = methods.includes(classChoice.first) ? classChoice.first : methods[0];
  const second = methods.includes(classChoice.second) && classChoice.second !== first ? classChoice.second : mostChanged().find((one) => one !== first && methods.includes(one)) ?? methods.find((one) => one !== first);
  const again = (key) => (value) => { Object.assign(classChoice, { cell: entry.cell, first, second, [key]: value }); drawClasses(); };
  show("classes-controls",
    selection("Cell", entries.map((one) => [one.cell, one.cell]), entry.cell, again("cell")),
    selection("Method", methods.map((one) => [one, one]), second, again("second")),
    selection("less", methods.map((one) => [one, one]), first, again("first")));
  const rows = entry.classes.map((name, i) => ({ name, a: entry.values[first][i], b: entry.values[second][i] }))
    .filter((row) => isNumber(row.a) && isNumber(row.b))
    .map((row) => ({ name: row.name, before: row.a / 100, after: row.b / 100, difference: (row.b - row.a) / 100 }))
    .sort((a, b) => b.difference - a.difference);
  const gained = rows.filter((row) => row.difference > 0).length, lost = rows.filter((row) => row.difference < 0).length;
  byId("classes-about").textContent = `${metricTitle(state.metric)} of ${second} less ${first}, class by class, seeds averaged: ${gained} gain, ${lost} lose, ${rows.length - gained - lost} stay.` +
    (entry.of > entry.classes.length ? ` Of ${entry.of} classes, the ${entry.classes.length} on which methods differ most.` : "") +
    (rows.length > 2 * ENDS ? ` Named: the ${ENDS} at either end.` : "");
  const ends = rows.length > 2 * ENDS ? [...rows.slice(0, ENDS), ...rows.slice(-ENDS)] : rows;
  const tooltip = [{ field: "name", title: "class" }, { field: "before", title: `${first} %`, format: ".1f" }, { field: "after", title: `${second} %`, format: ".1f" }, { field: "difference", title: "points", format: "+.1f" }];
  const color = { condition: { test: "datum.difference < 0", value: "var(--worse)" }, value: "var(--better)" };
  const scale = { domain: [Math.min(-1, ...rows.map((row) => row.difference)), Math.max(1, ...rows.map((row) => row.difference))], nice: true };
  const every = `all ${count(rows.length, "class", "classes")}`;
  const labelLimit = isNarrow() ? 110 : 260;
  const y = { type: "nominal", sort: null, scale: { domain: [every, ...ends.map((row) => row.name)] }, title: null, axis: { labelLimit, grid: false, domain: false, ticks: false, labelPadding: 8, labelColor: "var(--ink)" } };
  const x = { field: "difference", type: "quantitative", title: "points", scale, axis: { tickCount: isNarrow() ? 5 : 9 } };
  draw(byId("classes-chart"), {
    height: { step: 19 },
    layer: [
      { data: { values: [{ zero: 0 }] }, mark: { type: "rule", color: "var(--soft)", size: 1 }, encoding: { x: { field: "zero", type: "quantitative" } } },
      { data: { values: rows }, transform: [{ calculate: JSON.stringify(every), as: "all" }], mark: { type: "tick", thickness: 1.4, opacity: 0.55, size: 14 }, encoding: { y: { field: "all", ...y }, x, color, tooltip } },
      { data: { values: ends }, mark: { type: "rule", strokeWidth: 1.5, opacity: 0.6 }, encoding: { y: { field: "name", ...y }, x, x2: { datum: 0 }, color } },
      { data: { values: ends }, mark: { type: "point", filled: true, size: 55, opacity: 1 }, encoding: { y: { field: "name", ...y }, x, color, tooltip } },
    ],
  }, `${metricTitle(state.metric)} of ${second} less ${first} by unseen class`);
}
