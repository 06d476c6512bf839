"use strict";
// Numbers as text. Shares are shown in percent, their differences in points.

const NOTHING = "–";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const minus = (text) => text.replace("-", "−");
const percent = (value, digits = 1) => (isNumber(value) ? minus((100 * value).toFixed(digits)) : NOTHING);

function points(value, digits = 1) {
  if (!isNumber(value)) return NOTHING;
  const text = (100 * value).toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : (value > 0 ? "+" : "") + minus(text);
}

const range = (interval) => (interval ? `${points(interval[0])} to ${points(interval[1])}` : "no interval");
const half = (interval) => (interval ? (interval[1] - interval[0]) / 2 : null);

function duration(seconds) {
  if (!isNumber(seconds)) return NOTHING;
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  if (seconds < 3600) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const bytes = (value) => (isNumber(value) ? `${(value / 2 ** 30).toFixed(2)} GiB` : NOTHING);
const millions = (value) => (isNumber(value) ? `${(value / 1e6).toFixed(2)} M` : NOTHING);
const whole = (value) => (isNumber(value) ? value.toFixed(0) : NOTHING);
const probability = (value) => (isNumber(value) ? (value < 0.001 ? "< 0.001" : value.toPrecision(2)) : NOTHING);
const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** A headline names a few; the rows below name all. */
const shortened = (words) => (words.length > 4 ? [...words.slice(0, 3), `${words.length - 3} more`] : words);

function listed(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
