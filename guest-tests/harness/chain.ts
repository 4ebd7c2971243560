// A chain of images made by the reference's own tools, and copies of what a guest sees in its layers.
//
//   [file-A.img] <- [file-B.img] <- [file-C.img] <- [file-D.img] <- [file-E.img]
//
// Each layer holds writes of its own at random places (ends on 512 bytes, not on clusters), zeros and
// discarded clusters. The bytes of a write differ from sector to sector, so that anything put in the wrong
// place shows.

import { copyFileSync, renameSync, writeFileSync } from "node:fs";
import path from "node:path";
import { Prng } from "../../src/base/prng.ts";
import { KiB, MiB } from "../../src/base/units.ts";
import { IS_REFERENCE } from "./daemon.ts";
import { run, runAnyhow, ToolError } from "./tool.ts";

export interface ChainPlan {
  /** Format of the base; the overlays are qcow2. */
  readonly base?: "raw" | "qcow2";
  readonly layers?: number;
  /** Length of the disk; no multiple of a cluster unless told otherwise. */
  readonly bytes?: number;
  /** What each layer holds of its own, about. */
  readonly bytesPerLayer?: number;
  readonly seed?: number;
  /** Further options of `qemu-img create -o` for the overlays. */
  readonly options?: string;
}

const LARGEST_WRITE = MiB;

export class Chain {
  readonly directory: string;
  readonly bytes: number;
  readonly baseFormat: "raw" | "qcow2";
  /** Letters of the layers, base first. */
  readonly letters: readonly string[];
  #copies = 0;

  private constructor(directory: string, plan: ChainPlan) {
    this.directory = directory;
    this.bytes = plan.bytes ?? 24 * MiB + 1536;
    this.baseFormat = plan.base ?? "qcow2";
    this.letters = [..."ABCDEFGHIJ".slice(0, plan.layers ?? 5)];
  }

  /** Makes the images in `directory`, linked by relative names. */
  static async build(directory: string, plan: ChainPlan = {}): Promise<Chain> {
    const chain = new Chain(directory, plan);
    const prng = new Prng(plan.seed ?? 1);
    for (const letter of chain.letters) {
      await chain.#create(letter, plan.options);
      await chain.#fill(letter, prng, plan.bytesPerLayer ?? 3 * MiB);
    }
    return chain;
  }

  /** Copies the images into another directory, where they are a chain again. */
  async cloneTo(directory: string): Promise<Chain> {
    const clone = new Chain(directory, {
      base: this.baseFormat,
      layers: this.letters.length,
      bytes: this.bytes,
    });
    for (const letter of this.letters) copyFileSync(this.file(letter), clone.file(letter));
    if (!IS_REFERENCE) return clone;
    for (const [index, letter] of this.letters.entries()) {
      if (index === 0) continue;
      const below = this.letters[index - 1]!;
      const link = ["-b", clone.file(below), "-F", clone.format(below)];
      await run("qemu-img", "rebase", "-u", "-f", "qcow2", ...link, clone.file(letter));
    }
    return clone;
  }

  /** Packs what a layer holds of its own into compressed clusters. */
  async compress(letter: string): Promise<void> {
    const packed = path.join(this.directory, "packed");
    const below = this.letters[this.letters.indexOf(letter) - 1];
    const link = below === undefined ? [] : ["-B", this.file(below), "-F", this.format(below)];
    await run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", ...link, this.file(letter), packed);
    renameSync(packed, this.file(letter));
  }

  /** Letter of the active image. */
  get top(): string {
    return this.letters.at(-1)!;
  }

  file(letter: string): string {
    return path.join(this.directory, `file-${letter}.img`);
  }

  format(letter: string): "raw" | "qcow2" {
    return letter === "A" ? this.baseFormat : "qcow2";
  }

  /**
   * Writes what a guest sees in this layer now into a raw file; gives its name. No daemon may have the chain.
   */
  async copyOf(letter: string): Promise<string> {
    const copy = path.join(this.directory, `copy-${++this.#copies}-of-${letter}.raw`);
    await run("qemu-img", "convert", "-O", "raw", "-f", this.format(letter), this.file(letter), copy);
    return copy;
  }

