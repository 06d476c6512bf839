"use strict";
// Two runs side by side: numbers, configuration, curves, and what they retrieve for the same queries.

const pairChoice = { first: null, second: null, onlyDiffering: false };
const runTitle = (run) => `${run.method} · ${run.cell ?? run.name} · seed ${run.seed}`;

function drawPair() {
  const finished = data.runs.filter((run) => run.status === "success");
  if (finished.length < 2) return show("pair-content", h("p.hint", {}, "There is one run only."));
  const [first, second] = startingPair(finished);
  showPair(first.id, second.id);
}

/** The reference and the best method, of one cell and seed, with sheets if there are any. */
function startingPair(finished) {
  const [best] = mostChanged();
  const fits = (run, method) => run.method === method && run.cell !== null;
  const sheeted = (run) => run.id in data.sheets;
  const references = compared.filter((run) => fits(run, data.reference)).sort((a, b) => sheeted(b) - sheeted(a));
  for (const first of references) {
    const second = best && compared.find((run) => fits(run, best) && run.cell === first.cell && run.seed === first.seed);
    if (second) return [first, second];
  }
  return finished;
}

function showPair(firstId, secondId) {
  Object.assign(pairChoice, { first: firstId, second: secondId });
  const choices = data.runs.map((run) => [String(run.id), runTitle(run) + (run.status === "success" ? "" : ` (${run.status})`)]);
  const again = (key) => (value) => { pairChoice[key] = Number(value); showPair(pairChoice.first, pairChoice.second); };
  const runs = [data.runs[firstId], data.runs[secondId]];
  if (!byId("pair-controls").selects) {
    byId("pair-controls").selects = [selection("First run", choices, String(firstId), again("first")), selection("Second run", choices, String(secondId), again("second"))];
    show("pair-controls", byId("pair-controls").selects);
  }
  byId("pair-controls").selects.forEach((field, i) => (field.select.value = String(runs[i].id)));
  const curves = h("div.charts");
  show("pair-content",
    h("p.legend", {}, h("span.keyed", {}, h("span.key", { style: "--method:var(--c1)" }), runTitle(runs[0])), h("span.keyed", {}, h("span.key", { style: "--method:var(--c2)" }), runTitle(runs[1]))),
    h("div.columns", {}, h("div", {}, h("h3", {}, "Numbers"), pairNumbers(runs)), h("div", {}, h("h3", {}, "Configuration"), pairSettings(runs))),
    h("h3", {}, "Curves"), curves,
    h("h3", {}, "Nearest neighbours of the same queries"), pairSheets(runs));
  if (runs.some((run) => data.curves[run.id])) drawPanels(curves, runs, [...PANELS[0][1].slice(0, 2), ...PANELS[1][1].slice(0, 2)], "pair");
  else curves.replaceChildren(h("p.hint", {}, "The page holds no curves of these two."));
}

function pairNumbers([a, b]) {
  const rows = [];
  for (const [split, title] of [[data.split, ""], ["gap", "gap, "]]) {
    for (const metric of data.names.metrics) {
      const [first, second] = [valueOf(a, split, metric), valueOf(b, split, metric)];
      if (first === null && second === null) continue;
      if (split === "gap" && !data.metrics.some((one) => one.key === metric)) continue;
      const format = split === "gap" ? points : percent;
      rows.push([title + metricTitle(metric), [format(first), "n"], [format(second), "n"], [isNumber(first) && isNumber(second) ? points(second - first) : NOTHING, "n"]]);
    }
  }
  rows.push(["images/s", [whole(a.speed), "n"], [whole(b.speed), "n"], ["", "n"]], ["training", [duration(a.seconds), "n"], [duration(b.seconds), "n"], ["", "n"]]);
  return plainTable("Numbers of two runs", ["%", ["first", "n"], ["second", "n"], ["points", "n"]], rows);
}

/** Groups before the keys below them. */
const byDepth = (a, b) => a.includes(".") - b.includes(".") || (a < b ? -1 : 1);

