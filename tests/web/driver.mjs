/**
 * Answers questions about files, one after the other: a frame is a length, JSON, and the bytes of a file.
 *
 * Reads from stdin, writes a line of JSON for each to stdout.
 */
import { createHash } from "node:crypto";
import { pathToFileURL } from "node:url";

const opq = await import(process.argv[2]);

/** What a test compares of a tensor: all but the elements, of which the digest. */
function told({ data, ...rest }, whole) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const digest = createHash("sha256").update(bytes).digest("hex");
  return { ...rest, array: data.constructor.name, digest, ...(whole && { bytes: Buffer.from(bytes).toString("base64") }) };
}

async function answer({ narrowed, url, path, pieces, as, whole, ways = ["tensor"], options = {} }, body) {
  if (narrowed) opq.narrowed(...narrowed);
  if (options.maxExpansion === "infinite") options.maxExpansion = Infinity;
  const progress = [];
  if (options.progress) options.progress = (now) => progress.push(now);
  let source = url ?? (path ? pathToFileURL(path) : body);
  if (pieces) source = ReadableStream.from(cut(body, pieces));
  const model = await opq.open(source, options);
  const tensors = model.tensors();
  const results = { plan: model.plan, size: model.size, tensors };
  if (ways.includes("tensor")) {
    results.tensor = [];
    for (const { name } of tensors) results.tensor.push(told(await model.tensor(name, { as }), whole));
  }
  if (ways.includes("stream")) {
    results.stream = [];
    for await (const tensor of model.stream({ as })) results.stream.push(told(tensor, whole));
  }
  if (ways.includes("codes")) {
    results.codes = [];
    for (const { name, kind, like } of tensors) {
      const own = like === undefined ? kind : tensors.find((other) => other.name === like).kind;
      if (own !== "raw" && own !== "scalar") results.codes.push(told(await model.tensor(name, { as: "codes" }), whole));
    }
  }
  model.close();
  return { ...results, progress };
}

function* cut(bytes, size) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
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
    const before = process.memoryUsage().rss;
    try {
      found = await answer(question, bytes);
    } catch (error) {
      const { name, code, tensor, message, stack } = error;
      found = { error: { name, code, tensor, message, stack, ours: error instanceof opq.OpqError } };
    }
    found.grown = process.memoryUsage().rss - before;
    process.stdout.write(JSON.stringify(found) + "\n");
  }
}
