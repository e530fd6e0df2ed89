/** For transformers.js: answers its requests for a model.onnx from an opq file and the graph beside it. */

import type { OpenOptions } from "./opq.js";

export type BridgeOptions = Omit<OpenOptions, "fetch"> & {
  /** Fetches everything else. */
  fetch?: (input: any, init?: any) => Promise<any>;
};

/** What transformers.js wants of a cache. */
export interface Cache {
  match(request: string): Promise<any>;
  put(request: string, response: any, progress?: any): Promise<void>;
}

/** What the bridge reads of `env`. */
export interface Places {
  remoteHost: string;
  remotePathTemplate: string;
  fetch: (input: any, init?: any) => Promise<any>;
}

/** For `env.fetch`. */
export declare function bridgedFetch(options?: BridgeOptions): (input: any, init?: any) => Promise<any>;

/** For `env.customCache`, beside `env.useCustomCache = true`; `cache` holds everything else. */
export declare function bridgedCache(env: Places, options?: BridgeOptions & { cache?: Cache }): Cache;
