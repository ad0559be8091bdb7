// The view as the part of the address after #, so that a link holds it.

export function readLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const numbers = (text) => {
    const values = text ? text.split(",").map(Number) : [];
    return values.every(Number.isFinite) ? values : [];
  };
  const lasso = numbers(parts.get("lasso"));
  const filters = {};
  for (const [name, value] of parts) {
    if (name.startsWith("only.")) filters[name.slice(5)] = value;
  }
  return {
    at: numbers(parts.get("at")),
    column: parts.get("column"),
    gene: parts.get("gene"),
    filters,
    lasso: lasso.length >= 6 && lasso.length % 2 === 0 ? lasso : [],
    labels: parts.get("labels") !== "off",
    theme: ["light", "dark"].includes(parts.get("theme")) ? parts.get("theme") : null,
  };
}

export function writeLink({ at, column, gene, filters, lasso, labels, theme }) {
  const parts = new URLSearchParams();
  if (at) parts.set("at", at.map((value) => Number(value.toPrecision(6))).join(","));
  if (gene) parts.set("gene", gene);
  else if (column) parts.set("column", column);
  for (const [name, text] of Object.entries(filters)) parts.set(`only.${name}`, text);
  if (lasso.length) parts.set("lasso", lasso.join(","));
  if (!labels) parts.set("labels", "off");
  if (theme) parts.set("theme", theme);
  const hash = `#${parts.toString().replaceAll("%2C", ",")}`;
  if (hash !== location.hash) history.replaceState(null, "", hash);
}
