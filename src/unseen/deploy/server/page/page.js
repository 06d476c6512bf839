// What is asked, of which bundles, and what is shown of the answers.

import { byId, count, h, segments, show } from "./elements.js";
import { classFilter } from "./filter.js";
import { arrows, card, judgement, verdict } from "./results.js";

const OFF = "off";
const AT_ONCE = 3;
const state = { about: null, query: null, label: "", k: 24, tap: OFF, seed: 0, answers: null, attention: new Map(), turn: 0, history: [] };

/** The answer as JSON; what the server refuses is thrown as its sentence. */
async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => ({ error: `The server failed (${answer.status}).` }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

const parameters = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined));

/** A question about the query of this moment to one bundle. */
function question(path, side, more = {}) {
  const { query } = state;
  if (query.blob) return ask(`${path}?${parameters({ bundle: side, ...more })}`, { method: "POST", body: query.blob });
  return ask(`${path}?${parameters({ bundle: side, id: query.id, of: query.of, ...more })}`, { method: "POST" });
}

function complain(sentence) {
  byId("problem").textContent = sentence;
  byId("problem").hidden = !sentence;
}

// The query

function searchFile(file) {
  if (!file) return;
  const { bytes } = state.about.limits;
  if (file.size > bytes) return complain(`'${file.name}' has ${(file.size / 1e6).toFixed(1)} MB; at most ${bytes / 1e6} MB are taken.`);
  search({ blob: file, name: file.name, address: URL.createObjectURL(file) });
}

const searchImage = (one, of) => search({ id: one.id, of, label: one.label, name: one.name, address: `image/${one.id}?bundle=${of}` });

/** Ask all bundles, and show what they say together. */
async function search(query, { isNew = true, focus = null } = {}) {
  const former = state.query;
  state.query = query;
  const turn = ++state.turn;
  complain("");
  byId("found").setAttribute("aria-busy", "true");
  document.body.classList.add("busy");
  try {
    const k = state.k;
    const answers = await Promise.all(state.about.bundles.map((_, side) => question("search", side, { k, label: state.label })));
    if (turn !== state.turn) return;
    if (answers.some((answer, side) => answer.version !== state.about.bundles[side].version)) await drawAbout();
    if (turn !== state.turn) return;
    state.answers = answers;
    if (isNew) remember(query);
    if (query !== former) state.attention = new Map();
    draw(focus);
  } catch (error) {
    if (turn !== state.turn) return;
    state.query = former;
    complain(error.message);
  } finally {
    if (turn === state.turn) {
      byId("found").removeAttribute("aria-busy");
      document.body.classList.remove("busy");
    }
  }
}

const again = () => state.query && search(state.query, { isNew: false });

/** So that the browser's Back leads to the query before. */
function remember(query) {
  state.history.push(query);
  history.pushState({ place: state.history.length - 1 }, "");
}

window.addEventListener("popstate", (event) => {
  const query = state.history[event.state?.place];
  if (query) return search(query, { isNew: false });
  state.query = state.answers = null;
  state.turn++;
  drawQuery();
  byId("found").hidden = true;
});

// Drawing

function draw(focus) {
  drawQuery();
  byId("found").hidden = false;
  // Who has gone on to the filter meanwhile stays there.
  const isElsewhere = document.activeElement !== document.body && !byId("results").contains(document.activeElement);
  const places = state.answers.map((answer) => new Map(answer.neighbours.map((one, place) => [one.file, place + 1])));
  show(byId("results"), state.answers.map((answer, side) => drawSide(answer, side, places.length === 2 ? places[1 - side] : null)));
  byId("status").textContent = `${count(state.answers[0].neighbours.length, "neighbour")} found.`;
  drawAttention();
  const list = byId("results").querySelectorAll(".grid")[focus ?? -1];
  if (list && !isElsewhere) list.querySelector(".card")?.focus({ preventScroll: true });
  if (byId("drop").getBoundingClientRect().top < 0) window.scrollTo({ top: 0 });
}

