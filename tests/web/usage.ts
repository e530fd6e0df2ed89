/** Uses all that `opq.d.ts` offers; only checked, never run. */
import { bridgedCache, bridgedFetch } from "opq-web/bridge.js";
import { load } from "opq-web/network.js";
import opq, { open, OpqError, VERSION, type Model, type Tensor, type TensorInfo } from "opq-web";

export async function everything(file: File, body: ReadableStream<Uint8Array>): Promise<number> {
  const controller = new AbortController();
  const model: Model = await open("model.opq.safetensors", {
    progress: ({ loaded, total }) => console.log(loaded / (total ?? Infinity)),
    signal: controller.signal,
    workers: 2,
    maxExpansion: 100,
    headers: { Authorization: "none" },
    base: "old.safetensors",
    fetch: (input, init) => fetch(input, init),
  });
  await opq.open(file, { base: model });
  await opq.open([file, file]);
  const named: string | undefined = model.base?.digest;
  await opq.open(body);
  await opq.open(await fetch("model.opq.safetensors"));
  await opq.open(new Uint8Array(8));
  await opq.open(new ArrayBuffer(8));
  await opq.open(new URL("https://example.org/model/"));
  const infos: TensorInfo[] = model.tensors();
  const bits: number = infos[0].bits * infos[0].shape.length + infos[0].step;
  const plain: Tensor = await model.tensor("w");
  if (plain.dtype === "I64") {
    const whole: BigInt64Array = plain.data;
    console.log(whole);
  }
  const floats: Float32Array = (await model.tensor("w", { as: "float32" })).data;
  const halves: Uint16Array = (await model.tensor("w", { as: "float16", signal: controller.signal })).data;
  const codes: Int16Array = (await model.tensor("w", { as: "codes" })).data;
  for await (const { name, data, like } of model.stream({ as: "float32" })) {
    const held: Float32Array = data;
    console.log(name, held, like?.length);
  }
  for await (const tensor of model.stream()) console.log(tensor.dtype);
  model.close();
  try {
    await opq.open(file);
  } catch (error) {
    if (error instanceof OpqError && error.code === "corrupt") console.log(error.tensor, error.fact, error.remedy);
  }
  // @ts-expect-error: no such form
  await model.tensor("w", { as: "int4" });
  // @ts-expect-error: no such code
  if (new OpqError().code === "wrong") return 0;
  // @ts-expect-error: what a file says is not to be changed
  infos[0].name = "v";
  return VERSION + Number(named) + bits + floats.length + halves.length + codes.length + model.size;
}

/** `env` of transformers.js. */
export function bridged(env: { fetch: typeof fetch; remoteHost: string; remotePathTemplate: string; customCache: unknown }): void {
  env.fetch = bridgedFetch({ workers: 2, progress: ({ loaded }) => console.log(loaded) });
  env.customCache = bridgedCache(env, { cache: { match: async () => undefined, put: async () => {} } });
}

/** A module like onnxruntime-web. */
export async function run(ort: { InferenceSession: { create(graph: Uint8Array): Promise<{ inputNames: string[] }> } }): Promise<string> {
  const { session, bytes, seconds } = await load(ort, { base: "https://example.org/", progress: ({ loaded }) => console.log(loaded) });
  return `${session.inputNames[0]} ${bytes} ${seconds.decode}`;
}
