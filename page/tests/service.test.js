import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Refused, Service } from "../src/service.js";

let answers, asked, away;
const answer = (status, body, headers = {}) => () => new Response(body, { status, headers });
const gone = () => {
  throw new TypeError("Failed to fetch");
};

beforeEach(() => {
  [answers, asked, away] = [[], [], []];
  globalThis.fetch = async (path, options) => {
    asked.push([path, options.method, options.body]);
    return answers.shift()(options);
  };
});

const makeService = () => new Service((isAway) => away.push(isAway));

test("a question is sent as JSON, and its answer read", async () => {
  answers = [answer(200, '{"n": 3}')];
  assert.deepEqual(await makeService().json("api/count", { body: { where: "a=1" } }), { n: 3 });
  assert.deepEqual(asked, [["api/count", "POST", '{"where":"a=1"}']]);
});

test("a refusal is an error with the sentence of the server", async () => {
  answers = [answer(400, '{"error": "no gene X"}'), answer(500, "no JSON"), answer(401, "{}")];
  for (const [status, message] of [[400, /^no gene X$/], [500, /answered 500/], [401, /token/]]) {
    await assert.rejects(makeService().json("x"), (error) => error instanceof Refused && error.status === status && message.test(error.message));
  }
});

test("a server that goes away is waited for, and asked again when it is back", async () => {
  answers = [gone, gone, answer(200, ""), answer(200, '"back"')];
  assert.equal(await makeService().json("x"), "back");
  assert.deepEqual(away, [true, false]);
  assert.deepEqual(asked.map(([path]) => path), ["x", "index.html", "index.html", "x"]);
});

test("many questions wait for one server", async () => {
  answers = [gone, gone, answer(200, ""), answer(200, "1"), answer(200, "2")];
  const service = makeService();
  assert.deepEqual((await Promise.all([service.json("x"), service.json("y")])).sort(), [1, 2]);
  assert.deepEqual(away, [true, false]);
});

test("a busy server is asked again soon; one that says that it takes too long is not", async () => {
  const busy = answer(503, '{"error": "busy"}', { "Retry-After": "0.01" });
  answers = [busy, answer(200, "1")];
  assert.equal(await makeService().json("x"), 1);
  answers = [answer(503, '{"error": "takes too long"}', { "Retry-After": "30" })];
  await assert.rejects(makeService().json("x"), /takes too long/);
  answers = Array(9).fill(busy);
  await assert.rejects(makeService().json("x"), /busy/);
});

test("a question that is called off ends at once, and is not asked again", async () => {
  const stop = new AbortController();
  answers = [({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)))];
  const asking = makeService().json("x", { signal: stop.signal });
  stop.abort();
  await assert.rejects(asking, { name: "AbortError" });
  assert.deepEqual(away, []);
});
