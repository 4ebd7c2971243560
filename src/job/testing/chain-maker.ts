// Random chains of images, small enough for thousands of runs: cluster sizes from 512 bytes to 64 KiB mixed
// in one chain, versions 2 and 3, subclusters, raw bases, backing images that are shorter and longer, sizes
// that are no multiple of anything.

import path from "node:path";
import type { Prng } from "../../base/prng.ts";
import { Graph } from "../../block/graph.ts";
import type { NodeOptions } from "../../block/node-options.ts";
import type { CreateOptions } from "../../format/qcow2/create.ts";
import type { MemoryHost } from "./memory-host.ts";

export interface ChainOptions {
  /** Where the files stand; absolute names in links begin with it. */
  readonly folder?: string;
  /** Sizes that are no multiple of 512. Default true. */
  readonly oddSizes?: boolean;
  /** Sizes of clusters, one of which is that of most images; default: from 512 bytes to 64 KiB. */
  readonly units?: readonly number[];
}

const UNITS = [512, 512, 512, 1024, 1024, 4096, 4096, 4096, 16384, 65536];

export class Chain {
  readonly #host: MemoryHost;
  readonly #prng: Prng;
  readonly #folder: string;
  readonly #oddSizes: boolean;
  readonly #units: readonly number[];
  /** Path of the image that the guest writes. */
  top = "";
  #size = 0;
  #overlays = 0;
  #unit = 512;

  constructor(host: MemoryHost, prng: Prng, options: ChainOptions = {}) {
    this.#host = host;
    this.#prng = prng;
    this.#folder = options.folder ?? "/disks";
    this.#oddSizes = options.oddSizes ?? true;
    this.#units = options.units ?? UNITS;
  }

  /** Makes the images, with something in each, and tells what the topmost shows. */
  async make(): Promise<Buffer> {
    const prng = this.#prng;
    // Large clusters show little that small ones do not, and cost most of the time.
    this.#unit = prng.pick(this.#units);
    const depth = prng.between(2, 5);
    let seen: Buffer = Buffer.alloc(0);
    for (let layer = 0; layer < depth; layer++) {
      const raw = layer === 0 && prng.chance(0.4);
      const name = `${this.#folder}/${"ABCDE"[layer]}.${raw ? "raw" : "qcow2"}`;
      const size = this.#randomSize();
      if (raw) this.#host.createRaw(name, this.#scribbled(Buffer.alloc(size)));
      else await this.#createLayer(name, size);
      this.top = name;
      seen = await this.#fill(name, raw, seen);
    }
    this.#size = seen.length;
    return seen;
  }

  /** Makes an empty image whose link names `backing`. */
  async makeOverlay(backing: string, size: number): Promise<string> {
    const name = `${this.#folder}/S${this.#overlays++}.qcow2`;
    const whole = Math.ceil(size / 512) * 512;
    await this.#host.createQcow2(name, this.#createOptions(whole, backing), whole - size);
    return name;
  }

  options(name: string): NodeOptions {
    return { driver: name.endsWith(".raw") ? "raw" : "qcow2", file: { driver: "file", filename: name } };
  }

  /** A range of the disk, aligned to something or to nothing; never empty. */
  range(): [offset: number, bytes: number] {
    const prng = this.#prng;
    const unit = prng.pick([1, 512, this.#unit]);
    const offset = Math.min(this.#size - 1, prng.below(Math.ceil(this.#size / unit)) * unit);
    const wanted = prng.pick([prng.between(1, 100), 512, this.#unit, prng.between(1, 3 * this.#unit)]);
    return [offset, Math.min(this.#size - offset, Math.max(unit, wanted))];
  }

  payload(bytes: number): Buffer {
    const payload = Buffer.alloc(bytes, this.#prng.between(1, 255));
    // Marks tell the pieces of one payload apart.
    for (let at = this.#prng.below(64); at < bytes; at += 61) payload[at] = this.#prng.below(256);
    return payload;
  }

  #randomSize(): number {
    const whole = this.#prng.between(1, this.#unit > 4096 ? 4 : 24) * this.#unit;
    const rest = this.#prng.pick([0, 0, 1, 511, 512, 513, this.#unit - 1]);
    return whole + (this.#oddSizes ? rest : rest - (rest % 512));
  }

  async #createLayer(name: string, size: number): Promise<void> {
    const whole = Math.ceil(size / 512) * 512;
    await this.#host.createQcow2(name, this.#createOptions(whole, this.top), whole - size);
  }

  #createOptions(size: number, backing: string): CreateOptions {
    const prng = this.#prng;
    const clusterSize = prng.pick([512, this.#unit, this.#unit, Math.min(65536, this.#unit * 4)]);
    const version = prng.chance(0.2) ? 2 : 3;
    return {
      size,
      clusterSize,
      version,
      ...(version === 3 ? { refcountBits: prng.pick([8, 16, 16, 64]) } : {}),
      ...(version === 3 && clusterSize >= 16384 && prng.chance(0.5) ? { extendedL2: true } : {}),
      ...(version === 3 && prng.chance(0.2) ? { lazyRefcounts: true } : {}),
      ...(backing === ""
        ? {}
        : {
            backingFile: prng.chance(0.5) ? path.basename(backing) : backing,
            backingFormat: backing.endsWith(".raw") ? "raw" : "qcow2",
          }),
    };
  }

  /** Writes something into the image; what it shows afterwards, given what the one below shows. */
  async #fill(name: string, raw: boolean, below: Buffer): Promise<Buffer> {
    const graph = new Graph();
    const opener = this.#host.opener(graph);
    const node = await opener.open(this.options(name));
    const seen = Buffer.alloc(node.size);
    if (raw) {
      await node.read(0, node.size, seen, 0);
      await opener.closeUnused(node);
      return seen;
    }
    below.copy(seen);
    this.#size = node.size;
    for (let i = this.#prng.below(6); i > 0; i--) {
      const [offset, bytes] = this.range();
      if (this.#prng.chance(0.25)) {
        await node.writeZeroes(offset, bytes, 0);
        seen.fill(0, offset, offset + bytes);
      } else {
        const payload = this.payload(bytes);
        await node.write(offset, bytes, payload, 0);
        payload.copy(seen, offset);
      }
    }
    await opener.closeUnused(node);
    return seen;
  }

  #scribbled(content: Buffer): Buffer {
    for (let i = this.#prng.below(6); i > 0; i--) {
      const offset = this.#prng.below(content.length);
      this.payload(Math.min(content.length - offset, 2 * this.#unit)).copy(content, offset);
    }
    return content;
  }
}
