// Opens nodes from options: the driver, the file below, the backing chain above a base.
//
//   1. Nothing is opened that options or a backing link did not name. A backing image's format is stated, by
//      options or by the link; it is never guessed from content that a guest could have written.
//   2. A relative name in a backing link is relative to the folder of the image that holds the link.
//   3. On an error everything that was opened for the node is closed again.

import path from "node:path";
import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { CHAIN_LENGTH_MAX } from "./chain.ts";
import type { CorruptionReport, Driver, DriverHost } from "./driver.ts";
import type { Graph, NodeUse } from "./graph.ts";
import { BlockNode } from "./node.ts";

/**
 * Options of one node, in QAPI's spelling and nesting: what `blockdev-add` takes, checked against the schema.
 */
export interface NodeOptions {
  readonly driver: string;
  readonly "node-name"?: string;
  readonly "read-only"?: boolean;
  readonly "auto-read-only"?: boolean;
  readonly file?: string | NodeOptions;
  readonly backing?: string | null | NodeOptions;
  readonly [option: string]: unknown;
}

export interface OpenContext {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly logger: Logger;
  /** Who is told of damage. */
  readonly onCorruption?: ((report: CorruptionReport) => void) | undefined;
}

/** Makes the driver of a node. */
export interface DriverFactory {
  readonly driverName: string;
  /** A protocol: it has no file below it. */
  readonly leaf: boolean;
  /** Path of a leaf's file as it was named, for displays and look-ups. */
  filename?(options: NodeOptions): string;
  open(host: DriverHost, options: NodeOptions, context: OpenContext): Promise<Driver>;
}

export class NodeOpener {
  readonly graph: Graph;
  readonly #factories = new Map<string, DriverFactory>();
  readonly #logger: Logger;
  /** Who is told of damage in a node that was opened here. */
  onCorruption: ((report: CorruptionReport) => void) | undefined;

  constructor(graph: Graph, factories: readonly DriverFactory[], logger: Logger) {
    this.graph = graph;
    this.#logger = logger;
    for (const factory of factories) this.#factories.set(factory.driverName, factory);
  }

  get driverNames(): string[] {
    return [...this.#factories.keys()];
  }

  /**
   * Opens a node with all that is below and behind it, and adds it to the graph. Nobody uses it yet: the
   * caller takes hold of it at once (`graph.use`), or closes it (`closeUnused`).
   */
  open(options: NodeOptions): Promise<BlockNode> {
    return this.#open(options, { readOnly: false, autoReadOnly: false, overlays: [] });
  }

  /** Closes a node that nobody holds and that is not closed yet. */
  async closeUnused(node: BlockNode): Promise<void> {
    if (node.claims.size > 0 || this.graph.find(node.name) !== node) return;
    await this.graph.release(this.graph.use(node, { user: "nobody", role: "unused", needs: 0, shares: 15 }));
  }

  async #open(options: NodeOptions, inherited: Inherited): Promise<BlockNode> {
    const factory = this.#factories.get(options.driver);
    if (factory === undefined) throw new BlockError("EINVAL", `Unknown driver '${options.driver}'`);
    const readOnly = options["read-only"] ?? inherited.readOnly;
    const autoReadOnly = options["auto-read-only"] ?? inherited.autoReadOnly;
    const name = this.graph.reserveName(options["node-name"]);
    const undo: (() => Promise<void>)[] = [async () => this.graph.unreserveName(name)];
    try {
      const file = await this.#openFile(factory, options, { ...inherited, readOnly, autoReadOnly }, undo);
      const filename = factory.filename?.(options) ?? file?.filename ?? "";
      refuseCycle(filename, inherited.overlays);
      const node = new BlockNode({ name, filename }, file, readOnly);
      if (file !== undefined) {
        const link = this.graph.linkFile(node, file);
        undo.push(() => this.graph.release(link));
      }
      const driver = await factory.open(node, options, {
        readOnly,
        autoReadOnly,
        logger: this.#logger,
        onCorruption: (report) => this.onCorruption?.(report),
      });
      node.install(driver);
      undo.push(() => driver.close());
      await this.#openBacking(node, options, inherited.overlays, undo);
      this.graph.add(node);
      return node;
    } catch (error) {
      for (const step of undo.reverse()) await step().catch((failure) => this.#logger.warn(String(failure)));
      throw error;
    }
  }

  async #openFile(
    factory: DriverFactory,
    options: NodeOptions,
    inherited: Inherited,
    undo: (() => Promise<void>)[],
  ): Promise<BlockNode | undefined> {
    if (factory.leaf) return undefined;
    if (options.file === undefined) {
      throw new BlockError("EINVAL", `A block device must be specified for "file"`);
    }
    if (typeof options.file === "string") return this.graph.get(options.file);
    // Told before the file is opened: its lock would refuse it with words that do not say why.
    const { filename } = options.file;
    if (typeof filename === "string") refuseCycle(filename, inherited.overlays);
    const node = await this.#open(options.file, { ...inherited, overlays: [] });
    undo.push(() => this.closeUnused(node));
    return node;
  }