function pairSettings([a, b]) {
  const [first, second] = [settingsOf(a), settingsOf(b)];
  const rows = [...new Set([...first.keys(), ...second.keys()])].sort(byDepth).filter((key) => first.get(key) !== second.get(key))
    .map((key) => [h("code", {}, key), first.get(key) ?? NOTHING, second.get(key) ?? NOTHING]);
  if (a.seed !== b.seed) rows.unshift([h("code", {}, "seed"), String(a.seed), String(b.seed)]);
  if (a.split !== b.split) rows.unshift(["split (tested on other classes)", a.split.slice(0, 8), b.split.slice(0, 8)]);
  if (a.commit !== b.commit) rows.push(["commit", a.commit?.slice(0, 8), b.commit?.slice(0, 8)]);
  return rows.length ? plainTable("Where the configurations differ", ["key", "first", "second"], rows, "settings") : h("p.hint", {}, "The same in both, but for what does not change training.");
}

function pairSheets(runs) {
  const found = runs.map((run) => data.sheets[run.id]);
  const held = Object.keys(data.sheets).length;
  if (!found[0] && !found[1]) return h("p.hint", {}, held ? `The page holds the sheets of ${count(held, "run")}, the first seeds of every cell and method; these two are not among them.` : "These runs left no retrieval sheet.");
  if (found[0] && found[1] && found[0].split !== found[1].split) return h("p.hint", {}, "They were tested on other classes, so they share no queries.");
  const byQuery = found.map((sheet) => new Map(sheet?.rows.map((row) => [row[0], row])));
  // Sheets of an earlier version may show other queries of the same split.
  const queries = [...byQuery[found[0] ? 0 : 1].keys()].filter((query) => found.every((sheet, i) => !sheet || byQuery[i].has(query)));
  const rows = queries.map((query) => byQuery.map((of) => of.get(query)));
  if (!rows.length) return h("p.hint", {}, "Their sheets show other queries.");
  const differs = ([a, b]) => a && b && a[1].join() !== b[1].join() && a[3].join() !== b[3].join();
  const heads = h("li.heads", { "aria-hidden": "true" }, h("span", {}, "query"), runs.map((run) => h("span", {}, runTitle(run))));
  const list = h("ol.sheet", {}, heads, rows.map((pair) => {
    const [query] = pair.find(Boolean);
    const pictures = data.thumbnails[(found[0] ?? found[1]).manifest];
    return h(`li${differs(pair) ? ".differs" : ""}`, {},
      h("figure.query", {}, picture(pictures, query, "query"), h("figcaption", {}, pictures[query][0])),
      ...pair.map((row, i) => (row
        ? h("div.row", { style: `--method:var(--c${i + 1})` }, row[1].map((image, place) => neighbour(pictures, image, row[2][place], row[3][place])))
        : h("p.hint", {}, "no sheet"))));
  }));
  const box = h("input", { type: "checkbox", checked: pairChoice.onlyDiffering, onchange: () => { pairChoice.onlyDiffering = box.checked; list.classList.toggle("only", box.checked); } });
  list.classList.toggle("only", pairChoice.onlyDiffering);
  return h("div", {}, h("label.check", {}, box, " Only queries on which one is right where the other is wrong"), list);
}

function picture(pictures, row, kind) {
  const [name, jpeg] = pictures[row];
  return h("img", { src: `data:image/jpeg;base64,${jpeg}`, alt: kind === "query" ? `query: ${name}` : name, decoding: "async", width: 56, height: 56 });
}

function neighbour(pictures, row, similarity, isRight) {
  const image = picture(pictures, row, "neighbour");
  image.alt = `${isRight ? "right" : "wrong"}: ${image.alt}`;
  return h(`span.neighbour.${isRight ? "right" : "wrong"}`, { title: `${pictures[row][0]} · similarity ${similarity.toFixed(3)}` }, image, h("i", { "aria-hidden": "true" }, isRight ? "✓" : "✗"));
}
