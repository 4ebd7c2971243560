// block_stream: copies into `top` what it lacks and the images between it and `base` hold, then links top to
// base.
//
//   [A] <- [B] <- [C] <- [D] <- [E]    stream of D onto A copies what B and C hold into D:  [A] <- [D] <- [E]
//
//   1. The job holds top and every layer above base: no other job and no snapshot may touch them meanwhile.
//      Base is not held: it stays, and another job may put something else in its place below us.
//   2. The copy of one chunk is the driver's `copyUp`, under top's cluster locks: what the guest writes wins.
//   3. Several chunks are in flight, a bounded window; between chunks everybody else has a turn.
//   4. The commit point: with top drained, its tables flushed, the new backing link is written and flushed;
//      then the graph changes. Before it the chain is the old one, after it the new one, and either is
//      complete.
//   5. Base is looked up again at the commit point, under the lowest layer that we hold: an await voids
//      look-ups.
//   6. With any error that was ignored the chain stays as it was, and the job says so.

import path from "node:path";
import type { Clock } from "../base/clock.ts";
import { BlockError, errorCode, errorWords } from "../base/errors.ts";
import { KiB, MiB } from "../base/units.ts";
import { composedExtents, layersAbove } from "../block/chain.ts";
import { ExtentKind } from "../block/extent.ts";
import type { Graph, NodeUse } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { ALL_PERMISSIONS, Permission } from "../block/permissions.ts";
import type { JobErrorAction, JobListener, JobSettings } from "./job.ts";
import { Job } from "./job.ts";

export type OnError = "report" | "ignore" | "enospc" | "stop" | "auto";

export interface StreamSettings extends JobSettings {
  readonly onError: OnError;
  /** What to write as the new backing link, in place of what follows from base. */
  readonly backingFile?: string;
}

export interface StreamTarget {
  readonly top: BlockNode;
  /** First node that the job does not touch; undefined: the whole chain is copied. */
  readonly base: BlockNode | undefined;
}

/** Bytes that one copy-up asks for: QEMU's STREAM_CHUNK. A guest write waits for one of them at the most. */
const CHUNK_BYTES = 512 * KiB;
/**
 * The same where the host shares the space of the copy, which takes it no longer than the smaller one; until
 * one takes longer: a file system may be able to share and copy all the same, and guests would wait for that.
 */
const SHARED_CHUNK_BYTES = 32 * MiB;
const SHARED_CHUNK_MS_MAX = 20;
/**
 * Chunks in flight. They are copied by the thread pool, so while guests are at work fewer cores are taken.
 */
const WINDOW_CHUNKS = 4;
const WINDOW_CHUNKS_BUSY = 1;
/** How much of the disk the planner looks at before others have a turn. */
const PLAN_BYTES = 64 * CHUNK_BYTES;

/** A stretch of top that has to be looked at, and the bytes of it that will be copied as data. */
interface Chunk {
  readonly offset: number;
  readonly bytes: number;
  readonly dataBytes: number;
}

export class StreamJob extends Job {
  override readonly type = "stream";
  readonly #graph: Graph;
  readonly #top: BlockNode;
  readonly #onError: OnError;
  readonly #backingFile: string | undefined;
  /** Layers between top and base, from below top down; they are merged away. */
  readonly #merged: BlockNode[];
  readonly #uses: NodeUse[] = [];
  #openedForWriting = false;
  #ignored: unknown;
  /** Chunks that failed and wait for a resume under the policy `stop`. */
  readonly #retry: Chunk[] = [];
  #failure: { error: unknown } | undefined;
  #chunkBytes: number;
  /** The guests' requests when the last chunk was begun. */
  #guestRequests = 0;

  private constructor(
    graph: Graph,
    target: StreamTarget,
    settings: StreamSettings,
    listener: JobListener,
    clock: Clock,
  ) {
    super(settings, listener, clock);
    this.#graph = graph;
    this.#top = target.top;
    this.#onError = settings.onError;
    this.#backingFile = settings.backingFile;
    this.#merged = layersAbove(target.top, target.base).slice(1);
    this.length = target.top.size;
    const shared = this.#merged.every((layer) => sharesSpace(target.top, layer));
    this.#chunkBytes = shared ? SHARED_CHUNK_BYTES : CHUNK_BYTES;
  }

