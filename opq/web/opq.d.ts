/** Reads `.opq.safetensors` files and folders of shards, to the very same numbers as the Python package `opq`. */

/** The format version that this module reads; also the next one, which only files with a base have. */
export declare const VERSION: 1;

/** Element types, as safetensors spells them. */
export type DType =
  | "BOOL" | "U8" | "I8" | "U16" | "I16" | "F16" | "BF16" | "U32" | "I32" | "F32" | "U64" | "I64" | "F64" | "C64"
  | "F8_E4M3" | "F8_E4M3FNUZ" | "F8_E5M2" | "F8_E5M2FNUZ" | "F8_E8M0";

/** How a tensor is stored. */
export type Kind = "grid" | "table" | "product" | "fine" | "log" | "raw" | "share" | "scalar" | "trellis"
  | "grid-rows" | "trellis-rows" | "trellis-turned" | "grid-turned-rows" | "trellis-turned-rows"
  | "grid-columns" | "trellis-columns";

/** What is done to a tensor's elements; without it they are those of the file. */
export type As = "float32" | "float16" | "codes";

/** What the file says of a tensor. */
export interface TensorInfo {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly action: "compress" | "keep" | "share";
  readonly kind: Kind;
  /** Of `grid`, `trellis`, `trellis-turned` and `fine`: weights are multiples of it; of kinds with `-rows`, of it times
   * a factor for each row; of kinds with `-columns`, of it times one for each row and one for each column. 0
   * elsewhere. */
  readonly step: number;
  /** Bits a weight in the file. */
  readonly bits: number;
  /** Bytes in the file. */
  readonly bytes: number;
  /** Why, in words. */
  readonly reason: string;
  /** Of `share`: the tensor that holds the values. */
  readonly like?: string;
  readonly rounding: number;
  readonly threshold: number;
  readonly sensitivity: number;
  /** Bits a weight, predicted. */
  readonly rate: number;
  /** Fraction of weights that are not 0, predicted. */
  readonly density: number;
  /** Mean squared error, predicted. */
  readonly distortion: number;
}

/** The arrays that hold the elements of each type. */
export interface Arrays {
  BOOL: Uint8Array;
  U8: Uint8Array;
  I8: Int8Array;
  U16: Uint16Array;
  I16: Int16Array;
  /** The bits of the numbers. */
  F16: Uint16Array;
  /** The bits of the numbers. */
  BF16: Uint16Array;
  U32: Uint32Array;
  I32: Int32Array;
  F32: Float32Array;
  U64: BigUint64Array;
  I64: BigInt64Array;
  F64: Float64Array;
  /** Real and imaginary parts in turn. */
  C64: Float32Array;
  F8_E4M3: Uint8Array;
  F8_E4M3FNUZ: Uint8Array;
  F8_E5M2: Uint8Array;
  F8_E5M2FNUZ: Uint8Array;
  F8_E8M0: Uint8Array;
}

/** Elements in row-major order. `dtype` is that of `data`. */
export type TensorOf<D extends DType> = {
  [T in D]: {
    readonly name: string;
    readonly shape: readonly number[];
    readonly dtype: T;
    readonly data: Arrays[T];
    /** In a stream, of a shared tensor: the one that holds the values, whose `data` it has. */
    readonly like?: string;
  };
}[D];

export type Tensor = TensorOf<DType>;

export interface Plan {
  readonly method: string;
  readonly budget: { readonly kind: "bits" | "ratio" | "size"; readonly value: number } | null;
  readonly multiplier: number;
  readonly residual: number;
  readonly predictedBytes: number;
}

export interface ReadOptions {
  /** Ends the waiting with the signal's reason. Default: that of `open`. */
  signal?: AbortSignal;
}

/** A network by the SHA-256 of its tensors, in hexadecimal, and their bytes; docs/format.md says how it is computed. */
export interface BaseName {
  readonly digest: string;
  readonly size: number;
}

