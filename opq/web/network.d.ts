/** A network in a page: an ONNX graph without weights, which onnxruntime-web gets from an opq file. */

/** What is used of the module onnxruntime-web. */
export interface Runtime<Session> {
  InferenceSession: { create(graph: Uint8Array, options?: any): Promise<Session> };
}

export interface Loaded<Session> {
  session: Session;
  /** Of graph and file, downloaded. */
  bytes: number;
  /** `weights` passed until all tensors were there: `download` waiting for bytes, `decode` the rest. */
  seconds: { graph: number; download: number; decode: number; weights: number; session: number };
}

export interface LoadOptions {
  /** Where the folder is that `opq export --to web` has filled. Default: that of the page. */
  base?: string | URL;
  progress?: (now: { loaded: number; total: number | undefined }) => void;
  /** Options of the session, for onnxruntime-web. */
  session?: object;
}

/** Loads the network. Rejects with an `OpqError` where file and graph cannot be had or do not belong together. */
export declare function load<Session>(ort: Runtime<Session>, options?: LoadOptions): Promise<Loaded<Session>>;
