import assert from "node:assert/strict";
import { test } from "node:test";

import { allowedCodes, fromText, toCondition, toText, toValue } from "../src/filters.js";

const TYPES = { name: "cell type", kind: "categories", missing: 255, categories: ["B", "T", "it's"], literals: ["'B'", "'T'", '"it\'s"'] };
const NUMBERS = { name: "n_genes", kind: "numbers", missing: 65535, low: -1, high: 9 };

test("hidden categories are not shown, and the server is asked for the others", () => {
  const filter = { hidden: new Set([0, 255]) };
  const allowed = allowedCodes(TYPES, filter);
  assert.deepEqual([0, 1, 2, 255].map((code) => allowed[code]), [0, 1, 1, 0]);
  assert.equal(toCondition(TYPES, filter), "~`cell type`.isin(['B']) & `cell type`.notna()");
  assert.equal(toCondition(TYPES, { hidden: new Set([0]) }), "~`cell type`.isin(['B'])");
  assert.equal(toCondition(TYPES, { hidden: new Set([0, 1]) }), "`cell type`.isin([\"it's\"]) | `cell type`.isna()");
  assert.equal(toCondition(TYPES, { hidden: new Set([0, 1, 255]) }), "`cell type`.isin([\"it's\"])");
});

test("a range of numbers shows the codes in it, and never a missing value", () => {
  const filter = { low: 0, high: 4 };
  const allowed = allowedCodes(NUMBERS, filter);
  const shown = [...allowed.keys()].filter((code) => allowed[code]).map((code) => toValue(NUMBERS, code));
  assert.ok(Math.min(...shown.slice(0, 1)) >= 0 && shown.at(-1) <= 4);
  assert.ok(Math.abs(shown.length / 65535 - 0.4) < 0.001);
  assert.equal(allowed[65535], 0);
});

test("the condition of a range chooses the same cells as the codes, which are rounded", () => {
  const filter = { low: 0.0004, high: 3.3333 };
  const allowed = allowedCodes(NUMBERS, filter);
  const [, low, high] = toCondition(NUMBERS, filter).match(/>= (\S+) and .* <= (\S+)/).map(Number);
  for (let k = 0; k < 100_000; k++) {
    const value = -1 + 10 * Math.random();
    const code = Math.round(((value + 1) / 10) * 65534);
    assert.equal(Boolean(allowed[code]), value >= low && value <= high, `${value}`);
  }
});

test("a range without any number is a condition that no cell meets", () => {
  assert.equal(toCondition(NUMBERS, { low: 20, high: 30 }), "`n_genes` > 9 and `n_genes` < -1");
});

test("a link holds every filter, the shorter of what is shown and what is hidden", () => {
  for (const hidden of [[0], [0, 1, 255], [2, 255], [0, 1, 2, 255]]) {
    const text = toText(TYPES, { hidden: new Set(hidden) });
    assert.deepEqual([...fromText(TYPES, text).hidden].sort((a, b) => a - b), hidden);
  }
  assert.equal(toText(TYPES, { hidden: new Set([0, 1, 255]) }), "~2");
  assert.deepEqual(fromText(NUMBERS, toText(NUMBERS, { low: -0.25, high: 3 })), { low: -0.25, high: 3 });
  assert.equal(fromText(NUMBERS, "what"), null);
  assert.equal(fromText(TYPES, "99"), null);
});
