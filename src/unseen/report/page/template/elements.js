"use strict";
// Elements without markup in strings: whatever a name holds, it is shown and never run.

const byId = (id) => document.getElementById(id);

function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "style" && key !== "list") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const show = (id, ...children) => byId(id).replaceChildren(...children.flat().filter(Boolean));

/** One of a few choices, as radio buttons that look like one control. */
function segments(id, name, choices, chosen, whenChosen) {
  show(id, choices.map(([value, title]) =>
    h("label", {},
      h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => whenChosen(value) }),
      h("span", {}, title))));
}

/** A labelled list to choose from; choices are `[value, title]`. */
function selection(label, choices, chosen, whenChosen) {
  const select = h("select", { onchange: () => whenChosen(select.value) },
    choices.map(([value, title]) => h("option", { value, selected: value === chosen }, title)));
  const field = h("label.field", {}, h("span", {}, label), select);
  field.select = select;
  return field;
}

const VERDICTS = {
  better: ["▲", "better"],
  worse: ["▼", "worse"],
  equivalent: ["=", "equivalent"],
  "cannot tell": ["?", "cannot tell"],
};

function chip(verdict) {
  const [mark, words] = VERDICTS[verdict];
  return h(`span.chip.${verdict.replace(" ", "-")}`, {}, h("span", { "aria-hidden": "true" }, mark), ` ${words}`);
}

/** A mean and its interval on a common scale from -reach to reach, with the margin shaded. */
function dotAndInterval(mean, interval, reach, method) {
  const place = (value) => `${Math.max(0, Math.min(100, 50 + (50 * value) / reach))}%`;
  const between = (low, high) => `left:${place(low)};right:calc(100% - ${place(high)})`;
  return h("div.strip", { "aria-hidden": "true", style: `--method:${colorOf(method)}` },
    h("span.margin", { style: between(-data.margin, data.margin) }),
    h("span.zero"),
    interval && h("span.line", { style: between(interval[0], interval[1]) }),
    isNumber(mean) && h("span.dot", { style: `left:${place(mean)}` }));
}

/** A line of code with a button that copies it. */
function copyable(text, label = "Copy the command") {
  const button = h("button.copy", { type: "button", "aria-label": label, onclick: () => copy(text, button) }, "Copy");
  return h("div.code", {}, h("code", {}, text), button);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission: as browsers did it before
    const area = h("textarea", { value: text, style: "position:fixed;opacity:0" });
    button.parentElement.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

/** A plain table; a cell is text, an element, or `[text, class]`. */
function plainTable(caption, heads, rows, kind = "") {
  const cell = (tag, content) => (Array.isArray(content) ? h(`${tag}.${content[1]}`, {}, content[0]) : h(tag, {}, content ?? NOTHING));
  return h("div.scroll", { tabIndex: 0, role: "region", "aria-label": caption },
    h(`table.plain${kind && `.${kind}`}`, {},
      h("caption.hidden", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => cell("th", head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((content, i) => cell(i ? "td" : "th", content)))))));
}
