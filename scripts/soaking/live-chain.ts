// The chain of the running daemon: what it is, how it gets longer, and how it gets rid of what it dropped.

import path from "node:path";
import type { Prng } from "../../src/base/prng.ts";
import type { ImageFolder } from "./image-folder.ts";
import type { SoakedDaemon } from "./soaked-daemon.ts";

export const CHAIN_EXPORT = "chain";

/** An image of the chain: its node and the name of its file. */
export interface Layer {
  readonly node: string;
  readonly name: string;
}

const FORMATS: readonly string[] = ["qcow2", "raw"];
/** Errors that a faulty overlay has in store. */
const FAULTS_MAX = 3;
/** Writes before the first, and between one and the next. */
const WRITES_BETWEEN_FAULTS = 12;
export const WRITES_WITH_FAULTS = FAULTS_MAX * WRITES_BETWEEN_FAULTS;

export class LiveChain {
  /** Name of the file that the guest writes to. */
  top: string;
  readonly #daemon: SoakedDaemon;
  readonly #folder: ImageFolder;
  readonly #prng: Prng;

  constructor(daemon: SoakedDaemon, folder: ImageFolder, top: string, prng: Prng) {
    this.#daemon = daemon;
    this.#folder = folder;
    this.top = top;
    this.#prng = prng;
  }

  /** Top first. */
  async layers(): Promise<Layer[]> {
    const nodes = await this.#nodes();
    const layers: Layer[] = [];
    let file: string | undefined = this.#folder.file(this.top);
    while (file !== undefined) {
      const found: NodeInfo | undefined = nodes.find(
        (node) => FORMATS.includes(node.drv) && node.file === file,
      );
      if (found === undefined) throw new Error(`no node has the file ${file}: ${JSON.stringify(nodes)}`);
      layers.push({ node: found["node-name"], name: path.basename(file) });
      file = found.backing_file;
    }
    return layers;
  }

  /** @throws when the chain is not as the run has made it */
  async expectLayers(names: readonly string[], after: string): Promise<void> {
    const found = (await this.layers()).map(({ name }) => name);
    if (found.join() !== names.join()) {
      throw new Error(`after ${after} the chain is ${found.join(" -> ")}, not ${names.join(" -> ")}`);
    }
  }

