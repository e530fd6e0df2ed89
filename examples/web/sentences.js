// The nearest of some sentences: vectors of unit length, the mean over the tokens of a text, compared by their cosine.

import { at, figure, network, number, ort, rows, told } from "./page.js";
import { Tokenizer } from "./wordpiece.js";

const MOST = 10; // rows

let session;
let tokenizer;
let known;

/** The vector of a text. */
async function vector(text) {
  const ids = tokenizer.encode(text);
  const whole = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
  const { last_hidden_state: states } = await session.run({ input_ids: whole(ids), attention_mask: whole(ids.map(() => 1)) });
  const width = states.dims[2];
  const mean = new Float64Array(width);
  states.data.forEach((value, i) => (mean[i % width] += value));
  const length = Math.hypot(...mean);
  return Float32Array.from(mean, (value) => value / length);
}

const cosine = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

async function find() {
  const text = at("query").value;
  const start = performance.now();
  const own = await vector(text);
  const near = known.map((other) => ({ ...other, near: cosine(own, other.vector) })).sort((a, b) => b.near - a.near);
  figure("last", `${(performance.now() - start).toFixed(0)} ms`, `the nearest of ${number(known.length)}`);
  rows(at("answer"), near.slice(0, MOST).map(({ near, text }) => ({ value: near.toFixed(3), part: near, text })));
  globalThis.found = { text, vector: Array.from(own), nearest: near[0].text };
}

await told(async () => {
  const [about, vocabulary] = await Promise.all([
    fetch("about.json").then((answer) => answer.json()), fetch("vocab.txt").then((answer) => answer.text()),
  ]);
  tokenizer = new Tokenizer(vocabulary);
  session = await network();
  known = [];
  for (const text of about.sentences) known.push({ text, vector: await vector(text) });
  await find();
});

let turn = Promise.resolve();
at("form").onsubmit = (event) => {
  event.preventDefault();
  turn = turn.then(find).catch((error) => (at("told").textContent = error.message));
};