  /**
   * Checks the request, takes hold of the nodes and reopens top for writing where it is read-only. The job is
   * not started yet. @throws BlockError EINVAL, EBUSY, EPERM, ENOTSUP; nothing is held then
   */
  static async create(
    graph: Graph,
    target: StreamTarget,
    settings: StreamSettings,
    listener: JobListener,
    clock: Clock,
  ): Promise<StreamJob> {
    const { top, base } = target;
    refuseDriver(top);
    if (top === base) {
      throw new BlockError("EINVAL", `Node '${base.name}' is not a backing image of '${top.name}'`);
    }
    const job = new StreamJob(graph, target, settings, listener, clock);
    if (settings.backingFile !== undefined && base === undefined) {
      throw new BlockError("EINVAL", "backing file specified, but streaming the entire chain");
    }
    for (const node of [top, ...job.#merged]) node.refuseBlocked();
    // A base that cannot be linked is refused now, not after the copy.
    if (!job.hasNothingToDo) {
      const { file, format } = job.#linkNow();
      top.driver.checkBackingLink?.(file, format);
    }
    try {
      await job.#hold();
    } catch (error) {
      await job.clean();
      throw error;
    }
    return job;
  }

  async #hold(): Promise<void> {
    for (const node of [this.#top, ...this.#merged]) {
      node.blockers.set(this, `block device is in use by block job: stream (job '${this.id}')`);
    }
    // All of them are held before the first await, so that nobody closes them.
    this.#uses.push(this.#graph.use(this.#top, this.#claim("main node", 0)));
    for (const node of this.#merged)
      this.#uses.push(this.#graph.use(node, this.#claim("intermediate node", 0)));
    // Asked in any case: a snapshot may be about to make it read-only.
    this.#openedForWriting = await this.#graph.setWritable(this.#top, true);
    this.#uses.push(this.#graph.use(this.#top, this.#claim("main node", Permission.WRITE_UNCHANGED)));
    await this.#graph.release(this.#uses.shift()!);
  }

  #claim(role: string, writes: number) {
    return {
      user: `stream job '${this.id}'`,
      role,
      needs: Permission.CONSISTENT_READ | writes,
      shares: ALL_PERMISSIONS & ~Permission.RESIZE,
      staysAtNode: true,
    };
  }

  protected override async clean(): Promise<void> {
    try {
      await this.#letGo();
    } finally {
      // Last of all: a job that began before top is read-only again would find it so in the middle of its
      // work.
      for (const node of [this.#top, ...this.#merged]) node.blockers.delete(this);
    }
  }

  async #letGo(): Promise<void> {
    let failure: { error: unknown } | undefined;
    const top = this.#uses.find((use) => use.node === this.#top);
    const wanted = this.#graph
      .usesOf(this.#top)
      .some((use) => use !== top && (use.needs & Permission.WRITE) !== 0);
    if (this.#openedForWriting && !wanted) {
      if (top !== undefined) top.needs = Permission.CONSISTENT_READ;
      this.#openedForWriting = false;
      await this.#graph.setWritable(this.#top, false).catch((error: unknown) => {
        failure = { error };
      });
    }
    for (const use of this.#uses.splice(0)) {
      await this.#graph.release(use).catch((error: unknown) => {
        failure ??= { error };
      });
    }
    if (failure !== undefined) throw failure.error;
  }

  // --- the copy ----------------------------------------------------------------------------------

  override get hasNothingToDo(): boolean {
    return this.#merged.length === 0;
  }

