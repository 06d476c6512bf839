"use strict";
// One run, or all seeds of a method in a cell, in a dialog; and the grid.

function openDialog(title, ...content) {
  const dialog = byId("dialog");
  const before = document.activeElement;
  if (!dialog.open) dialog.addEventListener("close", () => giveFocusBack(before), { once: true });
  dialog.replaceChildren(
    h("header", {}, h("h2", { id: "dialog-title", tabIndex: -1 }, title), h("button.quiet", { type: "button", onclick: () => dialog.close(), "aria-label": "Close" }, "Close")),
    h("div.body", {}, content.flat().filter(Boolean)));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

/** A table may have drawn its rows anew meanwhile, and so the button that opened the dialog. */
function giveFocusBack(element) {
  const label = element.getAttribute("aria-label");
  const now = element.isConnected || !label ? element : document.querySelector(`[aria-label="${CSS.escape(label)}"]`);
  now?.focus();
}

function openRun(run) {
  const splits = data.names.splits.filter((split) => data.names.metrics.some((metric) => valueOf(run, split, metric) !== null));
  const metrics = data.names.metrics.filter((metric) => splits.some((split) => valueOf(run, split, metric) !== null));
  const numbers = splits.length && plainTable("All numbers of the run", ["%", ...splits.map((split) => [data.titles.splits[split], "n"])],
    metrics.map((metric) => [metricTitle(metric), ...splits.map((split) => [(split.endsWith("gap") ? points : percent)(valueOf(run, split, metric)), split === data.split ? "n.strong" : "n"])]));
  const facts = [
    ["folder", run.folder], ["finished", run.finished.replace("T", " ").replace("+00:00", " UTC")], ["epoch measured", whole(run.epoch)], ["steps", whole(run.steps)], ["λ at the end", isNumber(run.strength) ? run.strength.toPrecision(3) : NOTHING],
    ["training", `${duration(run.seconds)} at ${whole(run.speed)} images/s`], ["memory", run.gpu_memory ? `${bytes(run.gpu_memory)} GPU, ${bytes(run.memory)} host` : bytes(run.memory)], ["parameters", millions(run.parameters)], ["machine", run.machine], ["code", `unseen ${run.versions}${run.commit ? `, commit ${run.commit.slice(0, 12)}` : ""}`], ["split", run.split.slice(0, 16)], ["job", run.job_key || NOTHING],
  ];
  const curves = h("div.charts");
  const settings = [...settingsOf(run)].sort(([a], [b]) => byDepth(a, b));
  openDialog(run.name,
    h("p.keyed", {}, h("span.key", { style: `--method:${colorOf(run.method)}` }), runTitle(run), " ", h(`span.status.${run.status}`, {}, run.status)),
    run.error && h("pre.error", {}, run.error),
    h("h3", {}, "Run it again"), commandOf(run), run.errors && h("div", {}, h("p.hint", {}, "Its errors, image by image (pip install embedding-atlas):"), copyable(explorerCommand(run), "Copy the command of the explorer")),
    numbers && h("h3", {}, "Numbers"), numbers,
    data.curves[run.id] && h("h3", {}, "Curves"), curves,
    h("h3", {}, "What it took"), h("dl.pairs", {}, facts.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    h("details", {}, h("summary", {}, `Configuration (${count(settings.length, "setting")})`), plainTable("Configuration", ["key", "value"], settings.map(([key, value]) => [h("code", {}, key), value]), "settings")));
  if (data.curves[run.id]) drawPanels(curves, [run], [...PANELS[0][1].slice(0, 3), ...PANELS[1][1].slice(0, 2)], "runs");
}

const commandOf = (run) => (run.command ? copyable(run.command) : h("p.hint", {}, "It was started from Python, with images of its own; overrides: ", h("code", {}, run.overrides.join(" ") || "none")));

function explorerCommand(run) {
  const path = `${run.folder}/errors.parquet`;
  return `embedding-atlas ${/^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`} --x x --y y --neighbors neighbors --image thumbnail`;
}

/** All seeds of a method in a cell. */
function openGroup(result) {
  const runs = result.points.map((point) => data.runs[point.folder]);
  const less = differencesOf(result.metric).find((one) => one.cell === result.cell && one.method === result.method);
  openDialog(`${result.method} · ${result.cell}`,
    h("p", {}, `${metricTitle(result.metric)} ${percent(result.mean)} %`, result.interval ? ` ±${percent(half(result.interval))}` : "", ` over ${count(runs.length, "seed")}.`,
      less && ` Less ${data.reference}: ${points(less.mean)} points (${range(less.interval)}) over ${count(less.seeds.length, "paired seed")}.`,
      less?.class_interval && ` Over ${less.classes} test classes: ${points(less.class_mean)} (${range(less.class_interval)}).`),
    plainTable("Seeds", ["seed", [`${metricTitle(result.metric)} %`, "n"], "run"], result.points.map((point) => [String(point.seed), [percent(point.value, 2), "n"], opener(data.runs[point.folder].name, () => openRun(data.runs[point.folder]))])),
    h("h3", {}, "Run them again"), runs.map(commandOf));
}

function drawGrid() {
  const done = new Map();
  for (const run of compared) done.set(`${run.cell}\n${run.method}`, [...(done.get(`${run.cell}\n${run.method}`) ?? []), run.seed]);
  const missing = new Map();
  for (const one of data.missing) missing.set(`${one.cell}\n${one.method}`, [...(missing.get(`${one.cell}\n${one.method}`) ?? []), one]);
  const rows = cellNames.map((cell) => [cell, ...data.methods.map((method) => {
    const [has, lacks] = [done.get(`${cell}\n${method}`) ?? [], missing.get(`${cell}\n${method}`) ?? []];
    if (!has.length && !lacks.length) return [NOTHING, "none"];
    const words = lacks.length ? `lacks seed ${listed(lacks.map((one) => String(one.seed)))}` : "";
    return [h("span", { title: lacks.map((one) => `seed ${one.seed}: ${one.reason}`).join("\n") }, count(has.length, "seed"), words && h("b", {}, ` ${words}`)), lacks.length ? "lacks" : "whole"];
  })]);
  const stopped = data.runs.filter((run) => run.status !== "success");
  const list = (title, items) => items.length > 0 && [h("h3", {}, title), items.length > 12 ? h("details", {}, h("summary", {}, `All ${items.length}`), h("ul.notes", {}, items)) : h("ul.notes", {}, items)];
  const name = (run) => (typeof run === "number" ? opener(data.runs[run].name, () => openRun(data.runs[run])) : run);
  show("grid-content", [
    rows.length > 0 && plainTable("Seeds of every method in every cell", ["", ...data.methods], rows, "coverage"),
    list("Missing", data.missing.map((one) => h("li", {}, `${one.cell}, ${one.method}, seed ${one.seed}: ${one.reason}`, one.folder !== null && [" (", name(one.folder), ")"]))),
    list("Failed and interrupted", stopped.map((run) => h("li", {}, opener(run.name, () => openRun(run)), h(`span.status.${run.status}`, {}, run.status), h("pre.error", {}, run.error ?? "no error was kept"), run.command && copyable(run.command)))),
    list("Tested on other classes, so not paired", data.unequal.map((one) => h("li", {}, `${Object.values(one.factors).join(" · ")}: ${one.method} on ${one.splits.map((split) => split.slice(0, 8)).join(", ")}, ${one.reference} on ${one.reference_splits.map((split) => split.slice(0, 8)).join(", ")}`))),
    list("Run twice: the newest counts", data.duplicates.map((one) => h("li", {}, `${one.cell}, ${one.method}, seed ${one.seed}: `, name(one.kept), ", not ", one.dropped.flatMap((run, i) => [i ? ", " : "", name(run)])))),
    list("Records that cannot be read", data.unreadable.map((one) => h("li", {}, h("code", {}, one.path), ` ${one.reason}`))),
    !data.missing.length && !stopped.length && !data.unequal.length && h("p.hint", {}, "Nothing is missing: every method has every seed in every cell."),
  ].flat().flat().filter(Boolean));
}
