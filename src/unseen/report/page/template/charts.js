"use strict";
// Charts are Vega-Lite specifications in the page's own colours, as variables of its style: they follow dark
// mode and paper without being drawn again.

const COLORS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const SHAPES = ["circle", "diamond", "square", "triangle-up", "triangle-down", "cross", "triangle-right"];
const colorOf = (method) => {
  const place = others.indexOf(method);
  return place < 0 ? "var(--reference)" : `var(${COLORS[place % COLORS.length]})`;
};
// Shifted where the colours begin again, so that no two of 49 look alike.
const shapeOf = (i) => SHAPES[(i + Math.floor(i / SHAPES.length)) % SHAPES.length];
// A line has no shape: where the colours begin again it is dashed, then dotted.
const DASHES = [["solid", [1, 0]], ["dashed", [7, 3]], ["dotted", [2, 2.5]]];
const dashOf = (method) => DASHES[Math.floor(Math.max(others.indexOf(method), 0) / COLORS.length) % DASHES.length];
const methodColor = { scale: { domain: data.methods, range: data.methods.map(colorOf) } };
const methodDash = { scale: { domain: data.methods, range: data.methods.map((method) => dashOf(method)[1]) } };
const methodShape = { scale: { domain: data.methods, range: data.methods.map((_, i) => shapeOf(i)) } };

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const CONFIG = {
  background: null,
  font: FONT,
  view: { stroke: null },
  axis: {
    labelColor: "var(--soft)", titleColor: "var(--soft)", titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 12,
    gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)", titlePadding: 8,
  },
  legend: { labelColor: "var(--ink)", labelFontSize: 12.5, title: null, orient: "top", symbolStrokeWidth: 2, symbolOpacity: 1, labelLimit: 240 },
  title: { color: "var(--ink)", fontSize: 13, fontWeight: 600, anchor: "start", offset: 10 },
  header: { labelColor: "var(--ink)" },
  rule: { color: "var(--soft)" },
  text: { color: "var(--soft)", fontSize: 12 },
};

/** Draw a specification into an element, with words for those who do not see it. */
async function draw(element, spec, words) {
  element.view?.finalize();
  const place = h("div.vega", { role: "img", "aria-label": words });
  const save = h("button.quiet.save", { type: "button", "aria-label": `Save as SVG: ${words}`, onclick: () => saveSvg(element.view, words) }, "SVG");
  element.replaceChildren(place, save);
  const full = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", autosize: { type: "fit-x", contains: "padding" }, ...spec, config: CONFIG };
  const { view } = await vegaEmbed(place, full, { renderer: "svg", actions: false, ast: true, tooltip: { theme: "page" }, logLevel: vega.Error });
  // The drawing's own words would be read out a second time.
  place.querySelector("svg")?.setAttribute("aria-hidden", "true");
  element.view = view;
}

async function saveSvg(view, words) {
  const style = getComputedStyle(document.documentElement);
  const text = (await view.toSVG()).replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })), download: `${words.slice(0, 60).replace(/\W+/g, "_")}.svg` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The keys of methods, for charts of lines that share one legend. */
const legendOf = (methods) => h("p.legend", {}, methods.map((method) => h("span.keyed", {}, h("span.key.line", { style: `--method:${colorOf(method)};border-top-style:${dashOf(method)[0]}` }), method)));

/** The value below which a share of the values lies. */
function quantile(values, share) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.round(share * (sorted.length - 1))] : 0;
}

const isNarrow = () => window.innerWidth < 640;
