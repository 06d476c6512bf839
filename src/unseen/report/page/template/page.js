"use strict";
// Puts the page together.

function drawAll() {
  drawSummary();
  drawDifferences();
  drawMethods();
  drawClasses();
}

const THEMES = [["auto", "Auto", "as the system says"], ["light", "Light", "light"], ["dark", "Dark", "dark"]];

function useTheme(name) {
  const [, title, words] = THEMES.find(([one]) => one === name) ?? THEMES[0];
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = title;
  byId("theme").setAttribute("aria-label", `Colours: ${words}`);
  try {
    localStorage.setItem("unseen-theme", name);
  } catch { /* a browser may keep nothing for files */ }
}

function rememberedTheme() {
  try {
    return localStorage.getItem("unseen-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

byId("theme").addEventListener("click", () => {
  const place = THEMES.findIndex(([name]) => name === document.documentElement.dataset.theme);
  useTheme(THEMES[(place + 1) % THEMES.length][0]);
});
byId("dialog").addEventListener("click", (event) => { if (event.target === byId("dialog")) byId("dialog").close(); });

useTheme(rememberedTheme());
document.title = `${data.compare}: ${data.methods.join(", ")} · unseen`;
segments("metric", "metric", data.metrics.map((one) => [one.key, one.title]), state.metric, (key) => { state.metric = key; drawAll(); });
segments("over", "over", [["seeds", "over seeds"], ["classes", "over test classes"]], "seeds", (value) => { intervalOver = value; drawDifferences(); });
byId("foot").textContent = `Written ${data.written.replace("T", " ").replace("+00:00", " UTC")} by unseen ${data.version}, from the records of ${count(data.runs.length, "run")}. This file holds everything; it asks no network.`;
drawAll();
drawRuns();
drawCurves();
drawPair();
drawGrid();
document.documentElement.dataset.ready = "true";
