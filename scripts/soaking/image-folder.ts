// The files of the run: a chain of layers that comes and goes, and one image that stays for the whole run.
//
//   [layer-1] <- [layer-4] <- [layer-5]      plain.qcow2

import fs from "node:fs";
import path from "node:path";
import type { Prng } from "../../src/base/prng.ts";
import { KiB, MiB } from "../../src/base/units.ts";
import { run, runAnyhow } from "./program.ts";

export const PLAIN = "plain.qcow2";

export class ImageFolder {
  readonly path: string;
  readonly #prng: Prng;
  #nextNumber = 1;

  constructor(folder: string, prng: Prng) {
    this.path = path.join(folder, "images");
    this.#prng = prng;
    fs.mkdirSync(this.path);
  }

  file(name: string): string {
    return path.join(this.path, name);
  }

  /** Makes the first two layers and the plain image; gives the name of the top. */
  async create(sizes: { chainBytes: number; plainBytes: number }): Promise<string> {
    const isRaw = this.#prng.chance(0.5);
    const base = `layer-${this.#nextNumber++}.img`;
    const size = String(sizes.chainBytes);
    await run("qemu-img", "create", "-q", "-f", isRaw ? "raw" : "qcow2", this.file(base), size);
    await run("qemu-img", "create", "-q", "-f", "qcow2", this.file(PLAIN), String(sizes.plainBytes));
    return await this.createOverlay(base, isRaw ? "raw" : "qcow2");
  }

  /** A name that no layer has had. */
  nextName(): string {
    return `layer-${this.#nextNumber++}.img`;
  }

  /** Makes an overlay of some shape; gives its name. `bytes` unless it is as long as the layer below. */
  async createOverlay(below: string, format = "qcow2", bytes?: number): Promise<string> {
    const name = this.nextName();
    const clusters = this.#prng.pick([4 * KiB, 16 * KiB, 64 * KiB, 64 * KiB, 256 * KiB]);
    const options = [`cluster_size=${clusters}`];
    if (clusters >= 16 * KiB && this.#prng.chance(0.3)) options.push("extended_l2=on");
    const link = ["-u", "-b", below, "-F", format, "-o", options.join(",")];
    const size = String(bytes ?? this.#virtualBytes(below));
    await run("qemu-img", "create", "-q", "-f", "qcow2", ...link, this.file(name), size);
    return name;
  }

  /** Names of a chain's files, top first, as their links say. No daemon may have them. */
  async chainOf(top: string): Promise<{ name: string; format: string }[]> {
    const told = await run(
      ...["qemu-img", "info", "--backing-chain", "--output=json", "-f", "qcow2"],
      this.file(top),
    );
    const images = JSON.parse(told) as { filename: string; format: string }[];
    return images.map(({ filename, format }) => ({ name: path.basename(filename), format }));
  }

  /** How many clusters leaked. @throws when qemu-img finds anything worse */
  async leaksOf(name: string): Promise<number> {
    const { code, said } = await runAnyhow(
      ...["qemu-img", "check", "-f", "qcow2", "--output=json"],
      this.file(name),
    );
    if (code !== 0 && code !== 3)
      throw new Error(`qemu-img check ${name} ended with ${code}: ${said.trim()}`);
    return (JSON.parse(said) as { leaks?: number }).leaks ?? 0;
  }

  /** What a guest sees in an image, as a raw file outside of the folder, while `action` runs. */
  async withCopy<T>(name: string, action: (filename: string) => Promise<T>): Promise<T> {
    const copy = `${this.path}.copy`;
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", this.file(name), copy);
    try {
      return await action(copy);
    } finally {
      fs.rmSync(copy);
    }
  }

  remove(name: string): void {
    fs.rmSync(this.file(name));
  }

  /** Names of all files. */
  names(): string[] {
    return fs.readdirSync(this.path).sort();
  }

  lengthOf(name: string): number {
    return fs.statSync(this.file(name)).size;
  }

  /** Bytes that a file takes of its file system; 0 when it is gone. */
  allocatedBy(name: string): number {
    return (fs.statSync(this.file(name), { throwIfNoEntry: false })?.blocks ?? 0) * 512;
  }

  #virtualBytes(name: string): number {
    const header = Buffer.alloc(32);
    const file = fs.openSync(this.file(name), "r");
    try {
      fs.readSync(file, header, 0, header.length, 0);
    } finally {
      fs.closeSync(file);
    }
    // A raw file is as long as its disk; the magic of qcow2 is "QFI" and 0xfb, its length stands at byte 24.
    const isQcow2 = header.readUInt32BE(0) === 0x514649fb;
    return isQcow2 ? Number(header.readBigUInt64BE(24)) : fs.statSync(this.file(name)).size;
  }
}

/** Disks of the run; the chain's grows to the second length at most. */

export const CHAIN_BYTES = 160 * MiB + 1536;

export const CHAIN_BYTES_MAX = 192 * MiB;
export const PLAIN_BYTES = 64 * MiB;
