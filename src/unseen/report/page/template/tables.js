"use strict";
// Methods by cell, and runs: tables that sort and filter.

const spaced = (main, small) => h("span.num", {}, main, " ", h("span.pm", {}, small));
const numeric = (title, field, format, more = {}) => ({ title, field, hozAlign: "right", headerHozAlign: "right", sorter: "number", sorterParams: { alignEmptyValues: "bottom" }, formatter: (cell) => format(cell.getValue()), ...more });
const named = (title, field, more = {}) => ({ title, field, sorter: "alphanum", ...more });

const opener = (text, open, label) => h("button.link", { type: "button", onclick: (event) => { event.stopPropagation(); open(); }, "aria-label": label }, text);

function makeTable(id, label, columns, rows, more = {}) {
  const table = new Tabulator(`#${id}`, {
    data: rows, columns, layout: "fitDataFill", placeholder: "Nothing fits these filters.", columnHeaderSortMulti: true, resizableColumnFit: false,
    // One height for all: measuring each would cost seconds, and catch names before their column has its width.
    rowHeight: isNarrow() ? 54 : 38, movableColumns: false, columnDefaults: { headerSortTristate: true, resizable: false, minWidth: 52 },
    printAsHtml: true, printStyled: false, printRowRange: rows.length > 150 ? "visible" : "active",
    ...more,
  });
  byId(id).setAttribute("aria-label", label);
  const heads = () => byId(id).querySelectorAll(".tabulator-col-sorter-element").forEach((head) => (head.tabIndex = 0));
  table.on("tableBuilt", heads);
  table.on("columnsLoaded", heads);
  byId(id).addEventListener("keydown", (event) => {
    if (!event.target.matches(".tabulator-col-sorter-element") || !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    event.target.click();
  });
  return table;
}

// Methods

function methodRows() {
  const costs = new Map(data.costs.map((one) => [`${one.cell}\n${one.method}`, one]));
  const differences = new Map(differencesOf(state.metric).map((one) => [`${one.cell}\n${one.method}`, one]));
  return resultsOf(state.metric).map((one, id) => {
    const key = `${one.cell}\n${one.method}`;
    const cost = costs.get(key) ?? {};
    const less = differences.get(key);
    return {
      id, cell: one.cell, method: one.method, order: data.methods.indexOf(one.method), seeds: one.points.length, mean: one.mean, half: half(one.interval),
      difference: less?.mean ?? null, differenceHalf: half(less?.interval), verdict: less?.verdict ?? "", gap: one.gap, untrained: one.untrained,
      speed: cost.images_per_second, seconds: cost.seconds, memory: cost.accelerator_bytes ?? cost.host_bytes, parameters: cost.parameters, result: one,
    };
  });
}

let methodsTable;

function methodColumns() {
  const title = metricTitle(state.metric);
  // A phone shows three columns: the method and what comes first here.
  const [cell, seeds] = [named("Cell", "cell"), numeric("Seeds", "seeds", whole)];
  const plusMinus = (field) => (cell) => { const margin = cell.getData()[field]; return spaced(percent(cell.getValue()), isNumber(margin) ? `±${percent(margin)}` : ""); };
  return [
    named("Method", "method", { ...(isNarrow() ? { width: 142 } : { frozen: true }), sorter: (a, b) => data.methods.indexOf(a) - data.methods.indexOf(b), formatter: (cell) => h("span.keyed", {}, h("span.key", { style: `--method:${colorOf(cell.getValue())}`, "aria-hidden": "true" }), opener(cell.getValue(), () => openGroup(cell.getData().result), `Open ${cell.getValue()} in ${cell.getData().cell}`), isNarrow() && h("span.sub", {}, cell.getData().cell)) }),
    ...(isNarrow() ? [] : [cell, seeds]),
    numeric(`${title} %`, "mean", percent, { formatter: plusMinus("half") }),
    numeric(`− ${data.reference}`, "difference", points, { formatter: (cell) => { const margin = cell.getData().differenceHalf; return spaced(cell.getData().method === data.reference ? "" : points(cell.getValue()), isNumber(margin) ? `±${percent(margin)}` : ""); } }),
    named("Verdict", "verdict", { formatter: (cell) => (cell.getValue() ? chip(cell.getValue()) : "") }),
    ...(isNarrow() ? [cell, seeds] : []),
    numeric("Gap", "gap", points),
    numeric("Untrained", "untrained", percent),
    numeric("Images/s", "speed", whole),
    numeric("Training", "seconds", duration),
    numeric("Memory", "memory", bytes),
    numeric("Parameters", "parameters", millions),
  ];
}

function drawMethods() {
  byId("methods-about").textContent = `Mean over seeds ± half the ${100 * data.level} % interval (none for one seed), and the paired difference to ${data.reference}. Gap: seen less unseen classes, in galleries of equal shape. Untrained: the backbone before training. Speeds compare only on one machine.`;
  if (methodsTable) {
    methodsTable.setColumns(methodColumns());
    return methodsTable.replaceData(methodRows());
  }
  methodsTable = makeTable("methods-table", "Methods by cell", methodColumns(), methodRows(), { ...(resultsOf(state.metric).length > 40 && { height: "70vh" }) });
  const filter = () => methodsTable.setFilter((row) => (!cell.select.value || row.cell === cell.select.value) && (!method.select.value || row.method === method.select.value));
  const cell = selection("Cell", [["", "all"], ...cellNames.map((name) => [name, name])], "", filter);
  const method = selection("Method", [["", "all"], ...data.methods.map((name) => [name, name])], "", filter);
  show("methods-filters", cell, method, saveAs(methodsTable, "methods"));
}

const saveAs = (table, name) => h("button.quiet.end", { type: "button", onclick: () => table.download("csv", `${name}.csv`) }, "Save as CSV");

// Runs

let runsTable;
const picked = [];

function runRows() {
  return data.runs.map((run) => ({
    id: run.id, name: run.name, method: run.method, seed: run.seed, status: run.status, run, text: [run.name, run.folder, run.method, run.status, ...run.factors].join(" ").toLowerCase(),
    ...Object.fromEntries(data.factors.map((_, i) => [`factor${i}`, run.factors[i]])),
    ...Object.fromEntries(data.metrics.map((metric, i) => [`metric${i}`, valueOf(run, data.split, metric.key)])),
    gap: valueOf(run, "gap", data.metrics[0].key), validation: valueOf(run, "validation", data.metrics[0].key),
    command: run.command, epoch: run.epoch, speed: run.speed, seconds: run.seconds, memory: run.gpu_memory ?? run.memory,
  }));
}

function drawRuns() {
  const has = (field) => rows.some((row) => isNumber(row[field]));
  const rows = runRows();
  const metrics = data.metrics.map((metric, i) => numeric(`${metric.title} %`, `metric${i}`, percent));
  const columns = [
    { title: "", field: "id", cssClass: "tick", headerSort: false, width: 40, minWidth: 40, print: false, download: false, formatter: (cell) => h("input", { type: "checkbox", checked: picked.includes(cell.getValue()), "aria-label": `Compare ${cell.getData().name}`, onchange: (event) => pick(cell.getValue(), event.target.checked) }) },
    named("Run", "name", { formatter: (cell) => opener(cell.getValue(), () => openRun(cell.getData().run), `Open ${cell.getValue()}`), maxInitialWidth: isNarrow() ? 190 : 330, cssClass: "run" }),
    ...(isNarrow() ? metrics : []),
    named(data.compare, "method", { formatter: (cell) => h("span.keyed", {}, h("span.key", { style: `--method:${colorOf(cell.getValue())}`, "aria-hidden": "true" }), cell.getValue()) }),
    ...data.factors.map((factor, i) => named(factor, `factor${i}`)),
    numeric("Seed", "seed", String),
    named("Status", "status", { formatter: (cell) => h(`span.status.${cell.getValue()}`, {}, cell.getValue()) }),
    ...(isNarrow() ? [] : metrics),
    ...(has("gap") ? [numeric("Gap", "gap", points)] : []),
    ...(has("validation") ? [numeric("Validation %", "validation", percent)] : []),
    numeric("Epoch", "epoch", whole),
    numeric("Images/s", "speed", whole),
    numeric("Training", "seconds", duration),
    numeric("Memory", "memory", bytes),
    { title: "Command", field: "command", headerSort: false, print: false, formatter: (cell) => (cell.getValue() ? h("button.copy", { type: "button", "aria-label": `Copy the command of ${cell.getData().name}`, onclick: (event) => copy(cell.getValue(), event.target) }, "Copy") : NOTHING) },
  ];
  runsTable = makeTable("runs-table", "Runs", columns, rows, { index: "id", ...(rows.length > 20 && { height: "min(70vh, 640px)" }) });
  const search = h("input", { type: "search", placeholder: "name, folder, …", oninput: () => filter() });
  const choices = (values) => [["", "all"], ...[...new Set(values)].sort().map((value) => [value, value])];
  const selects = [
    ["method", selection(data.compare, [["", "all"], ...data.methods.map((name) => [name, name])], "", () => filter())],
    ...data.factors.map((factor, i) => [`factor${i}`, selection(factor, choices(data.runs.map((run) => run.factors[i])), "", () => filter())]),
    ["status", selection("Status", choices(data.runs.map((run) => run.status)), "", () => filter())],
  ];
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    runsTable.setFilter((row) => words.every((word) => row.text.includes(word)) && selects.every(([field, one]) => !one.select.value || row[field] === one.select.value));
  };
  show("runs-filters", h("label.field", {}, h("span", {}, "Search"), search), selects.map(([, one]) => one), saveAs(runsTable, "runs"));
  runsTable.on("dataFiltered", (_, shown) => (byId("runs-count").textContent = `${shown.length} of ${count(rows.length, "run")}`));
}

/** The two runs that were ticked last. */
function pick(id, isTicked) {
  const place = picked.indexOf(id);
  if (place >= 0) picked.splice(place, 1);
  if (isTicked) picked.push(id);
  const dropped = picked.length > 2 ? picked.shift() : null;
  const row = dropped !== null && runsTable.getRow(dropped);
  if (row) row.reformat();
  byId("runs-count").replaceChildren(picked.length === 2 ? h("a", { href: "#pair" }, "See the two ticked runs side by side") : picked.length ? "Tick one more to compare two runs." : "");
  if (picked.length === 2) showPair(...picked);
}
