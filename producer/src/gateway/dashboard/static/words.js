// Numbers as people read them.

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** Seconds in their largest unit, or a dash. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const [unit, size] = UNITS.find(([, size]) => seconds >= size) ?? ["s", 1];
  return `${(seconds / size).toFixed(seconds / size < 10 && size > 1 ? 1 : 0)} ${unit}`;
}

export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString("en");
}

export function rate(number) {
  return number === null || number === undefined ? "–" : `${number < 10 ? number.toFixed(1) : count(Math.round(number))}/s`;
}

export function time(text) {
  return text ? new Date(text).toLocaleString() : "–";
}