  protected override async run(): Promise<void> {
    if (this.hasNothingToDo) {
      this.length = 0;
      return;
    }
    await this.#measure();
    const pending = new Set<Promise<void>>();
    try {
      await this.#copyAll(pending);
    } finally {
      await Promise.all(pending);
    }
    // What the guest wrote in the meantime did not have to be copied.
    this.length = this.offset;
    if (this.#ignored !== undefined) {
      throw new BlockError(errorCode(this.#ignored), errorWords(this.#ignored), this.#ignored);
    }
  }

  /** Adds up what there is to copy, from the tables alone. */
  async #measure(): Promise<void> {
    const sum = new DataSum();
    for (let offset = 0; offset < this.#top.size; offset += PLAN_BYTES) {
      const look = Math.min(PLAN_BYTES, this.#top.size - offset);
      const done = composedExtents(this.#top, this.#baseNow(), offset, look, sum);
      if (done !== undefined) await done;
      if (this.isAskedToStop) await this.checkpoint();
      await this.clock.turn();
    }
    this.length = sum.bytes;
  }

  async #copyAll(pending: Set<Promise<void>>): Promise<void> {
    let offset = 0;
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure.error;
      if (this.isAskedToStop) await this.#standStill(pending);
      const again = this.#retry.shift();
      const chunk = again ?? (await this.#plan(offset, this.#nextBytes(), PLAN_BYTES));
      if (chunk === undefined) {
        await Promise.all(pending);
        if (this.#retry.length === 0 && this.#failure === undefined && !this.isAskedToStop) return;
        continue;
      }
      if (again === undefined) offset = chunk.offset + chunk.bytes;
      if (chunk.bytes === 0) continue;
      if (!(await this.#underLimit(chunk))) {
        this.#retry.push(chunk);
        continue;
      }
      const copying = this.#copy(chunk).finally(() => pending.delete(copying));
      pending.add(copying);
      await this.clock.turn();
      while (pending.size >= this.#windowChunks()) await Promise.race(pending);
    }
  }

  /** A limited speed is kept better in small steps. */
  #nextBytes(): number {
    return this.speed === 0 ? this.#chunkBytes : CHUNK_BYTES;
  }

  /** Guests first: while they are at work, or the speed is limited, one chunk at a time. */
  #windowChunks(): number {
    const requests = this.#graph.guestRequests;
    const busy = requests !== this.#guestRequests;
    this.#guestRequests = requests;
    return busy || this.speed !== 0 ? WINDOW_CHUNKS_BUSY : WINDOW_CHUNKS;
  }

  async #standStill(pending: Set<Promise<void>>): Promise<void> {
    await Promise.all(pending);
    await this.checkpoint();
  }

  /** Waits until the speed allows the chunk; false when the job is asked to stop before. */
  async #underLimit(chunk: Chunk): Promise<boolean> {
    for (let delayMs = this.limit.delayMs(); delayMs > 0; delayMs = this.limit.delayMs()) {
      if (this.isAskedToStop) return false;
      await this.limit.wait(delayMs);
    }
    this.limit.use(chunk.dataBytes);
    return true;
  }

  /** Copies one chunk; never rejects: what went wrong is dealt with by the policy. */
  async #copy(chunk: Chunk): Promise<void> {
    const beganMs = this.clock.nowMs();
    try {
      await this.#top.copyUp(chunk.offset, chunk.bytes, this.#baseNow());
      if (this.clock.nowMs() - beganMs > SHARED_CHUNK_MS_MAX) this.#chunkBytes = CHUNK_BYTES;
      this.#progress(chunk);
    } catch (error) {
      this.#copyFailed(chunk, error);
    }
  }

