// koffi, which calls functions of the C library: loaded here and nowhere else.

import { createRequire } from "node:module";

const ARCHITECTURES = ["x64", "arm64", "riscv64", "loong64"];

export interface Koffi {
  load(path: string | null): { func(name: string, result: string, parameters: string[]): ForeignFunction };
  address(buffer: Uint8Array | Uint32Array): bigint;
  /** The memory at an address; nothing keeps it there. */
  view(address: number, bytes: number): ArrayBuffer;
  errno(): number;
}
export interface ForeignFunction {
  (...values: number[]): number;
  /** In the thread pool; the last argument is called back on the loop. errno is lost. */
  async(...values: (number | ((error: Error | null, result: number) => void))[]): void;
}

/** koffi on 64-bit little-endian Linux, or why there is none; STRATA_NO_FFI=1 goes without. */
export function loadKoffi(): Koffi | string {
  if (process.env["STRATA_NO_FFI"] === "1") return "STRATA_NO_FFI=1 is set";
  if (process.platform !== "linux") return `not made for ${process.platform}`;
  if (!ARCHITECTURES.includes(process.arch)) return `not made for ${process.arch}`;
  try {
    return createRequire(import.meta.url)("koffi") as Koffi;
  } catch (error) {
    return `koffi cannot be loaded: ${error instanceof Error ? error.message.split("\n")[0] : String(error)}`;
  }
}
