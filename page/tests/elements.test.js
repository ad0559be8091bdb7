import assert from "node:assert/strict";
import { test } from "node:test";

import { csvField, plural, short } from "../src/elements.js";

test("fields of CSV are quoted where they must be, and never run as formulas", () => {
  assert.equal(csvField("plain"), "plain");
  assert.equal(csvField('a "quoted", name'), '"a ""quoted"", name"');
  assert.equal(csvField("two\nlines"), '"two\nlines"');
  assert.equal(csvField("=HYPERLINK(1)"), "'=HYPERLINK(1)");
  assert.equal(csvField("@x"), "'@x");
  assert.equal(csvField("＝1+1"), "'＝1+1");
  assert.equal(csvField("-1.5"), "-1.5");
  assert.equal(csvField(-1.5), "-1.5");
  assert.equal(csvField(null), "");
});

test("numbers are short, and counted things agree with their number", () => {
  assert.deepEqual([0, 1234.56, 1e-5, 1234567, NaN, null].map(short), ["0", "1235", "1.00e-5", "1.23e+6", "–", "–"]);
  assert.deepEqual([plural(1, "cell"), plural(12345, "cell")], ["1 cell", "12,345 cells"]);
});