function drawSide(answer, side, elsewhere) {
  const bundle = state.about.bundles[side];
  const found = answer.neighbours;
  const open = (one) => search({ id: one.id, of: side, label: one.label, name: one.name, address: `image/${one.id}?bundle=${side}` }, { focus: side });
  const list = h("ol.grid", { "aria-label": `Neighbours by ${bundle.name}` }, found.map((one, place) => card(one, place, { query: state.query, side, elsewhere: elsewhere?.get(one.file), threshold: answer.thresholds?.same.threshold, open })));
  arrows(list);
  const common = elsewhere && found.filter((one) => elsewhere.has(one.file)).length;
  return h(`div.side.side${side}`, {},
    elsewhere && h("h3", {}, bundle.name, h("small", {}, worth(bundle).join(" · "))),
    h("p.verdict", {}, verdict(state.query, state.label, found), elsewhere && h("small", {}, ` ${common} ${common === 1 ? "is" : "are"} on both sides.`)),
    judgement(answer) ?? h("div"),
    list);
}

function drawQuery() {
  const { query } = state;
  const picture = byId("query");
  picture.hidden = !query;
  byId("drop").classList.toggle("filled", Boolean(query));
  byId("ask").classList.toggle("fresh", !query);
  if (!query) {
    byId("title").textContent = "Search by image";
    byId("lede").hidden = false;
    return;
  }
  picture.src = query.address;
  picture.alt = `The query: ${query.label || query.name}`;
  byId("title").textContent = query.label ? `Images like this ${query.label}` : "Images like yours";
  byId("lede").hidden = true;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function worth(bundle) {
  const recall = bundle.facts.metrics?.unseen?.recall_at_1;
  return [bundle.facts.backbone, bundle.facts.loss, Number.isFinite(recall) && `Recall@1 ${percent(recall)} on unseen classes`].filter(Boolean);
}

function drawFacts() {
  const [first, ...others] = state.about.bundles;
  const size = `${count(first.images, "image")}${first.classes.length ? ` of ${count(first.classes.length, "class", "classes")}` : ""}`;
  show(byId("facts"), h("span", {}, size), others.length ? h("span", {}, "two bundles side by side") : worth(first).map((fact) => h("span", {}, fact)));
}

// Attention

/** Pictures of each tap for an image of the gallery, or for the query (null), as one bundle sees it; asked once. */
function attentionOf(side, id) {
  const key = `${side} ${id}`;
  if (!state.attention.has(key)) {
    const answer = id === null ? question("attention", side) : ask(`attention?${parameters({ bundle: side, id })}`, { method: "POST" });
    answer.catch(() => state.attention.delete(key));
    state.attention.set(key, answer.then(({ taps }) => taps));
  }
  return state.attention.get(key);
}

async function drawAttention() {
  const { turn, tap } = state;
  const cards = [...byId("results").querySelectorAll(".grid")].flatMap((list, side) => [...list.querySelectorAll(".card")].map((one) => ({ one, side })));
  for (const { one, side } of cards) {
    one.peak.hidden = true;
    one.picture.src = `image/${one.neighbour.id}?bundle=${side}`;
  }
  if (state.query) byId("query").src = state.query.address;
  if (tap === OFF || !state.query) return;
  const isStale = () => turn !== state.turn || tap !== state.tap;
  const seeing = state.about.bundles.findIndex((bundle) => bundle.taps.length > tap);
  const waiting = cards.filter(({ side }) => state.about.bundles[side].taps.length > tap);
  const worker = async () => {
    for (let next = waiting.shift(); next && !isStale(); next = waiting.shift()) {
      const taps = await attentionOf(next.side, next.one.neighbour.id);
      if (isStale()) return;
      next.one.picture.src = taps[tap].overlay;
      next.one.peak.textContent = `peak ${taps[tap].peak.toFixed(1)}×`;
      next.one.peak.hidden = false;
    }
  };
  try {
    const taps = await attentionOf(seeing, null);
    if (isStale()) return;
    byId("query").src = taps[tap].overlay;
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
  } catch (error) {
    if (!isStale()) complain(error.message);
  }
}

function attentionChoices() {
  const seeing = state.about.bundles.filter((bundle) => bundle.taps.length);
  if (!seeing.length) return;
  const most = Math.max(...seeing.map((bundle) => bundle.taps.length));
  const title = (tap) => {
    const names = new Set(seeing.map((bundle) => bundle.taps[tap]).filter(Boolean));
    return names.size === 1 ? [...names][0] : `tap ${tap + 1}`;
  };
  const choices = [[OFF, "Off"], ...Array.from({ length: most }, (_, tap) => [tap, title(tap)])];
  const choose = (tap) => {
    state.tap = tap;
    drawAttention();
  };
  segments(byId("taps"), "tap", choices, state.tap, choose);
  byId("attention").hidden = false;
  onKey("a", () => {
    const next = choices[(choices.findIndex(([value]) => value === state.tap) + 1) % choices.length][0];
    byId("taps").querySelector(`input[value="${next}"]`).checked = true;
    choose(next);
  });
}

// Examples

async function drawExamples() {
  const { images } = await ask(`examples?${parameters({ count: 24, seed: state.seed, label: state.label })}`);
  show(byId("examples"), images.map((one) =>
    h("li", {},
      h("button.example", { type: "button", title: one.label || one.name, "aria-label": `Search with ${one.label || one.name}`, onclick: () => searchImage(one, 0) },
        h("img", { src: `image/${one.id}?bundle=0`, alt: "", draggable: false })))));
}

// What a hand does

const isTyping = (element) => element.matches("input:not([type=radio]), select, textarea");

function onKey(key, act) {
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== key || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    event.preventDefault();
    act();
  });
}

