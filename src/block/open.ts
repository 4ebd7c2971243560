// Opens nodes from options: the driver, the file below, the backing chain above a base.
//
//   1. Nothing is opened that options or a backing link did not name. A backing image's format is stated, by
//      options or by the link; it is never guessed from content that a guest could have written.
//   2. What a link in an image names passes the rules for links (link-options.ts, backing-roots.ts) first.
//   3. On an error everything that was opened for the node is closed again.

import path from "node:path";
import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { BackingRoots, NamedFile } from "./backing-roots.ts";
import { CHAIN_LENGTH_MAX } from "./chain.ts";
import type { CorruptionReport, Driver, DriverHost } from "./driver.ts";
import type { Graph } from "./graph.ts";
import { asLinked, backingOptions, filenamesIn, withLink } from "./link-options.ts";
import { BlockNode } from "./node.ts";
import type { NodeOptions } from "./node-options.ts";
import type { NodeUse } from "./node-use.ts";

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
  /** The option that names the node below. Default "file". */
  readonly fileOption?: "file" | "image";
  /** What the node needs of the one below, and denies to others, beyond what its driver must. */
  filePermissions?(options: NodeOptions): { readonly takes: number; readonly denies: number };
  /** Path of a leaf's file as it was named, for displays and look-ups. */
  filename?(options: NodeOptions): string;
  open(host: DriverHost, options: NodeOptions, context: OpenContext): Promise<Driver>;
}

/** What is asked of a link in an image before what it names is opened. */
export interface LinkRules {
  /** Where it may name files; undefined: anywhere. */
  readonly roots?: BackingRoots | undefined;
  /** Checks the options of a `json:` name. @throws BlockError */
  readonly checkOptions?: (options: NodeOptions) => NodeOptions;
}

export class NodeOpener {
  readonly graph: Graph;
  readonly #factories = new Map<string, DriverFactory>();
  readonly #logger: Logger;
  readonly #links: LinkRules;
  /** Who is told of damage in a node that was opened here. */
  onCorruption: ((report: CorruptionReport) => void) | undefined;

  constructor(graph: Graph, factories: readonly DriverFactory[], logger: Logger, links: LinkRules = {}) {
    this.graph = graph;
    this.#links = links;
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
    const above = { overlays: [], home: undefined, opened: { nodes: 0 } };
    return this.#open(options, { readOnly: false, autoReadOnly: false, ...above });
  }

  /**
   * Refuses a link that is to be written to `image` where opening it would refuse it.
   * @throws BlockError
   */
  refuseLink(image: BlockNode, link: string, format: string | undefined): void {
    if (this.#links.roots === undefined || link === "") return;
    this.#linkedOptions(image.filename, link, format ?? "raw", path.dirname(image.filename));
  }

  /** Closes a node that nobody holds and that is not closed yet. */
  async closeUnused(node: BlockNode): Promise<void> {
    if (node.claims.size > 0 || this.graph.find(node.name) !== node) return;
    await this.graph.release(this.graph.use(node, { user: "nobody", role: "unused", needs: 0, shares: 15 }));
  }

  async #open(options: NodeOptions, inherited: Inherited): Promise<BlockNode> {
    const factory = this.#factories.get(options.driver);
    if (factory === undefined) throw new BlockError("EINVAL", `Unknown driver '${options.driver}'`);
    if (++inherited.opened.nodes > NODES_MAX) {
      throw new BlockError("EINVAL", `the chain has more than ${NODES_MAX} nodes`);
    }
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
        const { fileOption: role = "file" } = factory;
        const link = this.graph.linkFile(node, file, { role, ...factory.filePermissions?.(options) });
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
      const home = inherited.home ?? (filename === "" ? undefined : path.dirname(filename));
      await this.#openBacking(node, options, { ...inherited, home }, undo);
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
    const { fileOption = "file" } = factory;
    const file = options[fileOption];
    if (file === undefined) {
      throw new BlockError("EINVAL", `A block device must be specified for "${fileOption}"`);
    }
    if (typeof file === "string") return this.graph.get(file);
    // Told before the file is opened: its lock would refuse it with words that do not say why.
    const { filename } = file;
    if (typeof filename === "string") refuseCycle(filename, inherited.overlays);
    const node = await this.#open(file, inherited);
    undo.push(() => this.closeUnused(node));
    return node;
  }

  async #openBacking(
    node: BlockNode,
    options: NodeOptions,
    above: Above,
    undo: (() => Promise<void>)[],
  ): Promise<void> {
    const backing = await this.#findBacking(node, options, above);
    if (backing === undefined) return;
    undo.push(() => this.closeUnused(backing));
    this.graph.linkBacking(node, backing);
    undo.push(async () => {
      const link: NodeUse | undefined = this.graph.backingUse(node);
      if (link !== undefined) await this.graph.release(link);
    });
  }

  async #findBacking(node: BlockNode, options: NodeOptions, { overlays, home, opened }: Above) {
    if (options.backing === null) return undefined;
    if (typeof options.backing === "string") {
      return options.backing === "" ? undefined : this.#backingByName(options.backing);
    }
    const above = [...overlays, path.resolve(node.filename)];
    const inherited = { readOnly: true, autoReadOnly: false, overlays: above, opened };
    const { backingFile, backingFormat } = node.details();
    if (options.backing !== undefined) {
      // Options may name only a part; what they leave open comes from the link.
      const whole = withLink(options.backing, node.filename, backingFile);
      if (whole === options.backing) return this.#open(whole, { ...inherited, home: undefined });
      this.#refuseOutside(whole, { image: node.filename, link: backingFile!, home });
      return this.#open(whole, { ...inherited, home });
    }
    if (backingFile === undefined) return undefined;
    try {
      const linked = this.#linkedOptions(node.filename, backingFile, backingFormat, home);
      return await this.#open(linked, { ...inherited, home });
    } catch (error) {
      throw backingError(error);
    }
  }

  /** What a link in an image means, if it may mean that. @throws BlockError */
  #linkedOptions(
    image: string,
    link: string,
    format: string | undefined,
    home: string | undefined,
  ): NodeOptions {
    const linked = asLinked(backingOptions(image, link, format), link);
    const checked = this.#links.checkOptions?.(linked) ?? linked;
    this.#refuseOutside(checked, { image, link, home });
    return checked;
  }

  #refuseOutside(options: NodeOptions, named: NamedFile): void {
    for (const filename of filenamesIn(options)) this.#links.roots?.refuseOutside(filename, named);
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

/** What is above a node. */
interface Above {
  /** Resolved names of the images, to notice a cycle. */
  readonly overlays: readonly string[];
  /** Folder of the image that the user named, where this one was named by a link. */
  readonly home: string | undefined;
  /** How many were opened so far. */
  readonly opened: { nodes: number };
}

/**
 * Nodes that one opening may make. Where an image stands in the virtual disk of another one, both may name
 * backing files, and a few links would make thousands.
 */
const NODES_MAX = 8 * CHAIN_LENGTH_MAX;

interface Inherited extends Above {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
}

function refuseCycle(filename: string, overlays: readonly string[]): void {
  if (filename !== "" && overlays.includes(path.resolve(filename))) {
    throw new BlockError("EINVAL", `'${filename}' is its own backing file: the chain has a cycle`);
  }
  if (overlays.length >= CHAIN_LENGTH_MAX) {
    throw new BlockError("EINVAL", `the chain has more than ${CHAIN_LENGTH_MAX} images`);
  }
}