  /** Puts an overlay on top: one that the daemon makes, or one that is there. */
  async snapshot(kind: "any" | "added" = "any"): Promise<void> {
    const [active] = await this.layers();
    let name: string;
    if (kind === "any" && this.#prng.chance(0.5)) {
      name = this.#folder.nextName();
      await this.#daemon.qmp.execute("blockdev-snapshot-sync", {
        "node-name": active!.node,
        "snapshot-file": this.#folder.file(name),
        "snapshot-node-name": nodeName(name),
        format: "qcow2",
      });
    } else {
      name = await this.#folder.createOverlay(this.top);
      const file = { driver: "file", filename: this.#folder.file(name), discard: "unmap" };
      await this.#putOnTop(active!, name, file);
    }
    this.top = name;
    // A merge further down may end at this moment.
    const [top, below] = await this.layers();
    if (top?.name !== name || below?.name !== active!.name) {
      throw new Error(`after a snapshot ${name} lies on ${below?.name}, not on ${active!.name}`);
    }
  }

  /**
   * Puts an overlay on top some of whose requests fail, until so many writes as WRITES_WITH_FAULTS are done.
   */
  async faultySnapshot(): Promise<void> {
    const [active] = await this.layers();
    const name = await this.#folder.createOverlay(this.top);
    const faults = this.#prng.between(1, FAULTS_MAX);
    const image = { driver: "file", filename: this.#folder.file(name), discard: "unmap" };
    await this.#putOnTop(active!, name, { driver: "blkdebug", image, ...this.#rules(faults) });
    this.top = name;
  }

  /** Makes the disk longer: nobody may be connected to its export. */
  async grow(bytes: number): Promise<void> {
    const { qmp, events } = this.#daemon;
    // An export holds the length of its disk; only a node of the monitor outlives its export.
    await this.snapshot("added");
    const [active] = await this.layers();
    const from = events.length;
    await qmp.execute("block-export-del", { id: CHAIN_EXPORT });
    await eventually(
      () => events.slice(from).some(({ name, data }) => isDeletion(name, data)),
      "the export is not deleted",
    );
    await qmp.execute("block_resize", { "node-name": active!.node, size: bytes });
    await qmp.execute("block-export-add", {
      type: "nbd",
      id: CHAIN_EXPORT,
      name: CHAIN_EXPORT,
      "node-name": active!.node,
      writable: true,
    });
  }

  /** Deletes the nodes and files that a merge has dropped. */
  async dispose(dropped: readonly Layer[]): Promise<void> {
    for (const { node, name } of dropped) {
      const isThere = (await this.#nodes()).some((each) => each["node-name"] === node);
      // Who named it at the start or added it holds it; the others go by themselves.
      if (isThere) await this.#daemon.qmp.execute("blockdev-del", { "node-name": node });
      this.#folder.remove(name);
    }
  }

  async #putOnTop(active: Layer, name: string, file: Record<string, unknown>): Promise<void> {
    const { qmp } = this.#daemon;
    const node = nodeName(name);
    await qmp.execute("blockdev-add", {
      driver: "qcow2",
      "node-name": node,
      discard: "unmap",
      file,
      backing: null,
    });
    await qmp.execute("blockdev-snapshot", { node: active.node, overlay: node });
  }

  /** Each write of data moves on to the next state; in some of them a request fails, once. */
  #rules(faults: number): Record<string, unknown> {
    const states = faults * WRITES_BETWEEN_FAULTS;
    return {
      "set-state": Array.from({ length: states }, (_, state) => ({
        event: "write_aio",
        state: state + 1,
        new_state: state + 2,
      })),
      "inject-error": Array.from({ length: faults }, (_, fault) => ({
        ...this.#prng.pick([
          { event: "write_aio", iotype: "write" },
          { event: "read_aio", iotype: "read" },
        ]),
        state: this.#prng.between(2, WRITES_BETWEEN_FAULTS) + fault * WRITES_BETWEEN_FAULTS,
        errno: this.#prng.pick([5, 28]),
        once: true,
      })),
    };
  }

  async #nodes(): Promise<NodeInfo[]> {
    return (await this.#daemon.qmp.execute("query-named-block-nodes", { flat: true })) as NodeInfo[];
  }
}

interface NodeInfo {
  readonly "node-name": string;
  readonly drv: string;
  readonly file: string;
  readonly backing_file?: string;
}

/** Options that open a chain: each layer named, or the rest by the links of the top. */
export function chainOptions(
  folder: ImageFolder,
  layers: readonly { name: string; format: string }[],
  how: "named" | "linked",
): string[] {
  const opened = how === "named" ? layers : layers.slice(0, 1);
  const nodes = opened.map(({ name, format }, index) => {
    const below = layers[index + 1];
    const access = index === 0 ? "discard=unmap,file.discard=unmap" : "read-only=on";
    const file = `file.driver=file,file.filename=${folder.file(name)}`;
    const backing = how === "named" && below !== undefined ? `,backing=${nodeName(below.name)}` : "";
    return `driver=${format},node-name=${nodeName(name)},${access},${file}${backing}`;
  });
  return [...nodes.reverse().flatMap((node) => ["--blockdev", node]), ...exportOptions(layers[0]!.name)];
}

function exportOptions(top: string): string[] {
  const names = `id=${CHAIN_EXPORT},name=${CHAIN_EXPORT},node-name=${nodeName(top)}`;
  return ["--export", `type=nbd,${names},writable=on`];
}

function nodeName(file: string): string {
  return path.parse(file).name;
}

function isDeletion(name: string, data: Record<string, unknown>): boolean {
  return name === "BLOCK_EXPORT_DELETED" && data["id"] === CHAIN_EXPORT;
}

const PATIENCE_MS = 60_000;

/** Looks again and again. @throws when it does not become true in a minute */
export async function eventually(
  isTrue: () => boolean | Promise<boolean>,
  otherwise: string,
  patienceMs = PATIENCE_MS,
): Promise<void> {
  const start = performance.now();
  while (!(await isTrue())) {
    if (performance.now() - start > patienceMs) throw new Error(`${otherwise} after ${patienceMs / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
