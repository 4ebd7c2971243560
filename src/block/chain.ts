// Walks along backing links, and what a chain says together about a range.
//
//   [base] <- [bottom] <- ... <- [top]     `above base`: the layers from top down to, but without, base
//   [base] <- [C] = filter <- [top]        a filter is a node of the chain, and so is the image that it shows
//
//   1. A layer that is shorter than its overlay reads as zeros past its end: what lies deeper is hidden
//      there. So the tail beyond a short layer that is above `base` is ZERO, and beyond `base` itself it is
//      nobody's (UNALLOCATED).
//   2. A layer counts as busy until what lies below it was asked: its backing link does not change in
//      between.
//   3. A filter holds nothing: it is asked, so that it may fail, and then the image that it shows is.

import { assert } from "../base/assert.ts";
import type { Completion } from "../base/completion.ts";
import { BlockError } from "../base/errors.ts";
import { ExtentKind, ExtentList, NO_HOST_OFFSET } from "./extent.ts";
import type { BlockNode } from "./node.ts";

/** Images that one chain may have; a longer one, or a cycle, is refused when it is opened. */
export const CHAIN_LENGTH_MAX = 256;

/** The next node of a chain: what a filter shows, or the backing image. */
export function nodeBelow(node: BlockNode): BlockNode | undefined {
  return node.filtered ?? node.backing;
}

/** The image that a filter shows, through any number of them; everything else is its own. */
export function imageOf(node: BlockNode): BlockNode {
  let image = node;
  for (let shown = node.filtered; shown !== undefined; shown = shown.filtered) image = shown;
  return image;
}

/** The node and all that a chain has below it: images that filters show, and backing images; top first. */
export function chainOf(top: BlockNode): BlockNode[] {
  const nodes: BlockNode[] = [];
  for (let node: BlockNode | undefined = top; node !== undefined; node = nodeBelow(node)) {
    if (nodes.length >= CHAIN_LENGTH_MAX) {
      throw new BlockError("EINVAL", `the chain of '${top.name}' has more than ${CHAIN_LENGTH_MAX} images`);
    }
    nodes.push(node);
  }
  return nodes;
}

/** The layers from `top` down to, but without, `base`; all of them where it is undefined. */
export function layersAbove(top: BlockNode, base: BlockNode | undefined): BlockNode[] {
  const nodes = chainOf(top);
  if (base === undefined) return nodes;
  const at = nodes.indexOf(base);
  if (at < 0) throw new BlockError("EINVAL", `Node '${base.name}' is not a backing image of '${top.name}'`);
  return nodes.slice(0, at);
}

/** Whether `node` is `top` or below it in its chain. */
export function isInChain(top: BlockNode, node: BlockNode): boolean {
  return chainOf(top).includes(node);
}

/** Takes extents of a chain; `depth` counts layers from the top, 0 the node that was asked. */
export interface ComposedSink {
  push(bytes: number, kind: ExtentKind, hostOffset: number, compressed: boolean, depth: number): boolean;
}

/**
 * Tells what the layers from `top` down to, but without, `base` hold of [offset, offset+bytes): DATA or ZERO
 * with the depth of the layer that decided, UNALLOCATED where none of them does (depth: the number of
 * layers). In order and without gaps; ends early when the sink wants no more. Ranges past the end of `top`
 * are told as its tail. `base` is no image that a filter above it shows: then it would be that filter.
 */
export function composedExtents(
  top: BlockNode,
  base: BlockNode | undefined,
  offset: number,
  bytes: number,
  out: ComposedSink,
): Completion {
  if (top === base) {
    out.push(bytes, ExtentKind.UNALLOCATED, NO_HOST_OFFSET, false, 0);
    return;
  }
  const walk = new ComposedWalk(base, out);
  const done = walk.layer(top, offset, bytes, 0);
  return done instanceof Promise ? done.then(() => undefined) : undefined;
}

/** A layer's own extents of one range, up to a small number: the walk asks again from where they end. */
const EXTENTS_AT_A_TIME = 64;
/** Wants nothing of what a filter tells. */
const MAY_FAIL = { push: () => false };