  #progress(chunk: Chunk): void {
    this.offset += chunk.dataBytes;
    // A guest that discards while we copy, or writes what we planned, changes the sum; the end is where it
    // is.
    if (this.offset > this.length) this.length = this.offset;
  }

  #copyFailed(chunk: Chunk, error: unknown): void {
    const code = errorCode(error);
    const noSpace = code === "ENOSPC" || code === "EDQUOT" || code === "EFBIG";
    const action = actionFor(this.#onError, noSpace);
    // Chunks that were in flight when the first one failed are no news.
    const known = action === "stop" ? this.ioStatus !== "ok" : this.#failure !== undefined;
    if (!known) this.reportError(action, "read", noSpace);
    if (action === "stop") {
      this.#retry.push(chunk);
    } else if (action === "ignore") {
      this.#ignored ??= error;
      this.#progress(chunk);
    } else {
      this.#failure ??= { error: new BlockError(code, errorWords(error), error) };
    }
  }

  /**
   * The next stretch from `offset` on that has something for top: at most `bytesMax` long, its ends on top's
   * clusters. Looks at `lookMax` bytes at a time, with a turn for the others between. Undefined at the end of
   * the disk.
   */
  async #plan(offset: number, bytesMax: number, lookMax: number): Promise<Chunk | undefined> {
    const top = this.#top;
    const unit = Math.max(top.driver.clusterSize, 1);
    const want = Math.max(bytesMax, unit);
    while (offset < top.size) {
      const look = Math.min(lookMax, top.size - offset);
      const base = this.#baseNow();
      const search = new Search(offset, unit, want, base !== undefined);
      const done = composedExtents(top, base, offset, look, search);
      if (done !== undefined) await done;
      const found = search.result(offset + look, top.size);
      if (found !== undefined) return found;
      offset += look;
      await this.clock.turn();
      if (this.isAskedToStop) return { offset, bytes: 0, dataBytes: 0 };
    }
    return undefined;
  }

  /** What lies under the lowest layer that we hold, as of now. */
  #baseNow(): BlockNode | undefined {
    const lowest = this.#merged[this.#merged.length - 1] ?? this.#top;
    return lowest.backing;
  }

  // --- the commit point --------------------------------------------------------------------------

  protected override prepare(): Promise<void> {
    if (this.hasNothingToDo && this.#backingFile === undefined) return Promise.resolve();
    return this.#graph.exclusively(() => this.#dropMerged());
  }

  async #dropMerged(): Promise<void> {
    const top = this.#top;
    await top.quiesce();
    try {
      const base = this.#baseNow();
      await this.#writeLink();
      if (base !== top.backing) await this.#graph.replaceBacking(top, base);
    } finally {
      top.resume();
    }
  }

  async #writeLink(): Promise<void> {
    const { driver } = this.#top;
    const before = driver.details();
    const { file, format } = this.#linkNow();
    try {
      await driver.changeBackingLink!(file, format);
    } catch (error) {
      // It may be on disk or not. The old one is written again: nobody shall remove an image that is still
      // linked.
      await driver.changeBackingLink!(before.backingFile, before.backingFormat).catch(() => {
        throw new BlockError(
          errorCode(error),
          `the backing link of '${this.#top.filename}' could not be written (${errorWords(error)}), ` +
            "nor the old one again: keep all images of the chain until a later stream succeeds",
          error,
        );
      });
      throw error;
    }
  }

  /** The backing link of top when the merge is done; none where everything is copied. */
  #linkNow(): { file: string | undefined; format: string | undefined } {
    const base = this.#baseNow();
    if (base === undefined) return { file: undefined, format: undefined };
    // A host file that is an image itself is raw to whoever opens the link.
    const format = base.driver.growable ? "raw" : base.driverName;
    return { file: this.#backingFile ?? this.#linkTo(base), format };
  }

  /**
   * Base's name as top's header should have it: relative to top's folder where the old link was relative too.
   */
  #linkTo(base: BlockNode): string {
    if (base.filename === "") {
      throw new BlockError(
        "EINVAL",
        `Node '${base.name}' has no file name to link to: state one with 'backing-file'`,
      );
    }
    const lowest = this.#merged[this.#merged.length - 1]!;
    const old = lowest.details().backingFile;
    if (old === undefined || old.startsWith("json:")) return old ?? path.resolve(base.filename);
    const absolute = path.resolve(base.filename);
    if (path.isAbsolute(old)) return absolute;
    return path.relative(path.dirname(path.resolve(this.#top.filename)), absolute);
  }
}

/** Adds up the data that the layers below top have for it. */
class DataSum {
  bytes = 0;

  push(bytes: number, kind: number, _hostOffset: number, _compressed: boolean, depth: number): boolean {
    if (kind === ExtentKind.DATA && depth > 0) this.bytes += bytes;
    return true;
  }
}

/** Finds the first stretch with data or zeros for top in a listing of the layers above base. */
class Search {
  #end: number;
  readonly #unit: number;
  readonly #want: number;
  #from = -1;
  #to = -1;
  readonly #zerosCount: boolean;
  #dataBytes = 0;

  /** Without a base what nobody holds reads as zeros anyway: then `zerosCount` is false. */
  constructor(offset: number, unit: number, want: number, zerosCount: boolean) {
    this.#end = offset;
    this.#unit = unit;
    this.#want = want;
    this.#zerosCount = zerosCount;
  }

  push(bytes: number, kind: number, _hostOffset: number, _compressed: boolean, depth: number): boolean {
    const from = this.#end;
    const end = from + bytes;
    this.#end = end;
    const nothing = kind === ExtentKind.UNALLOCATED || (kind === ExtentKind.ZERO && !this.#zerosCount);
    if (nothing || depth === 0) {
      // A gap larger than a cluster ends the stretch; smaller ones belong to a cluster that is copied whole.
      return this.#from < 0 || end - this.#to < this.#unit;
    }
    if (this.#from < 0) this.#from = from - (from % this.#unit);
    const limit = this.#from + this.#want;
    this.#to = Math.min(end, limit);
    if (kind === ExtentKind.DATA) this.#dataBytes += Math.max(0, this.#to - from);
    return end < limit;
  }

  result(lookedTo: number, size: number): Chunk | undefined {
    if (this.#from < 0) return undefined;
    const end = Math.min(this.#to, lookedTo);
    const rest = end % this.#unit;
    const rounded = Math.min(size, rest === 0 ? end : end + this.#unit - rest);
    return { offset: this.#from, bytes: rounded - this.#from, dataBytes: this.#dataBytes };
  }
}

/** Whether the host shares the space of what is copied from `layer`'s file to `top`'s. */
function sharesSpace(top: BlockNode, layer: BlockNode): boolean {
  const from = (layer.file ?? layer).driver;
  return (top.file ?? top).driver.sharesSpaceWith?.(from) === true;
}

function actionFor(policy: OnError, noSpace: boolean): JobErrorAction {
  if (policy === "enospc" || policy === "auto") return noSpace ? "stop" : "report";
  return policy;
}

function refuseDriver(top: BlockNode): void {
  if (top.driver.copyUp !== undefined) return;
  throw new BlockError(
    "ENOTSUP",
    `cannot stream into node '${top.name}': a ${top.driverName} image has no backing link, ` +
      "so there is nothing that could be merged into it; name a qcow2 overlay as the target",
  );
}
