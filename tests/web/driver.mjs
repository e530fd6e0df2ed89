/**
 * Answers questions about files, one after the other: a frame is two lengths, JSON, and the bytes of a file.
 *
 * Reads from stdin, writes a line of JSON for each to stdout.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { pathToFileURL } from "node:url";

const opq = await import(process.argv[2]);

/** What a test compares of a tensor: all but the elements, of which the digest. */
function told({ data, ...rest }, whole) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const digest = createHash("sha256").update(bytes).digest("hex");
  return { ...rest, array: data.constructor.name, digest, ...(whole && { bytes: Buffer.from(bytes).toString("base64") }) };
}

function* cut(bytes, size) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** A stream of bytes that goes on for ever, and says how much was taken from it. */
function endless(head) {
  let pulled = 0;
  const stream = new ReadableStream({
    pull(controller) {
      controller.enqueue(pulled ? new Uint8Array(1 << 20) : head);
      pulled++;
    },
  }, { highWaterMark: 0 });
  return { stream, pulled: () => pulled };
}

const SOURCES = {
  bytes: ({}, body) => body,
  buffer: ({}, body) => body.slice().buffer,
  blob: ({}, body) => new Blob([body]),
  stream: ({ pieces }, body) => ReadableStream.from(cut(body, pieces)),
  response: ({}, body) => new Response(body),
  path: ({ path }) => pathToFileURL(path),
  relative: ({ path }) => (process.chdir(path.slice(0, path.lastIndexOf("/"))), basename(path)),
  files: ({ paths }) => paths.map((path) => new File([readFileSync(path)], basename(path))),
  url: ({ url }) => url,
  fetched: async ({ url }) => fetch(url),
};

const BASES = {
  address: ({ at }) => pathToFileURL(at),
  url: ({ at }) => at,
  bytes: ({ at }) => readFileSync(at),
  stream: ({ at }) => ReadableStream.from(cut(new Uint8Array(readFileSync(at)), 999)),
  files: ({ at }) => at.map((path) => new File([readFileSync(path)], basename(path))),
  model: ({ at }) => opq.open(pathToFileURL(at)),
};

async function answer(question, body) {
  const { narrowed, from = "bytes", as, whole, ways = ["tensor"], options = {}, abort, go, one, close, base } = question;
  if (base) options.base = await BASES[base.from](base);
  if (narrowed) opq.narrowed(...narrowed);
  const progress = [];
  const controller = new AbortController();
  if (abort) options.signal = controller.signal;
  options.progress = (now) => {
    progress.push(now);
    if (abort?.loaded <= now.loaded) controller.abort();
  };
  if (abort?.before) controller.abort();
  const forever = from === "endless" && endless(body);
  const source = forever ? forever.stream : await SOURCES[from](question, body);
  const model = await opq.open(source, options).catch((error) => {
    if (forever) error.message += ` after ${forever.pulled()} pieces`;
    throw error;
  });
  const tensors = model.tensors();
  const results = { plan: model.plan, size: model.size, base: model.base, tensors, progress };
  if (close) model.close();
  if (one) return { ...results, one: told(await model.tensor(one, { as }), whole) };
  if (ways.includes("tensor")) {
    results.tensor = [];
    for (const { name } of tensors) results.tensor.push(told(await model.tensor(name, { as }), whole));
  }
  if (ways.includes("stream")) {
    results.stream = [];
    for await (const tensor of model.stream({ as })) {
      results.stream.push(told(tensor, whole));
      if (go) await fetch(go);
      if (abort?.tensors === results.stream.length) controller.abort();
    }
  }
  if (ways.includes("codes")) {
    results.codes = [];
    for (const { name, kind, like } of tensors) {
      const own = like === undefined ? kind : tensors.find((other) => other.name === like).kind;
      if (own !== "raw" && own !== "scalar") results.codes.push(told(await model.tensor(name, { as: "codes" }), whole));
    }
  }
  model.close();
  return results;
}

let rest = Buffer.alloc(0);
for await (const piece of process.stdin) {
  rest = Buffer.concat([rest, piece]);
  while (rest.length >= 8) {
    const [head, body] = [rest.readUInt32LE(0), rest.readUInt32LE(4)];
    if (rest.length < 8 + head + body) break;
    const question = JSON.parse(rest.toString("utf8", 8, 8 + head));
    const bytes = new Uint8Array(rest.subarray(8 + head, 8 + head + body));
    rest = rest.subarray(8 + head + body);
    let found;
    try {
      found = await answer(question, bytes);
    } catch (error) {
      const { name, code, tensor, message, stack } = error;
      found = { error: { name, code, tensor, message, stack, ours: error instanceof opq.OpqError } };
    }
    process.stdout.write(JSON.stringify({ ...found, rss: process.memoryUsage().rss }) + "\n");
  }
}