class ComposedWalk {
  readonly #base: BlockNode | undefined;
  readonly #out: ComposedSink;

  constructor(base: BlockNode | undefined, out: ComposedSink) {
    this.#base = base;
    this.#out = out;
  }

  /** False when the sink has enough. */
  layer(node: BlockNode, offset: number, bytes: number, depth: number): boolean | Promise<boolean> {
    let more = true;
    const done = node.hold((_driver, held) => {
      const told = this.#told(held, offset, bytes, depth);
      if (!(told instanceof Promise)) {
        more = told;
        return;
      }
      return told.then((wanted) => {
        more = wanted;
      });
    });
    return done === undefined ? more : done.then(() => more);
  }

  #told(node: BlockNode, offset: number, bytes: number, depth: number): boolean | Promise<boolean> {
    const { filtered } = node;
    if (filtered !== undefined) return this.#through(node, filtered, offset, bytes, depth);
    const inside = Math.max(0, Math.min(bytes, node.size - offset));
    const told = inside === 0 ? true : this.#inside(node, offset, inside, depth);
    if (inside === bytes) return told;
    const tail = () => this.#out.push(bytes - inside, ExtentKind.ZERO, NO_HOST_OFFSET, false, depth);
    if (told instanceof Promise) return told.then((more) => more && tail());
    return told && tail();
  }

  /** A filter is held until the image that it shows was asked. */
  #through(
    filter: BlockNode,
    image: BlockNode,
    offset: number,
    bytes: number,
    depth: number,
  ): boolean | Promise<boolean> {
    const inside = Math.max(0, Math.min(bytes, filter.size - offset));
    const asked = inside === 0 ? undefined : filter.driver.extents(offset, inside, MAY_FAIL);
    if (asked === undefined) return this.layer(image, offset, bytes, depth + 1);
    return asked.then(() => this.layer(image, offset, bytes, depth + 1));
  }

  #inside(node: BlockNode, offset: number, bytes: number, depth: number): boolean | Promise<boolean> {
    const end = offset + bytes;
    while (offset < end) {
      const list = new ExtentList(offset, EXTENTS_AT_A_TIME);
      const listed = node.driver.extents(offset, end - offset, list);
      if (listed !== undefined) return this.#afterListing(listed, node, list, offset, end, depth);
      assert(list.end > offset, "a driver tells at least one extent");
      const more = this.#compose(node, list, 0, depth);
      if (more instanceof Promise) return this.#afterComposing(more, node, list.end, end, depth);
      if (!more) return false;
      offset = list.end;
    }
    return true;
  }

  async #afterListing(
    listed: Promise<void>,
    node: BlockNode,
    list: ExtentList,
    offset: number,
    end: number,
    depth: number,
  ): Promise<boolean> {
    await listed;
    assert(list.end > offset, "a driver tells at least one extent");
    return this.#afterComposing(this.#compose(node, list, 0, depth), node, list.end, end, depth);
  }

  async #afterComposing(
    composing: boolean | Promise<boolean>,
    node: BlockNode,
    offset: number,
    end: number,
    depth: number,
  ): Promise<boolean> {
    if (!(await composing)) return false;
    return offset < end ? this.#inside(node, offset, end - offset, depth) : true;
  }

  /** Hands on what the layer decides and asks the layer below for the rest. */
  #compose(node: BlockNode, list: ExtentList, from: number, depth: number): boolean | Promise<boolean> {
    for (let i = from; i < list.extents.length; i++) {
      const { offset, bytes, kind, hostOffset, compressed } = list.extents[i]!;
      const decided = kind !== ExtentKind.UNALLOCATED;
      const below = decided ? undefined : node.backing;
      if (below === undefined || below === this.#base) {
        if (!this.#out.push(bytes, kind, hostOffset, compressed, decided ? depth : depth + 1)) return false;
        continue;
      }
      const more = this.layer(below, offset, bytes, depth + 1);
      if (more instanceof Promise) return more.then((go) => go && this.#compose(node, list, i + 1, depth));
      if (!more) return false;
    }
    return true;
  }
}