  async #openBacking(
    node: BlockNode,
    options: NodeOptions,
    overlays: readonly string[],
    undo: (() => Promise<void>)[],
  ): Promise<void> {
    const backing = await this.#findBacking(node, options, overlays);
    if (backing === undefined) return;
    undo.push(() => this.closeUnused(backing));
    this.graph.linkBacking(node, backing);
    undo.push(async () => {
      const link: NodeUse | undefined = this.graph.backingUse(node);
      if (link !== undefined) await this.graph.release(link);
    });
  }

  async #findBacking(node: BlockNode, options: NodeOptions, overlays: readonly string[]) {
    if (options.backing === null) return undefined;
    if (typeof options.backing === "string") {
      return options.backing === "" ? undefined : this.#backingByName(options.backing);
    }
    const above = [...overlays, path.resolve(node.filename)];
    const inherited = { readOnly: true, autoReadOnly: false, overlays: above };
    const { backingFile, backingFormat } = node.details();
    if (options.backing !== undefined) {
      // Options may name only a part; what they leave open comes from the link.
      return this.#open(withLink(options.backing, node.filename, backingFile), inherited);
    }
    if (backingFile === undefined) return undefined;
    try {
      return await this.#open(backingOptions(node.filename, backingFile, backingFormat), inherited);
    } catch (error) {
      throw backingError(error);
    }
  }

  #backingByName(name: string): BlockNode {
    try {
      return this.graph.get(name);
    } catch (error) {
      throw backingError(error);
    }
  }
}

function backingError(error: unknown): BlockError {
  const code = error instanceof BlockError ? error.code : "EIO";
  const reason = error instanceof Error ? error.message : String(error);
  return new BlockError(code, `Could not open backing file: ${reason}`, error);
}

interface Inherited {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  /** Resolved names of the images above, to notice a cycle. */
  readonly overlays: readonly string[];
}

function refuseCycle(filename: string, overlays: readonly string[]): void {
  if (filename !== "" && overlays.includes(path.resolve(filename))) {
    throw new BlockError("EINVAL", `'${filename}' is its own backing file: the chain has a cycle`);
  }
  if (overlays.length >= CHAIN_LENGTH_MAX) {
    throw new BlockError("EINVAL", `the chain has more than ${CHAIN_LENGTH_MAX} images`);
  }
}

/** The name in a backing link as a path: relative to the folder of the image that holds it. */
export function resolveBackingFile(overlayFile: string, backingFile: string): string {
  const name = backingFile.startsWith("file:") ? backingFile.slice("file:".length) : backingFile;
  if (/^[A-Za-z][A-Za-z0-9+.-]*:/.test(name)) {
    throw new BlockError(
      "ENOTSUP",
      `Unknown protocol '${name.slice(0, name.indexOf(":"))}' in backing file '${backingFile}'`,
    );
  }
  return path.isAbsolute(name) ? name : path.join(path.dirname(overlayFile), name);
}

/** Options for the image that a backing link names. */
export function backingOptions(
  overlayFile: string,
  backingFile: string,
  format: string | undefined,
): NodeOptions {
  if (backingFile.startsWith("json:")) return jsonOptions(backingFile, format);
  const filename = resolveBackingFile(overlayFile, backingFile);
  if (format === undefined) {
    throw new BlockError(
      "IMAGE_FORMAT",
      `the format of backing file '${backingFile}' is not stated in '${overlayFile}', and it is not ` +
        `guessed: state it with 'qemu-img rebase -u -b ${backingFile} -F FORMAT ${overlayFile}', ` +
        "or in the options ('backing')",
    );
  }
  return { driver: format, file: { driver: "file", filename } };
}

function withLink(options: NodeOptions, overlayFile: string, backingFile: string | undefined): NodeOptions {
  if (options.file !== undefined || options.driver === "file" || backingFile === undefined) return options;
  return { ...options, file: { driver: "file", filename: resolveBackingFile(overlayFile, backingFile) } };
}

function jsonOptions(link: string, format: string | undefined): NodeOptions {
  let parsed: unknown;
  try {
    parsed = JSON.parse(link.slice("json:".length));
  } catch (error) {
    throw new BlockError(
      "IMAGE_CORRUPT",
      `Could not parse the JSON options of backing file '${link}'`,
      error,
    );
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new BlockError("IMAGE_CORRUPT", `Invalid JSON object given: '${link}'`);
  }
  const nested = nest(parsed as Record<string, unknown>);
  const driver = nested["driver"] ?? format;
  if (typeof driver !== "string") {
    throw new BlockError("IMAGE_FORMAT", `backing file '${link}' names no driver`);
  }
  if (driver === "file" && format !== undefined && format !== "file") {
    // The JSON names the protocol only; the format stands beside it.
    return { driver: format, file: { ...nested, driver: "file" } };
  }
  return { ...nested, driver } as NodeOptions;
}

/** `{"file.filename": x}` means `{"file": {"filename": x}}` in a json: name. */
function nest(flat: Record<string, unknown>): Record<string, unknown> {
  const nested: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(flat)) {
    const parts = key.split(".");
    // No option is called so; as a key it would be the object's own prototype.
    if (parts.includes("__proto__")) continue;
    let at = nested;
    for (const part of parts.slice(0, -1)) {
      if (typeof at[part] !== "object" || at[part] === null) at[part] = {};
      at = at[part] as Record<string, unknown>;
    }
    const last = parts[parts.length - 1]!;
    at[last] =
      typeof value === "object" && value !== null && !Array.isArray(value)
        ? nest(value as Record<string, unknown>)
        : value;
  }
  return nested;
}
