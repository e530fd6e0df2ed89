/**
 * What transformers.js makes of models whose model.onnx the bridge answers: a line of JSON for each question.
 *
 * `node bridge.mjs OPQ-WEB-FOLDER TRANSFORMERS-MODULE QUESTIONS`, the questions a JSON list.
 */
const [, , web, library, questions] = process.argv;
const { bridgedCache, bridgedFetch } = await import(`${web}/bridge.js`);
const { env, pipeline } = await import(library);

/** A cache in memory. */
function remembering() {
  const held = new Map();
  return {
    held,
    match: async (request) => held.get(request)?.clone(),
    put: async (request, response) => void held.set(request, response),
  };
}

env.allowRemoteModels = true;
env.useFSCache = false;
env.useWasmCache = false;
env.useCustomCache = true;
for (const { way, model, texts, local, remote } of JSON.parse(questions)) {
  const cache = remembering();
  env.allowLocalModels = local !== undefined;
  if (local !== undefined) env.localModelPath = local;
  env.remoteHost = remote ?? "http://127.0.0.1:9/";
  env.remotePathTemplate = "{model}/resolve/{revision}/";
  env.fetch = way === "fetch" ? bridgedFetch() : globalThis.fetch;
  env.customCache = way === "fetch" ? cache : bridgedCache(env, { cache });
  let found;
  try {
    const run = await pipeline("feature-extraction", model, { dtype: "fp32" });
    const { dims, data } = await run(texts);
    found = { dims, data: [...data], cached: [...cache.held.keys()].map((key) => key.split("/").at(-1)) };
    await run.dispose();
  } catch (error) {
    found = { error: `${error.message}`, code: error.code };
  }
  console.log(JSON.stringify(found));
}
