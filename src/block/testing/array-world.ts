// Chains of array images in a graph, ready for a test: made in one line, read and compared in another.

import type { Prng } from "../../base/prng.ts";
import { chainOf } from "../chain.ts";
import { Graph } from "../graph.ts";
import { BlockNode } from "../node.ts";
import type { NodeUse, UseRequest } from "../node-use.ts";
import { ALL_PERMISSIONS, Permission } from "../permissions.ts";
import { ArrayDriver, type ArrayOptions, FlatDriver } from "./array-driver.ts";
import { FilterDriver } from "./filter-driver.ts";

export interface ImageRequest extends Omit<ArrayOptions, "writable"> {
  readonly backing?: BlockNode;
  readonly readOnly?: boolean;
  /** No backing link, as raw. */
  readonly flat?: boolean;
}

export class ArrayWorld {
  readonly graph = new Graph();
  readonly drivers = new Map<string, ArrayDriver>();
  /** Every node that ever was, also those that are closed. */
  readonly nodes = new Map<string, BlockNode>();

  image(name: string, request: ImageRequest): BlockNode {
    this.graph.reserveName(name);
    const node = new BlockNode(
      { name, filename: `/images/${name}.img` },
      undefined,
      request.readOnly ?? false,
    );
    const options = {
      ...(request.backing === undefined
        ? {}
        : { backingFile: `${request.backing.name}.img`, backingFormat: request.backing.driverName }),
      ...request,
      writable: !(request.readOnly ?? false),
    };
    const driver = request.flat === true ? new FlatDriver(node, options) : new ArrayDriver(node, options);
    node.install(driver);
    if (request.backing !== undefined) this.graph.linkBacking(node, request.backing);
    this.graph.add(node);
    this.drivers.set(name, driver);
    this.nodes.set(name, node);
    return node;
  }

  /** A filter that shows `image`. */
  filter(name: string, image: BlockNode, readOnly = image.readOnly): BlockNode {
    this.graph.reserveName(name);
    const node = new BlockNode({ name, filename: image.filename }, image, readOnly);
    this.graph.linkFile(node, image, { role: "image" });
    node.install(new FilterDriver(node));
    this.graph.add(node);
    return node;
  }

  /** A chain "A B C": A is the base; the last one is writable, and held by a guest. */
  chain(names: string, options: ImageRequest): { nodes: BlockNode[]; guest: NodeUse } {
    const nodes: BlockNode[] = [];
    const all = names.split(" ");
    for (const name of all) {
      const backing = nodes[nodes.length - 1];
      const readOnly = name !== all[all.length - 1];
      nodes.push(this.image(name, { ...options, ...(backing === undefined ? {} : { backing }), readOnly }));
    }
    return { nodes, guest: this.guest(nodes[nodes.length - 1]!) };
  }

  /** Somebody who reads and writes the disk, as an export does. */
  guest(node: BlockNode, more: Partial<UseRequest> = {}): NodeUse {
    return this.graph.use(node, {
      user: "an unnamed block device",
      role: "root",
      needs: Permission.CONSISTENT_READ | Permission.WRITE,
      shares: ALL_PERMISSIONS & ~Permission.RESIZE,
      ...more,
    });
  }

  driver(name: string): ArrayDriver {
    return this.drivers.get(name)!;
  }

  /** Fills clusters of an image with its name's first letter, or `byte`. */
  fill(name: string, first: number, count: number, byte = name.charCodeAt(0)): void {
    const driver = this.driver(name);
    for (let index = first; index < first + count; index++) {
      driver.clusters[index] = Buffer.alloc(driver.clusterSize, byte);
    }
  }

  /** Gives an image random clusters: data, zero or none. */
  scatter(name: string, prng: Prng): void {
    const driver = this.driver(name);
    for (let index = 0; index < driver.clusters.length; index++) {
      const dice = prng.below(4);
      if (dice === 0) driver.clusters[index] = "zero";
      else if (dice === 1) driver.clusters[index] = Buffer.alloc(driver.clusterSize, prng.between(1, 255));
    }
  }

  /** "[A] <- [B] <- [C]", as a person draws it. */
  drawn(top: BlockNode): string {
    const names = chainOf(top).map((node) => `[${node.name}]`);
    return names.reverse().join(" <- ");
  }

  /** Nothing is locked, in flight, waiting or blocked anywhere. Words for what is; empty when all is well. */
  leftovers(): string[] {
    const found: string[] = [];
    for (const [name, node] of this.nodes) {
      const { locks, closed } = this.driver(name);
      if (locks.held + locks.waiting > 0) found.push(`${name}: ${locks.held} cluster locks`);
      if (node.inFlight > 0) found.push(`${name}: ${node.inFlight} in flight`);
      if (!closed && node.isQuiesced) found.push(`${name}: quiesced`);
      if (node.blockers.size > 0) found.push(`${name}: blocked`);
      if (closed && node.claims.size > 0) found.push(`${name}: closed, but claimed`);
      if (!closed && this.graph.find(name) !== node) found.push(`${name}: open, but not in the graph`);
    }
    return found;
  }
}

/** What a reader sees in the whole disk. */
export async function contentOf(node: BlockNode): Promise<Buffer> {
  const content = Buffer.alloc(node.size);
  await node.read(0, node.size, content, 0);
  return content;
}
