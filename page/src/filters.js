// Filters: which values of a column are shown. A filter is { hidden: Set of codes } or, of numbers, { low, high }.

// Uint8Array by code: 1 where it is shown.
export function allowedCodes(column, filter) {
  const allowed = new Uint8Array(column.missing + 1).fill(1);
  if (filter.hidden) {
    for (const code of filter.hidden) allowed[code] = 0;
    return allowed;
  }
  for (let code = 0; code < column.missing; code++) {
    const value = toValue(column, code);
    allowed[code] = value >= filter.low && value <= filter.high ? 1 : 0;
  }
  allowed[column.missing] = 0;
  return allowed;
}

// The number that a code stands for.
export const toValue = (column, code) => column.low + (code * (column.high - column.low)) / 65534;

// A condition for the server, in the language of --where.
export function toCondition(column, filter) {
  const name = `\`${column.name}\``;
  // half a step on both sides: codes are rounded, and the same cells must be chosen here and there
  if (!filter.hidden) {
    const half = (column.high - column.low) / 65534 / 2;
    const shown = [...Array(column.missing).keys()].filter((code) => allowedBetween(column, filter, code));
    if (!shown.length) return `${name} > ${column.high} and ${name} < ${column.low}`;
    const [low, high] = [toValue(column, shown[0]) - half, toValue(column, shown.at(-1)) + half];
    return `${name} >= ${low} and ${name} <= ${high}`;
  }
  const withoutMissing = filter.hidden.has(column.missing);
  const [shown, hidden] = [false, true].map((is) => column.literals.filter((_, code) => filter.hidden.has(code) === is));
  if (hidden.length < shown.length) { // the shorter list: the server takes conditions of a bounded length
    const others = `~${name}.isin([${hidden.join(", ")}])`;
    return withoutMissing ? `${others} & ${name}.notna()` : others;
  }
  const known = `${name}.isin([${shown.join(", ")}])`;
  return withoutMissing ? known : `${known} | ${name}.isna()`;
}

const allowedBetween = (column, filter, code) =>
  toValue(column, code) >= filter.low && toValue(column, code) <= filter.high;

// Filters as short text for a link: codes that are hidden (or, with ~, shown), or low:high.
export function toText(column, filter) {
  if (!filter.hidden) return `${short(filter.low)}:${short(filter.high)}`;
  const all = [...column.categories.keys(), column.missing];
  const shown = all.filter((code) => !filter.hidden.has(code));
  return shown.length < filter.hidden.size ? `~${shown.join(".")}` : [...filter.hidden].join(".");
}

const short = (value) => Number(value.toPrecision(8));

// The filter of such a text; null if it hides nothing or is none.
export function fromText(column, text) {
  if (column.kind === "numbers") {
    const [low, high] = text.split(":").map(Number);
    return Number.isFinite(low) && Number.isFinite(high) ? { low, high } : null;
  }
  const all = [...column.categories.keys(), column.missing];
  const codes = new Set(text.replace("~", "").split(".").filter(Boolean).map(Number));
  const hidden = text.startsWith("~") ? all.filter((code) => !codes.has(code)) : all.filter((code) => codes.has(code));
  return hidden.length ? { hidden: new Set(hidden) } : null;
}
