// A class to choose by typing some letters of its name.

import { byId, count, h, show } from "./elements.js";

const SHOWN = 50;

/** `classes()` gives those of this moment. Returns a function that sets the class without telling `whenChosen`. */
export function classFilter(classes, whenChosen) {
  const input = byId("filter");
  const options = byId("options");
  let chosen = "";
  let active = -1;

  const matching = () => {
    const text = input.value.trim().toLowerCase();
    if (!text || input.value === chosen) return classes();
    const found = classes().filter((one) => one.label.toLowerCase().includes(text));
    return found.sort((a, b) => a.label.toLowerCase().indexOf(text) - b.label.toLowerCase().indexOf(text));
  };

  function open() {
    const found = matching();
    active = input.value && input.value !== chosen && found.length ? 0 : -1;
    show(options,
      found.slice(0, SHOWN).map((one, place) =>
        h("li", { id: `option-${place}`, role: "option", "aria-selected": "false", onmousedown: (event) => event.preventDefault(), onclick: () => choose(one.label) },
          h("span", {}, one.label), h("small", {}, one.images.toLocaleString("en")))),
      found.length === 0 && h("li.none", {}, "No class has this in its name."),
      found.length > SHOWN && h("li.none", {}, `${count(found.length - SHOWN, "more class", "more classes")}: type to find one.`));
    options.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark();
  }

  function close() {
    options.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark() {
    const items = options.querySelectorAll("[role=option]");
    items.forEach((item, place) => item.setAttribute("aria-selected", String(place === active)));
    if (active < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", `option-${active}`);
    items[active].scrollIntoView({ block: "nearest" });
  }

  function set(label) {
    chosen = input.value = label;
    close();
  }

  function choose(label) {
    const isNew = label !== chosen;
    set(label);
    if (isNew) whenChosen(label);
  }

  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", open);
  input.addEventListener("input", () => (input.value ? open() : choose("")));
  input.addEventListener("blur", () => set(chosen));
  input.addEventListener("keydown", (event) => {
    const many = options.querySelectorAll("[role=option]").length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (options.hidden) open();
      else if (many) active = (active + (event.key === "ArrowDown" ? 1 : active < 0 ? 0 : -1) + many) % many;
      mark();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (active >= 0) options.children[active].click();
      else if (!input.value) choose("");
    } else if (event.key === "Escape") {
      if (options.hidden) choose("");
      else set(chosen);
      event.preventDefault();
    }
  });
  return set;
}
