// `-o` of `strata create`: the names and values of qemu-img.

import { parseSize } from "../base/units.ts";
import type { CreateOptions } from "../format/qcow2/create.ts";
import type { RawCreateOptions } from "../format/raw/create.ts";
import { usageError } from "./failure.ts";

/** `a=1,b=2` lists as a map; later ones win; `,,` stands for a comma in a value. */
export function parseImageOptions(lists: readonly string[]): Map<string, string> {
  const options = new Map<string, string>();
  for (const list of lists) {
    for (const item of list.split(/(?<!,),(?!,)/)) {
      const equals = item.indexOf("=");
      if (equals <= 0) throw usageError(`-o ${list}: '${item}' is not NAME=VALUE`);
      options.set(item.slice(0, equals), item.slice(equals + 1).replaceAll(",,", ","));
    }
  }
  return options;
}

type Reader<T> = (name: string, value: string) => Partial<T>;

const QCOW2: Readonly<Record<string, Reader<CreateOptions>>> = {
  cluster_size: (name, value) => ({ clusterSize: sizeValue(name, value) }),
  compat: (name, value) => ({
    version: choice(name, value, { "0.10": 2, v2: 2, "1.1": 3, v3: 3 } as const),
  }),
  lazy_refcounts: (name, value) => ({ lazyRefcounts: onOff(name, value) }),
  refcount_bits: (name, value) => ({ refcountBits: sizeValue(name, value) }),
  extended_l2: (name, value) => ({ extendedL2: onOff(name, value) }),
  compression_type: (name, value) => ({
    compressionType: choice(name, value, { zlib: "zlib", zstd: "zstd" } as const),
  }),
  preallocation: (name, value) => ({
    preallocation: choice(name, value, {
      off: "off",
      metadata: "metadata",
      falloc: "falloc",
      full: "full",
    } as const),
  }),
};

const RAW: Readonly<Record<string, Reader<RawCreateOptions>>> = {
  preallocation: (name, value) => ({
    preallocation: choice(name, value, { off: "off", falloc: "falloc", full: "full" } as const),
  }),
};

/** @throws BlockError USAGE for an unknown name or value */
export function qcow2Options(given: ReadonlyMap<string, string>): Partial<CreateOptions> {
  return readAll("qcow2", QCOW2, given);
}

/** @throws BlockError USAGE for an unknown name or value */
export function rawOptions(given: ReadonlyMap<string, string>): Partial<RawCreateOptions> {
  return readAll("raw", RAW, given);
}

function readAll<T>(
  format: string,
  readers: Readonly<Record<string, Reader<T>>>,
  given: ReadonlyMap<string, string>,
): Partial<T> {
  let options: Partial<T> = {};
  for (const [name, value] of given) {
    if (!Object.hasOwn(readers, name)) {
      throw usageError(`${format} has no option '${name}': there are ${Object.keys(readers).join(", ")}`);
    }
    options = { ...options, ...readers[name]!(name, value) };
  }
  return options;
}

function sizeValue(name: string, value: string): number {
  const size = parseSize(value);
  if (size === undefined) throw usageError(`option ${name}: '${value}' is no number`);
  return size;
}

function onOff(name: string, value: string): boolean {
  return choice(name, value, { on: true, off: false });
}

function choice<T>(name: string, value: string, choices: Readonly<Record<string, T>>): T {
  if (!Object.hasOwn(choices, value)) {
    throw usageError(`option ${name}: '${value}' is none of ${Object.keys(choices).join(", ")}`);
  }
  return choices[value]!;
}
