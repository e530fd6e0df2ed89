// A network in a page: an ONNX graph without weights, which onnxruntime-web gets from an opq file as external data.

import { open, OpqError } from "./opq.js";

/**
 * Loads the folder that `opq export --to web` has filled.
 * @template Session
 * @param {import("./network.js").Runtime<Session>} ort the module onnxruntime-web
 * @param {import("./network.js").LoadOptions} [options]
 * @returns {Promise<import("./network.js").Loaded<Session>>}
 */
export async function load(ort, { base = location.href, progress, session = {} } = {}) {
  const at = (name) => new URL(name, base).href;
  const start = performance.now();
  const { file, graph, tensors } = await (await fetched(at("network.json"))).json();
  const bytes = new Uint8Array(await (await fetched(at(graph))).arrayBuffer());
  const graphed = performance.now();
  const waiting = clock();
  const model = await open(at(file), { progress, fetch: waiting.fetch });
  const externalData = [];
  await filled(model, tensors, placesOf(bytes), (path, data) => externalData.push({ path, data }));
  const size = model.size;
  model.close();
  const decoded = performance.now();
  const made = await ort.InferenceSession.create(bytes, { ...session, externalData });
  const weights = (decoded - graphed) / 1000;
  const seconds = {
    graph: (graphed - start) / 1000,
    download: waiting.seconds,
    decode: weights - waiting.seconds,
    weights,
    session: (performance.now() - decoded) / 1000,
  };
  return { session: made, bytes: size + bytes.length, seconds };
}

/** A `fetch` that counts the seconds in which its answers were waited for. */
function clock() {
  const counted = { seconds: 0, fetch: fetching };
  async function during(promise) {
    const start = performance.now();
    const found = await promise;
    counted.seconds += (performance.now() - start) / 1000;
    return found;
  }
  async function fetching(url, init) {
    const answer = await during(fetch(url, init));
    if (!answer.body) return answer;
    const reader = answer.body.getReader();
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await during(reader.read());
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: (reason) => reader.cancel(reason),
    }, { highWaterMark: 0 });
    return new Response(body, answer);
  }
  return counted;
}

/**
 * Gives each place of a graph the bytes of its tensor, as soon as they are there.
 * @param {import("./opq.js").Model} model the opq file
 * @param {Record<string, string>} tensors place -> tensor of the file, as network.json has it
 * @param {Map<string, number>} places place -> bytes, as the graph has it
 * @param {(place: string, data: Uint8Array) => void} give
 */
export async function filled(model, tensors, places, give) {
  const unlike = (got, wanted) => new OpqError("mismatch", "the graph does not match the file", {
    got, wanted, remedy: "Export both again: opq export FILE --to web.",
  });
  const waiting = new Map();
  for (const place of places.keys()) {
    const name = Object.hasOwn(tensors, place) ? tensors[place] : undefined;
    if (name === undefined) throw unlike(`nothing for ${place}`);
    waiting.set(name, [...(waiting.get(name) ?? []), place]);
  }
  for (const { name, shape } of model.tensors()) {
    const bytes = 4 * shape.reduce((all, n) => all * n, 1);
    for (const place of waiting.get(name) ?? []) {
      if (places.get(place) !== bytes) throw unlike(`${bytes} bytes of ${name}`, places.get(place));
    }
  }
  for await (const { name, data } of model.stream({ as: "float32" })) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    for (const place of waiting.get(name) ?? []) give(place, bytes);
    waiting.delete(name);
  }
  if (waiting.size) throw unlike(`no tensor ${[...waiting.keys()][0]}`);
}

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new OpqError("missing", `cannot fetch ${url}`, { got: `status ${answer.status}` });
  return answer;
}

// --- the graph, as far as its initializers go ------------------------------------------------------

const [GRAPH, INITIALIZER, EXTERNAL] = [7, 5, 13]; // fields of ModelProto, GraphProto and TensorProto
const [KEY, VALUE] = [1, 2]; // of StringStringEntryProto

const wrong = () => new OpqError("corrupt", "the graph is no ONNX file", { remedy: "Fetch or write it again." });

/**
 * The fields of a protobuf message: their numbers, where each begins, and from where to where its content is.
 * @param {Uint8Array} bytes
 */
export function* fields(bytes, from = 0, to = bytes.length) {
  const number = () => {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (from >= to) throw wrong();
      value += (bytes[from] & 127) * 2 ** shift;
      if (bytes[from++] < 128) return value;
    }
    throw wrong();
  };
  while (from < to) {
    const begin = from;
    const key = number();
    let length = { 1: 8, 5: 4 }[key % 8] ?? 0;
    if (key % 8 === 0) number();
    else if (key % 8 === 2) length = number();
    else if (!length) throw wrong();
    const start = from;
    from += length;
    if (from > to) throw wrong();
    yield { number: Math.floor(key / 8), begin, start, stop: from };
  }
}

/** Place and bytes of an initializer whose values lie outside of the graph; undefined where they do not. */
export function placeOf(graph, { start, stop }) {
  const said = {};
  for (const field of fields(graph, start, stop)) {
    if (field.number !== EXTERNAL) continue;
    const texts = {};
    for (const { number, start, stop } of fields(graph, field.start, field.stop)) {
      texts[number] = new TextDecoder().decode(graph.subarray(start, stop));
    }
    said[texts[KEY]] = texts[VALUE];
  }
  if (said.location === undefined) return undefined;
  if (!said.location || !/^[0-9]{1,15}$/.test(said.length)) throw wrong();
  return { place: said.location, length: Number(said.length) };
}

/** Each place at which a graph looks for values, and how many bytes it wants there. */
export function placesOf(graph) {
  const places = new Map();
  for (const field of fields(graph)) {
    if (field.number !== GRAPH) continue;
    for (const part of fields(graph, field.start, field.stop)) {
      const found = part.number === INITIALIZER && placeOf(graph, part);
      if (found) places.set(found.place, found.length);
    }
  }
  return places;
}
