"use strict";
// The data of the page, and what is looked up in it.

const data = JSON.parse(document.getElementById("content").textContent);
const compared = data.runs.filter((run) => run.cell !== null);
const state = { metric: data.metrics[0].key };
const whenMetricChanges = [];

const metricTitle = (key) => data.titles.metrics[key] ?? data.metrics.find((one) => one.key === key)?.title ?? key;
const others = data.methods.filter((method) => method !== data.reference);
const cellNames = data.cells.map((cell) => cell.name);
const resultsOf = (metric) => data.results.filter((one) => one.metric === metric);
const differencesOf = (metric) => data.differences.filter((one) => one.metric === metric);

/** The value of a run, or null. */
function valueOf(run, split, metric) {
  const values = run.values[data.names.splits.indexOf(split)];
  return values?.[data.names.metrics.indexOf(metric)] ?? null;
}

/** Group → choice and dotted key → value of a run. */
function settingsOf(run) {
  const found = new Map();
  for (let i = 0; i < run.settings.length; i += 2) {
    found.set(data.names.keys[run.settings[i]], data.names.values[run.settings[i + 1]]);
  }
  return found;
}

/** Of a generalisation gap, less is better. */
const sign = data.split.endsWith("gap") ? -1 : 1;

/** Methods by their mean difference, the most improved first. */
const mostChanged = () => others.map((method) => standing(method, state.metric)).filter(Boolean).sort((a, b) => sign * (b.mean - a.mean)).map((one) => one.method);

/** What stands for a method over all cells: where there is one cell, the seeds in it; else the cells. */
function standing(method, metric) {
  const mine = differencesOf(metric).filter((one) => one.method === method);
  if (!mine.length) return null;
  const pairs = mine.reduce((sum, one) => sum + one.seeds.length, 0);
  if (mine.length === 1) {
    const [one] = mine;
    return { method, mean: one.mean, interval: one.interval, verdict: one.verdict, pairs, cells: 1, one };
  }
  const all = data.overall.find((one) => one.method === method && one.metric === metric);
  return all ? { method, mean: all.mean, interval: all.interval, verdict: all.verdict, pairs, cells: all.cells, all } : null;
}