/** An open file, or a folder of shards. */
export interface Model {
  readonly plan: Plan;
  /** Of a file of differences: the network that they are to. Without it plan and codes can be had, but no weights. */
  readonly base: BaseName | null;
  /** Bytes of the file. */
  readonly size: number;
  /** All tensors, in the source's order. */
  tensors(): TensorInfo[];
  /** One tensor, in the type of the source. */
  tensor(name: string, options?: ReadOptions & { as?: undefined }): Promise<Tensor>;
  /** Any but complex numbers, as torch's `.float()` gives them. */
  tensor(name: string, options: ReadOptions & { as: "float32" }): Promise<TensorOf<"F32">>;
  /** Bits of numbers, as torch's `.half()` gives them. */
  tensor(name: string, options: ReadOptions & { as: "float16" }): Promise<TensorOf<"F16">>;
  /** The integers that the file holds; of `product` in one dimension, one for each vector. */
  tensor(name: string, options: ReadOptions & { as: "codes" }): Promise<TensorOf<"I16">>;
  tensor(name: string, options: ReadOptions & { as?: As }): Promise<Tensor>;
  /**
   * All tensors in the file's order, each as soon as it can be had: while the file is still coming, where the server
   * gives ranges. Tensors that have no codes come as they are under `as: "codes"`.
   */
  stream(options?: ReadOptions & { as?: undefined | "codes" }): AsyncGenerator<Tensor, void, undefined>;
  stream(options: ReadOptions & { as: "float32" }): AsyncGenerator<TensorOf<"F32">, void, undefined>;
  stream(options: ReadOptions & { as: "float16" }): AsyncGenerator<TensorOf<"F16">, void, undefined>;
  stream(options: ReadOptions & { as?: As }): AsyncGenerator<Tensor, void, undefined>;
  /** Releases what is held and ends what is being fetched; nothing can be read any more. */
  close(): void;
}

export interface OpenOptions {
  /** Called with the bytes that have come so far, and those of the whole once they are known. */
  progress?: (now: { loaded: number; total: number | undefined }) => void;
  /** Ends opening, reading and fetching with the signal's reason. */
  signal?: AbortSignal;
  /** Workers at most; 0 decodes here. Default: one fewer than there are cores, at most 4. */
  workers?: number;
  /** The most bytes that the dense tensors may take for each byte of the file (64 MiB are allowed in any case). */
  maxExpansion?: number;
  /**
   * The network that a file of differences was compressed against: an open model, what `open` opens, an ordinary
   * safetensors file, or a folder of those by its index. It is read whole; a base that is another one is an error.
   */
  base?: Source | Base;
  /** In place of the global `fetch`. */
  fetch?: (input: string, init: RequestInit) => Promise<Response>;
  /** Sent with every request. */
  headers?: Record<string, string>;
}

/** What a base has to have of an open model. */
export interface Base {
  tensors(): readonly { readonly name: string; readonly shape: readonly number[]; readonly dtype: DType }[];
  tensor(name: string): Promise<Tensor>;
}

/**
 * An address (of a folder: its `....index.json`, or ending in `/`), a Blob or File, the Files of a folder, bytes, a
 * stream of bytes, or a Response.
 */
export type Source =
  | string | URL | Blob | readonly File[] | ArrayBuffer | ArrayBufferView | ReadableStream<Uint8Array> | Response;

/** Opens a file or a folder of shards. Rejects with an `OpqError`, or with the signal's reason. */
export declare function open(source: Source, options?: OpenOptions): Promise<Model>;

export type OpqErrorCode =
  | "foreign" | "newer" | "truncated" | "corrupt" | "too-large" | "missing" | "network" | "mismatch" | "closed"
  | "base";

/** The one error of this module. */
export declare class OpqError extends Error {
  readonly name: "OpqError";
  readonly code: OpqErrorCode;
  /** What is wrong, one clause. */
  readonly fact: string;
  readonly got?: unknown;
  readonly wanted?: unknown;
  readonly remedy: string;
  /** The tensor that it is about, if one. */
  readonly tensor?: string;
}

declare const opq: { open: typeof open; OpqError: typeof OpqError; VERSION: typeof VERSION };
export default opq;
