import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { GiB, KiB, MiB } from "../../src/base/units.ts";
import type { DiskImage } from "./peer-kinds.ts";

export const DISK_BYTES = 1 * GiB;
export const CLUSTER_BYTES = 64 * KiB;

/**
 * What a disk is made of. `empty` and `full`: an overlay on a full base, with nothing or with every cluster.
 * `flat`: one image with every cluster; `chain`: 32 images, each with its part of the clusters; both
 * read-only. `raw`: a raw file with data everywhere.
 */
export type Content = "empty" | "full" | "flat" | "chain" | "raw";

/** Images in the chain of that content. */
export const CHAIN_LENGTH = 32;

/** Host space of an overlay with all of its clusters, tables included. */
const OVERLAY_FILE_BYTES = DISK_BYTES + 16 * MiB;
/** An empty overlay: its header and first tables. */
const EMPTY_OVERLAY_BYTES = 4 * CLUSTER_BYTES;

/**
 * The base with data everywhere, and images on it. The file of an overlay keeps its host pages from run to
 * run: on a virtual machine whose host takes free memory back, a fresh page costs several times the work that
 * is measured. Not so where a job may have left extents that two files share: there each run gets a new file.
 */
export class Images {
  readonly #folder: string;
  readonly #keepsPages: boolean;
  readonly #full = new Set<string>();
  #base: string | undefined;
  #chain: readonly string[] | undefined;

  constructor(folder: string, { keepsPages }: { keepsPages: boolean }) {
    this.#folder = folder;
    this.#keepsPages = keepsPages;
  }

  /** The disk of that name, made or made as new. */
  disk(name: string, content: Content): DiskImage {
    switch (content) {
      case "empty":
      case "full":
        return {
          name,
          format: "qcow2",
          chain: [this.#overlay(name, content), this.#fullBase()],
          readOnly: false,
        };
      case "flat":
        return { name, format: "qcow2", chain: [this.#fullBase()], readOnly: true };
      case "chain":
        return { name, format: "qcow2", chain: this.#longChain(), readOnly: true };
      case "raw":
        return { name, format: "raw", chain: [this.#raw(name)], readOnly: false };
    }
  }

  #fullBase(): string {
    if (this.#base === undefined) {
      this.#base = path.join(this.#folder, "base.qcow2");
      qemuImg("create", "-f", "qcow2", this.#base, String(DISK_BYTES));
      fill(this.#base, 0xa5, 0x5a);
    }
    return this.#base;
  }

  #longChain(): readonly string[] {
    this.#chain ??= interleave(this.#folder, this.#fullBase(), CHAIN_LENGTH, DISK_BYTES);
    return this.#chain;
  }

  #overlay(name: string, content: "empty" | "full"): string {
    const file = path.join(this.#folder, `${name}.qcow2`);
    // Writes to allocated clusters leave a full one full.
    if (this.#keepsPages && content === "full" && this.#full.has(name)) return file;
    if (this.#keepsPages) this.#makeAsNew(file);
    else create(file, this.#fullBase());
    this.#full.delete(name);
    if (content === "full") {
      fill(file, 0x11, 0x11);
      this.#full.add(name);
    }
    return file;
  }

  #makeAsNew(file: string): void {
    const empty = path.join(this.#folder, "empty.qcow2");
    create(empty, this.#fullBase());
    writeEverywhere(file, OVERLAY_FILE_BYTES, 0);
    const start = Buffer.alloc(EMPTY_OVERLAY_BYTES);
    fs.readFileSync(empty).copy(start);
    const host = fs.openSync(file, "r+");
    fs.writeSync(host, start, 0, start.length, 0);
    fs.closeSync(host);
  }

  #raw(name: string): string {
    const folder = path.join(this.#folder, "raw");
    fs.mkdirSync(folder, { recursive: true });
    const file = path.join(folder, name);
    writeEverywhere(file, DISK_BYTES, 0xa5);
    return file;
  }
}

/**
 * A chain on `base` in which clusters 0, n, 2n ... are the base's own, and clusters i, n + i, 2n + i ... are
 * in the i-th image above it: every image has data, and neighbours never share one. Returned active first.
 */
export function interleave(folder: string, base: string, length: number, diskBytes: number): string[] {
  const chain = [base];
  for (let index = 1; index < length; index++) {
    const file = path.join(folder, `chain-${length}-${index}.qcow2`);
    create(file, chain[0]!);
    const offsets: number[] = [];
    for (let at = index * CLUSTER_BYTES; at < diskBytes; at += length * CLUSTER_BYTES) offsets.push(at);
    writeClusters(file, offsets);
    chain.unshift(file);
  }
  return chain;
}

/** One cluster of data at each of the offsets. */
export function writeClusters(file: string, offsets: readonly number[]): void {
  const commands = offsets.map((offset) => `write -q -P 0x33 ${offset} ${CLUSTER_BYTES}\n`);
  execFileSync("qemu-io", ["-f", "qcow2", file], {
    input: commands.join(""),
    stdio: ["pipe", "ignore", "inherit"],
  });
}

/** @param backing the image below, or the size of the disk in bytes */
export function create(file: string, backing: string | number): void {
  if (typeof backing === "number") qemuImg("create", "-f", "qcow2", file, String(backing));
  else qemuImg("create", "-f", "qcow2", "-b", backing, "-F", "qcow2", file);
}

/** Makes the file as long as that, where it is shorter; what is there stays. */
function writeEverywhere(file: string, bytes: number, value: number): void {
  const host = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_CREAT);
  const block = Buffer.alloc(MiB, value);
  for (let at = fs.fstatSync(host).size; at < bytes; ) {
    at += fs.writeSync(host, block, 0, Math.min(MiB, bytes - at), at);
  }
  fs.closeSync(host);
}

function fill(file: string, first: number, second: number): void {
  const half = DISK_BYTES / 2;
  const commands = [`write -P ${first} 0 ${half}`, `write -P ${second} ${half} ${half}`];
  execFileSync("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), file]);
}

function qemuImg(...args: string[]): void {
  execFileSync("qemu-img", args, { stdio: ["ignore", "ignore", "inherit"] });
}