  /**
   * Daemon arguments that open every layer as a node of its own, named by `nodeName`, the top for writing.
   * The links between them are stated in the options.
   */
  nodeArguments(nodeName: (letter: string) => string = (letter) => letter): string[] {
    return this.letters.flatMap((letter, index) => {
      const backing = index === 0 ? [] : [`backing=${nodeName(this.letters[index - 1]!)}`];
      if (index === 0 && this.format(letter) === "qcow2") backing.push("backing=");
      const rights = letter === this.top ? "discard=unmap,file.discard=unmap" : "read-only=on";
      const file = `file.driver=file,file.filename=${this.file(letter)}`;
      const parts = [
        `driver=${this.format(letter)}`,
        `node-name=${nodeName(letter)}`,
        rights,
        file,
        ...backing,
      ];
      return ["--blockdev", parts.filter((part) => part !== "backing=").join(",")];
    });
  }

  /** Daemon arguments that open the top alone; the rest follows from the links in the images. */
  linkedArguments(nodeName: string, letter = this.top): string[] {
    const file = `file.driver=file,file.filename=${this.file(letter)}`;
    return ["--blockdev", `driver=${this.format(letter)},node-name=${nodeName},discard=unmap,${file}`];
  }

  async #create(letter: string, options: string | undefined): Promise<void> {
    const index = this.letters.indexOf(letter);
    const args = ["create", "-q", "-f", this.format(letter)];
    if (index > 0) {
      const below = this.letters[index - 1]!;
      // The reference writes a json: link that nobody can open over nodes whose links are relative.
      const link = IS_REFERENCE ? this.file(below) : `file-${below}.img`;
      args.push("-b", link, "-F", this.format(below));
      if (options !== undefined) args.push("-o", options);
    }
    await run("qemu-img", ...args, this.file(letter), String(this.bytes));
  }

  async #fill(letter: string, prng: Prng, budget: number): Promise<void> {
    const pattern = path.join(this.directory, "pattern");
    writeFileSync(pattern, patternBytes(prng));
    const commands: string[] = [];
    const place = (bytesMax: number) => {
      const bytes = prng.between(1, bytesMax / 512) * 512;
      return `${prng.below((this.bytes - bytes) / 512) * 512} ${bytes}`;
    };
    const largest = Math.min(LARGEST_WRITE, budget / 2);
    for (let left = budget; left > 0; ) {
      const where = place(largest);
      commands.push(`write -q -s ${pattern} ${where}`);
      left -= Number(where.split(" ")[1]);
    }
    if (letter !== "A") {
      commands.push(`write -q -z ${place(256 * KiB)}`, `write -q -z -u ${place(256 * KiB)}`);
      commands.push(`discard -q ${place(512 * KiB)}`);
    }
    // The end of the disk is where lengths go wrong, so the layers have something to say about it too.
    if (prng.chance(0.5)) commands.push(`write -q -s ${pattern} ${this.bytes - 1024} 1024`);
    const args = commands.flatMap((command) => ["-c", command]);
    await run("qemu-io", "-f", this.format(letter), ...args, this.file(letter));
  }
}

/** A prime number of sectors, each of them different: shifted by whole clusters it never fits. */
function patternBytes(prng: Prng): Buffer {
  const pattern = Buffer.alloc(127 * 512);
  for (let at = 0; at < pattern.length; at += 4) pattern.writeUInt32LE(prng.below(2 ** 32), at);
  return pattern;
}

/** File names (without folders) of the chain of `file`, top first, as its links on disk say. */
export async function linksOnDisk(file: string): Promise<string[]> {
  const told = await run("qemu-img", "info", "-U", "--backing-chain", "--output=json", file);
  return (JSON.parse(told) as { filename: string }[]).map((image) => path.basename(image.filename));
}

/** The same as letters of a Chain, base first: "A B D E". */
export async function lettersOnDisk(file: string): Promise<string> {
  const names = await linksOnDisk(file);
  return names
    .reverse()
    .map((name) => name.replace(/^file-|\.img$/g, ""))
    .join(" ");
}

/**
 * @throws ToolError when the two images do not read the same. Either may be an NBD URI; `format` is the first
 * one's.
 */
export async function compareImages(image: string, copy: string, format = "raw"): Promise<void> {
  await run("qemu-img", "compare", "-U", "-f", format, "-F", "raw", image, copy);
}

/** The image checks clean, leaks included. */
export async function checkClean(file: string, format = "qcow2"): Promise<void> {
  await run("qemu-img", "check", "-q", "-f", format, file);
}

/** The image has no errors; leaked clusters are allowed. Gives how many there are. */
export async function checkForErrors(file: string): Promise<number> {
  const outcome = await runAnyhow("qemu-img", "check", "-f", "qcow2", "--output=json", file);
  if (outcome.code !== 0 && outcome.code !== 3) throw new ToolError(`qemu-img check ${file}`, outcome);
  return (JSON.parse(outcome.stdout) as { leaks?: number }).leaks ?? 0;
}
