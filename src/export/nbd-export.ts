// A node offered to NBD clients: the node's door in the shape that the NBD server wants.
//
//   1. The use is asked for its node at every request: a live snapshot moves it to another one.
//   2. A status is composed over the whole chain; zeros that still have their space are no hole.

import type { LentData, NbdBackend, StatusSink } from "../../nbd/backend.ts";
import { StatusFlags } from "../../nbd/backend.ts";
import type { Completion } from "../base/completion.ts";
import { nbdErrno } from "../base/errors.ts";
import { MiB } from "../base/units.ts";
import { composedExtents } from "../block/chain.ts";
import { WriteFlags } from "../block/driver.ts";
import { ExtentKind, NO_HOST_OFFSET } from "../block/extent.ts";
import type { Graph } from "../block/graph.ts";
import { Loan } from "../block/loan.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeUse } from "../block/node-use.ts";
import { ALL_PERMISSIONS, Permission } from "../block/permissions.ts";

export const BASE_ALLOCATION = "base:allocation";
export const ALLOCATION_DEPTH = "qemu:allocation-depth";

export interface NbdExportSettings {
  readonly writable: boolean;
  readonly description?: string | undefined;
  /** Whether qemu:allocation-depth is offered. */
  readonly allocationDepth: boolean;
}

/** Largest payload, as QEMU's: NBD_MAX_BUFFER_SIZE. */
const PAYLOAD_BYTES_MAX = 32 * MiB;

export class NbdExport implements NbdBackend {
  readonly readOnly: boolean;
  readonly description: string | undefined;
  readonly multiConn = true;
  readonly contexts: readonly string[];
  readonly #graph: Graph;
  readonly #use: NodeUse;

  /** Takes hold of `node`. @throws BlockError EPERM when it is read-only and `writable` is asked for */
  constructor(graph: Graph, node: BlockNode, settings: NbdExportSettings) {
    this.readOnly = !settings.writable;
    this.description = settings.description;
    this.contexts = settings.allocationDepth ? [ALLOCATION_DEPTH] : [];
    this.#graph = graph;
    this.#use = graph.use(node, {
      user: "an unnamed block device",
      role: "root",
      needs: Permission.CONSISTENT_READ | (settings.writable ? Permission.WRITE : 0),
      shares: ALL_PERMISSIONS & ~Permission.RESIZE,
    });
  }

  /** The node that is served now. */
  get node(): BlockNode {
    return this.#use.node;
  }

  /** Lets go of the node; the last one to do so closes it. */
  release(): Promise<void> {
    return this.#graph.release(this.#use);
  }

  get size(): number {
    return this.#use.node.size;
  }

  get blockSize() {
    const preferred = Math.min(Math.max(this.#use.node.driver.clusterSize, 4096), PAYLOAD_BYTES_MAX);
    return { minimum: 1, preferred, maximum: PAYLOAD_BYTES_MAX };
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    this.#graph.guestRequests++;
    return this.#use.node.read(offset, bytes, buffer, at);
  }

  lend(offset: number, bytes: number): LentData | undefined | Promise<LentData | undefined> {
    const loan = new Loan();
    if (!this.#use.node.lend(offset, bytes, loan)) return undefined;
    this.#graph.guestRequests++;
    return loan.collect();
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number, fua: boolean): Completion {
    this.#graph.guestRequests++;
    return this.#use.node.write(offset, bytes, buffer, at, fua ? WriteFlags.FUA : 0);
  }

  writeZeroes(
    offset: number,
    bytes: number,
    options: { readonly fua: boolean; readonly mayUnmap: boolean; readonly fastOnly: boolean },
  ): Completion {
    this.#graph.guestRequests++;
    const flags =
      (options.fua ? WriteFlags.FUA : 0) |
      (options.mayUnmap ? WriteFlags.MAY_UNMAP : 0) |
      (options.fastOnly ? WriteFlags.NO_FALLBACK : 0);
    return this.#use.node.writeZeroes(offset, bytes, flags);
  }

  trim(offset: number, bytes: number, fua: boolean): Completion {
    this.#graph.guestRequests++;
    return this.#use.node.discard(offset, bytes, fua ? WriteFlags.FUA : 0);
  }

  flush(): Completion {
    return this.#use.node.flush();
  }

  cache(_offset: number, _bytes: number): Completion {
    // The host's page cache reads ahead by itself; the command is a hint.
  }

  status(context: string, offset: number, bytes: number, sink: StatusSink): Completion {
    const tell = context === ALLOCATION_DEPTH ? depthFlags : allocationFlags;
    const merged = new MergedStatus(sink);
    const done = composedExtents(this.#use.node, undefined, offset, bytes, {
      push: (length, kind, hostOffset, _compressed, depth) =>
        merged.push(length, tell(kind, hostOffset, depth)),
    });
    if (done === undefined) merged.end();
    else return done.then(() => merged.end());
  }

  errno(error: unknown): number {
    return nbdErrno(error);
  }
}

/** Joins neighbours that have the same flags, so that the client gets few extents. */
class MergedStatus {
  readonly #sink: StatusSink;
  #bytes = 0;
  #flags = 0;
  #full = false;

  constructor(sink: StatusSink) {
    this.#sink = sink;
  }

  push(bytes: number, flags: number): boolean {
    if (this.#bytes > 0 && flags !== this.#flags) this.end();
    if (this.#full) return false;
    this.#flags = flags;
    this.#bytes += bytes;
    return true;
  }

  end(): void {
    if (this.#bytes > 0 && !this.#full) this.#full = !this.#sink(this.#bytes, this.#flags);
    this.#bytes = 0;
  }
}

function allocationFlags(kind: ExtentKind, hostOffset: number): number {
  if (kind === ExtentKind.DATA) return 0;
  if (kind === ExtentKind.ZERO && hostOffset !== NO_HOST_OFFSET) return StatusFlags.ZERO;
  return StatusFlags.HOLE | StatusFlags.ZERO;
}

/** 0: nobody holds it; 1: the active image does; 2: its backing image; and so on. */
function depthFlags(kind: ExtentKind, _hostOffset: number, depth: number): number {
  return kind === ExtentKind.UNALLOCATED ? 0 : depth + 1;
}
