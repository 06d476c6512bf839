// Elements without markup in strings: whatever a name holds, it is shown and never run.

export const byId = (id) => document.getElementById(id);

export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) element.style.setProperty(key, value); // the policy forbids style attributes
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const show = (element, ...children) => element.replaceChildren(...children.flat().filter(Boolean));

export const count = (number, noun, plural = `${noun}s`) => `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;

/** One of a few choices, as radio buttons that look like one control. */
export function segments(element, name, choices, chosen, whenChosen) {
  show(element, choices.map(([value, title]) =>
    h("label", {},
      h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => whenChosen(value) }),
      h("span", {}, title))));
}
