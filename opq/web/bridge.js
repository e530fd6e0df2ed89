// For transformers.js: answers its requests for a model.onnx from the opq file and the graph that lie in its place.
//
// The folder `onnx` of the model holds what `opq export --to web` writes: network.json, the graph without its weights,
// and the opq file. Its parts are joined into one ONNX file, in memory.

import { open, OpqError } from "./opq.js";
import { fields, filled, placeOf } from "./network.js";

const ASKED = /(^|[/\\])model[.]onnx$/;
const DESCRIBED = "network.json";
const LARGEST = 2 ** 31; // bytes of a protobuf message
const builtin = (name) => globalThis.process?.getBuiltinModule?.(name);

/**
 * For `env.fetch`: all but the requests for a model.onnx goes on to `fetch`.
 * @param {import("./bridge.js").BridgeOptions} [options]
 */
export function bridgedFetch({ fetch = (...call) => globalThis.fetch(...call), ...options } = {}) {
  return async (input, init) => (await answered(input, init, { fetch, ...options })) ?? fetch(input, init);
}

/**
 * For `env.customCache`, beside `env.useCustomCache = true`: all but the requests for a model.onnx goes on to `cache`.
 * @param {object} env that of transformers.js, which says where models are
 * @param {import("./bridge.js").BridgeOptions & {cache?: object}} [options]
 */
export function bridgedCache(env, { cache, fetch = (...call) => env.fetch(...call), ...options } = {}) {
  const local = new Set(); // paths that were answered: in Node they are asked for by their addresses afterwards
  return {
    async match(request) {
      const tail = tailOf(env, request);
      const place = [...local].find((path) => tail && `/${path}`.endsWith(`/${tail}`)) ?? request;
      const found = await answered(place, undefined, { fetch, ...options });
      if (found && !isAddress(place)) local.add(place);
      return found ?? cache?.match(request);
    },
    async put(request, ...rest) {
      return cache?.put(request, ...rest);
    },
  };
}

