/** What a page and a Web Worker find in a file: names and digests of all tensors. */
async function hex(data) {
  const digest = await crypto.subtle.digest("SHA-256", data);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function look({ module, url, options = {}, file }) {
  try {
    const opq = await import(module);
    const loaded = [];
    const source = file ? new File([await (await fetch(url)).arrayBuffer()], "f.safetensors") : url;
    const model = await opq.open(source, { ...options, progress: (now) => loaded.push(now.loaded) });
    const started = performance.getEntriesByType("resource").length;
    const tensors = {};
    for await (const { name, data } of model.stream()) tensors[name] = await hex(data);
    return { tensors, loaded: loaded.at(-1), started, workers: typeof Worker, inside: typeof document === "undefined" };
  } catch (error) {
    return { error: error.message, code: error.code, ours: error.name === "OpqError" };
  }
}

if (typeof document === "undefined") self.onmessage = async ({ data }) => self.postMessage(await look(data));
