// A network in a page: an ONNX graph without weights, which onnxruntime-web gets from an opq file as external data.

import { open } from "./opq.js";

/**
 * Loads the folder that `opq export --to web` has filled.
 * @param {object} ort the module onnxruntime-web
 * @param {{base?: string | URL, progress?: (told: {loaded: number, total?: number}) => void, session?: object}} [options]
 *   where the folder is, whom to tell of the download, options of the session
 * @returns {Promise<{session: object, bytes: number, seconds: {graph: number, weights: number, session: number}}>}
 */
export async function load(ort, { base = location.href, progress, session = {} } = {}) {
  const at = (name) => new URL(name, base).href;
  const start = performance.now();
  const { file, graph, tensors } = await (await fetched(at("network.json"))).json();
  const bytes = new Uint8Array(await (await fetched(at(graph))).arrayBuffer());
  const graphed = performance.now();
  const model = await open(at(file), { progress });
  const places = new Map();
  for (const [place, name] of Object.entries(tensors)) places.set(name, [...(places.get(name) ?? []), place]);
  const externalData = [];
  for await (const { name, data } of model.stream({ as: "float32" })) {
    for (const path of places.get(name) ?? []) {
      externalData.push({ path, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) });
      places.delete(name);
    }
  }
  const size = model.size;
  model.close();
  if (places.size) throw new Error(`the graph does not match the file: no tensor ${[...places.keys()][0]}`);
  const decoded = performance.now();
  const made = await ort.InferenceSession.create(bytes, { ...session, externalData });
  const seconds = {
    graph: (graphed - start) / 1000,
    weights: (decoded - graphed) / 1000,
    session: (performance.now() - decoded) / 1000,
  };
  return { session: made, bytes: size + bytes.length, seconds };
}

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer;
}