function dropping() {
  let depth = 0;
  const over = (isOver) => (byId("over").hidden = !isOver);
  const carries = (event) => event.dataTransfer && [...event.dataTransfer.types].some((type) => type === "Files" || type === "text/uri-list");
  document.addEventListener("dragenter", (event) => carries(event) && (depth++, over(true)));
  document.addEventListener("dragleave", (event) => carries(event) && --depth <= 0 && ((depth = 0), over(false)));
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    over(false);
    if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
    else complain("That is an address. Save the image, and drop its file.");
  });
}

function listen() {
  dropping();
  byId("file").addEventListener("change", (event) => {
    searchFile(event.target.files[0]);
    event.target.value = ""; // the same file again is a search too
  });
  byId("drop").addEventListener("click", (event) => event.target.closest(".choose") || byId("file").click());
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) searchFile(file);
    else if (!isTyping(event.target)) complain("There is no image in the clipboard.");
  });
  byId("others").addEventListener("click", () => {
    state.seed++;
    drawExamples().catch((error) => complain(error.message));
  });
  onKey("/", () => !byId("found").hidden && byId("filter").focus());
}

/** What is served; asked again when images came or went. */
async function drawAbout() {
  state.about = await ask("about");
  drawFacts();
  document.querySelector(".filter").hidden = !state.about.bundles[0].classes.length;
}

async function start() {
  await drawAbout();
  state.k = state.about.k;
  const counts = [...new Set([12, 24, 48, 96, state.k])].filter((k) => k <= state.about.limits.k).sort((a, b) => a - b);
  const select = byId("count");
  show(select, counts.map((k) => h("option", { value: k, selected: k === state.k }, k)));
  select.addEventListener("change", () => {
    state.k = Number(select.value);
    again();
  });
  classFilter(() => state.about.bundles[0].classes, (label) => {
    state.label = label;
    again();
  });
  attentionChoices();
  listen();
  await drawExamples();
}

start()
  .catch((error) => complain(error.message))
  .finally(() => (document.documentElement.dataset.ready = ""));
