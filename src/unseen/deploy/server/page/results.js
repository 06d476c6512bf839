// Neighbours as cards: similarity, class, whether it is the query's, and the keys that move between them.

import { count, h } from "./elements.js";

/** What one bundle found, in words. */
export function verdict(query, label, found) {
  const of = (number) => `${number} of ${found.length}`;
  if (!found.length) return ["There are no neighbours."];
  if (label) return [`The most similar of class `, h("b", {}, label), "."];
  if (query?.label) {
    const same = found.filter((one) => one.label === query.label).length;
    return [`${of(same)} ${found.length === 1 ? "is" : "are"} of its class, `, h("b", {}, query.label), "."];
  }
  const votes = new Map();
  for (const one of found) if (one.label) votes.set(one.label, (votes.get(one.label) ?? 0) + 1);
  if (!votes.size) return [`${count(found.length, "neighbour")}, the nearest at ${found[0].similarity.toFixed(2)}.`];
  const [first, most] = [...votes].sort((a, b) => b[1] - a[1])[0];
  if (most > found.length / 2) return [`Looks like `, h("b", {}, first), `: ${of(most)}.`];
  return [`Of ${count(votes.size, "class", "classes")}; most often `, h("b", {}, first), `: ${of(most)}.`];
}

const share = (value) => `${(100 * value).toFixed(value && (value < 0.01 || value > 0.99) ? 1 : 0)} %`;

/** Whether the query is of a class of the gallery, and how many neighbours count as its class; below, how often that errs. */
export function judgement({ thresholds, is_known: isKnown, neighbours }) {
  if (!thresholds || !neighbours.length) return null;
  const { same, known } = thresholds;
  const alike = neighbours.filter((one) => one.is_same).length;
  const reaches = isKnown ? "reaches" : "does not reach";
  return h("details.judgement", { open: matchMedia("(min-width: 641px)").matches },
    h("summary", {},
      isKnown !== null && [h(`b${isKnown ? "" : ".unknown"}`, {}, isKnown ? "Known" : "Unknown"), " · "],
      `${alike} of ${neighbours.length} ${alike === 1 ? "counts" : "count"} as the same class`),
    isKnown !== null && h("p", {}, `The nearest image, at ${neighbours[0].similarity.toFixed(2)}, ${reaches} ${known.threshold.toFixed(2)}; of images of unknown classes ${share(1 - known.unknown_rejected)} do, of known ones ${share(known.known_found)} with the right class nearest.`),
    h("p", {}, `Two images count as the same class from ${same.threshold.toFixed(2)} on; ${share(same.false_accepts)} of pairs of different classes reach that, ${share(same.false_rejects)} of pairs of one class do not.`));
}

/** One neighbour; `elsewhere` is its place with the other bundle, if that found it too. */
export function card(one, place, { query, side, elsewhere, threshold, open }) {
  const isRight = query?.label && one.label ? one.label === query.label : null;
  const words = [
    `${place + 1}: ${one.label || one.name}`,
    `similarity ${one.similarity.toFixed(2)}`,
    one.is_same !== null && (one.is_same ? "counts as the same class" : "too little for the same class"),
    isRight !== null && (isRight ? "same class" : "another class"),
    elsewhere && `place ${elsewhere} on the other side`,
  ].filter(Boolean).join(", ");
  const image = h("img", { src: `image/${one.id}?bundle=${side}`, alt: "", draggable: false, loading: place < 12 ? "eager" : "lazy", onerror: () => button.classList.add("gone") });
  const button = h(`button.card${isRight === null ? "" : isRight ? ".right" : ".wrong"}`, { type: "button", tabIndex: place ? -1 : 0, title: one.name, "aria-label": words, onclick: () => open(one) },
    h("span.frame", {},
      image,
      isRight !== null && h("i.mark", { "aria-hidden": "true" }, isRight ? "✓" : "✗"),
      elsewhere && h("i.elsewhere", { "aria-hidden": "true" }, `⇄ ${elsewhere}`),
      h("i.peak", { "aria-hidden": "true", hidden: true })),
    h("span.name", {}, one.label || one.name),
    h(`span.similarity${one.is_same === false ? ".below" : ""}`, { "aria-hidden": "true" },
      h("span.meter", { "--share": Math.max(0, Math.min(1, one.similarity)) },
        threshold !== undefined && h("i.threshold", { "--share": Math.max(0, Math.min(1, threshold)) })),
      h("span", {}, one.similarity.toFixed(2).replace("-", "−"))));
  button.picture = image;
  button.peak = button.querySelector(".peak");
  button.neighbour = one;
  return h("li", {}, button);
}

/** Arrows move within a grid; one card of each is in the order of Tab. */
export function arrows(list) {
  const move = (cards, to) => {
    cards.forEach((one, place) => (one.tabIndex = place === to ? 0 : -1));
    cards[to].focus();
  };
  list.addEventListener("keydown", (event) => {
    const cards = [...list.querySelectorAll(".card")];
    const from = cards.indexOf(document.activeElement);
    if (from < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const top = cards[0].offsetTop;
    const columns = cards.findIndex((one) => one.offsetTop > top + 2);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns < 0 ? cards.length : columns, ArrowUp: columns < 0 ? -cards.length : -columns }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? cards.length - 1 : step && from + step;
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to < cards.length) move(cards, to);
  });
}