/** Model and file of a remote address, as they stand at the end of a path; undefined where it is none. */
function tailOf({ remoteHost, remotePathTemplate }, request) {
  if (!request.startsWith(remoteHost)) return undefined;
  const parts = remotePathTemplate.split(/([{]model[}]|[{]revision[}])/).map((part) =>
    ({ "{model}": "(.+?)", "{revision}": "[^/]+" })[part] ?? part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const found = new RegExp(`^/?${parts.join("")}(.+)$`).exec(request.slice(remoteHost.length));
  return found ? `${found[1]}/${found[2]}` : undefined;
}

const isAddress = (text) => /^(https?|file|blob):/.test(text);

/** An answer, where the request is for a model.onnx in whose place a graph and an opq file lie. */
async function answered(request, init, { fetch, ...options }) {
  const asked = typeof request === "string" ? request : (request.url ?? request.href);
  if (!ASKED.test(asked.split(/[?#]/)[0])) return undefined;
  const described = new URL(DESCRIBED, addressOf(asked));
  const text = await bytesOf(described, fetch);
  if (!text) return undefined;
  const parts = partsOf(described, text, fetch);
  const headers = { "content-type": "application/octet-stream" };
  const length = await parts.then(({ size }) => size, () => undefined); // the error is that of who reads the body
  if (length !== undefined) {
    if (new Headers(init?.headers).get("range") === "bytes=0-0") {
      const first = (await parts).pieces[0].subarray(0, 1);
      return new Response(first, { status: 206, headers: { ...headers, "content-range": `bytes 0-0/${length}` } });
    }
    headers["content-length"] = `${length}`;
  }
  const body = new ReadableStream({
    async pull(controller) {
      controller.enqueue(await joined(await parts, { fetch, ...options }));
      controller.close();
    },
  }, { highWaterMark: 0 });
  return new Response(body, { headers });
}

function addressOf(asked) {
  if (isAddress(asked)) return new URL(asked);
  return globalThis.location ? new URL(asked, globalThis.location.href) : builtin("node:url").pathToFileURL(asked);
}

/** The bytes at an address; undefined where there are none. */
async function bytesOf(url, fetch) {
  if (url.protocol === "file:" && builtin("node:fs")) {
    return builtin("node:fs").promises.readFile(url).catch(() => undefined);
  }
  const answer = await fetch(url.href).catch(() => undefined);
  if (answer?.ok) return new Uint8Array(await answer.arrayBuffer());
  await answer?.body?.cancel();
  return undefined;
}

/** What the joined file consists of: pieces of the graph, and places between them to be filled. */
async function partsOf(described, text, fetch) {
  let said;
  try {
    said = JSON.parse(new TextDecoder().decode(text));
  } catch (cause) {
    throw new OpqError("corrupt", `${described} is not JSON`, { got: cause.message, cause });
  }
  if (typeof said?.graph !== "string" || typeof said.file !== "string" || typeof (said.tensors ?? "") !== "object") {
    throw new OpqError("corrupt", `${described} describes no network`, { wanted: '"file", "graph" and "tensors"' });
  }
  const graph = await bytesOf(new URL(said.graph, described), fetch);
  if (!graph) throw new OpqError("missing", `the graph ${said.graph} is not there`);
  const pieces = within(graph);
  const size = sizeOf(pieces);
  if (size >= LARGEST) {
    throw new OpqError("too-large", "the joined ONNX file is larger than one can be", {
      got: `${size} bytes`, wanted: `below ${LARGEST}`, remedy: "Load it by network.js, whose tensors stay outside.",
    });
  }
  return { pieces, size, tensors: said.tensors, file: new URL(said.file, described) };
}

const sizeOf = (pieces) => pieces.reduce((sum, { length }) => sum + length, 0);

/** The graph in pieces, with a place `{ place, length }` for the values of each initializer that lie outside of it. */
function within(graph) {
  return renewed(graph, fields(graph), 7, (part) =>
    renewed(graph, fields(graph, part.start, part.stop), 5, (part) => withValues(graph, part)));
}

/** The pieces of a message, those of its fields of one number made anew. */
function renewed(bytes, parts, number, renew) {
  return [...parts].flatMap((part) =>
    part.number === number ? lengthened(number, renew(part)) : [bytes.subarray(part.begin, part.stop)]);
}

/** The pieces of an initializer that holds its values itself. */
function withValues(graph, part) {
  const found = placeOf(graph, part);
  if (!found) return [graph.subarray(part.start, part.stop)];
  const [external, location, raw] = [13, 14, 9];
  const others = [...fields(graph, part.start, part.stop)].filter(({ number }) => number !== external && number !== location);
  return [...others.map(({ begin, stop }) => graph.subarray(begin, stop)), ...lengthened(raw, [found])];
}

/** A field of so many bytes: its number, its length, its content. */
function lengthened(number, pieces) {
  const head = [8 * number + 2];
  let rest = sizeOf(pieces);
  for (; rest > 127; rest = Math.floor(rest / 128)) head.push((rest % 128) + 128);
  return [Uint8Array.from([...head, rest]), ...pieces];
}

/** The ONNX file. */
async function joined({ pieces, size, tensors, file }, options) {
  const places = new Map(pieces.filter(({ place }) => place).map(({ place, length }) => [place, length]));
  const model = await open(file, options);
  let made; // once what the graph wants has been compared with what the file holds
  const out = () => (made ??= laidOut(pieces, size));
  try {
    await filled(model, tensors, places, (place, data) => out().whole.set(data, out().starts.get(place)));
    return out().whole;
  } finally {
    model.close();
  }
}

/** The pieces one behind the other, and where the places between them begin. */
function laidOut(pieces, size) {
  const whole = new Uint8Array(size);
  const starts = new Map();
  let at = 0;
  for (const piece of pieces) {
    if (piece.place) starts.set(piece.place, at);
    else whole.set(piece, at);
    at += piece.length;
  }
  return { whole, starts };
}
