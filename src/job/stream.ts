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
//   7. Filters are nodes of the chain, but nothing is merged from one to the image that it shows. A filter
//      named as top passes on what is copied into its image; the backing link is that image's. Filters
//      between top and base go with the images there; one right above base holds nothing back of it.

import path from "node:path";
import type { Clock } from "../base/clock.ts";
import { BlockError, errorCode, errorWords } from "../base/errors.ts";
import { KiB, MiB } from "../base/units.ts";
import { composedExtents, imageOf, layersAbove, nodeBelow } from "../block/chain.ts";
import type { Graph } from "../block/graph.ts";
import { leadsTo, linkName } from "../block/link-name.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeUse } from "../block/node-use.ts";
import { ALL_PERMISSIONS, Permission } from "../block/permissions.ts";
import type { JobErrorAction, JobListener, JobSettings } from "./job.ts";
import { Job } from "./job.ts";
import { type Chunk, DataSum, Search } from "./stream-plan.ts";

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
 * Chunks in flight. Where the thread pool copies them, fewer cores are taken while guests are at work.
 */
const WINDOW_CHUNKS = 4;
const WINDOW_CHUNKS_BUSY = 1;
/** How much of the disk the planner looks at before others have a turn. */
const PLAN_BYTES = 64 * CHUNK_BYTES;

export class StreamJob extends Job {
  override readonly type = "stream";
  readonly #graph: Graph;
  readonly #top: BlockNode;
  /** What gets the copies and the new link: top, or what it shows where it is a filter. */
  readonly #image: BlockNode;
  readonly #onError: OnError;
  readonly #backingFile: string | undefined;
  /** All nodes above base but top, from below top down. Those below the image of top are merged away. */
  readonly #layers: BlockNode[];
  /** The image that stands on base: the lowest one above it. */
  readonly #lowestImage: BlockNode;
  readonly #uses: NodeUse[] = [];
  #openedForWriting = false;
  #ignored: unknown;
  /** Chunks that failed and wait for a resume under the policy `stop`. */
  readonly #retry: Chunk[] = [];
  #failure: { error: unknown } | undefined;
  #chunkBytes: number;
  /** The guests' requests when last looked at, to see how many chunks may be in flight. */
  #guestRequests = 0;
  /** The same when the last chunk was begun. */
  #requestsBefore = 0;

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
    this.#image = imageOf(target.top);
    const all = layersAbove(target.top, target.base);
    this.#layers = all.slice(1);
    this.#lowestImage = all.findLast((layer) => layer.filtered === undefined)!;
    this.length = target.top.size;
    const shared = this.#layers.every((layer) => sharesSpace(target.top, layer));
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
    const image = imageOf(top);
    refuseDriver(image);
    if (top === base) {
      throw new BlockError("EINVAL", `Node '${base.name}' is not a backing image of '${top.name}'`);
    }
    if (base !== undefined && imageOf(base) === image) {
      throw new BlockError("EINVAL", `'${base.name}' is not in the backing chain of '${top.name}'`);
    }
    refuseReadOnlyFilter(top);
    const job = new StreamJob(graph, target, settings, listener, clock);
    if (settings.backingFile !== undefined && base === undefined) {
      throw new BlockError("EINVAL", "backing file specified, but streaming the entire chain");
    }
    for (const node of [top, ...job.#layers]) node.refuseBlocked();
    // A base that cannot be linked is refused now, not after the copy.
    if (!job.hasNothingToDo) {
      const { file, format } = job.#linkNow();
      image.driver.checkBackingLink?.(file, format);
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
    for (const node of [this.#top, ...this.#layers]) {
      node.blockers.set(this, `block device is in use by block job: stream (job '${this.id}')`);
    }
    // All of them are held before the first await, so that nobody closes them.
    this.#uses.push(this.#graph.use(this.#top, this.#claim("main node", 0)));
    for (const node of this.#layers)
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
      for (const node of [this.#top, ...this.#layers]) node.blockers.delete(this);
    }
  }

  async #letGo(): Promise<void> {
    let failure: { error: unknown } | undefined;
    if (this.#openedForWriting) {
      const top = this.#uses.find((use) => use.node === this.#top);
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
    return this.#lowestImage === this.#image;
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
      try {
        const done = composedExtents(this.#image, this.#baseNow(), offset, look, sum);
        if (done !== undefined) await done;
      } catch (error) {
        this.#lookFailed(offset, error);
        if (this.#failure !== undefined) throw this.#failure.error;
      }
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
    const requests = this.#graph.guestRequests;
    const idle = requests === this.#requestsBefore;
    this.#requestsBefore = requests;
    const beganMs = this.clock.nowMs();
    try {
      await this.#top.copyUp(chunk.offset, chunk.bytes, this.#baseNow(), idle);
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
    const top = this.#image;
    const unit = Math.max(top.driver.clusterSize, 1);
    const want = Math.max(bytesMax, unit);
    while (offset < top.size) {
      const look = Math.min(lookMax, top.size - offset);
      const base = this.#baseNow();
      const search = new Search(offset, unit, want, base !== undefined);
      try {
        const done = composedExtents(top, base, offset, look, search);
        if (done !== undefined) await done;
      } catch (error) {
        const unknown = this.#lookFailed(offset, error);
        return { offset: unknown.offset + unknown.bytes, bytes: 0, dataBytes: 0 };
      }
      const found = search.result(offset + look, top.size);
      if (found !== undefined) return found;
      offset += look;
      await this.clock.turn();
      if (this.isAskedToStop) return { offset, bytes: 0, dataBytes: 0 };
    }
    return undefined;
  }

  /**
   * What the tables hold could not be found out: the policy decides, as for a copy of a chunk there that has
   * failed. That chunk is given back.
   */
  #lookFailed(offset: number, error: unknown): Chunk {
    const { size, driver } = this.#image;
    const bytes = Math.min(Math.max(CHUNK_BYTES, driver.clusterSize), size - offset);
    const chunk = { offset, bytes, dataBytes: 0 };
    this.#copyFailed(chunk, error);
    return chunk;
  }

  /** Where copying ends, as of now: what the lowest image that we hold stands on. */
  #baseNow(): BlockNode | undefined {
    return this.#lowestImage.backing;
  }

  /** What top's image will stand on: the same, but for filters above it that go. */
  #newBacking(): BlockNode | undefined {
    return nodeBelow(this.#layers.at(-1) ?? this.#image);
  }

  // --- the commit point --------------------------------------------------------------------------

  protected override prepare(): Promise<void> {
    const stays = this.#newBacking() === this.#image.backing;
    if (stays && this.#backingFile === undefined) return Promise.resolve();
    return this.#graph.exclusively(() => this.#dropMerged());
  }

  async #dropMerged(): Promise<void> {
    const image = this.#image;
    await image.quiesce();
    try {
      const base = this.#newBacking();
      await this.#writeLink();
      if (base !== image.backing) await this.#graph.replaceBacking(image, base);
    } finally {
      image.resume();
    }
  }

  async #writeLink(): Promise<void> {
    const { driver } = this.#image;
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
          `the backing link of '${this.#image.filename}' could not be written (${errorWords(error)}), ` +
            "nor the old one again: keep all images of the chain until a later stream succeeds",
          error,
        );
      });
      throw error;
    }
  }

  /** The backing link of top when the merge is done; none where everything is copied. */
  #linkNow(): { file: string | undefined; format: string | undefined } {
    const below = this.#newBacking();
    if (below === undefined) return { file: undefined, format: undefined };
    // No image names a filter.
    const base = imageOf(below);
    // A host file that is an image itself is raw to whoever opens the link.
    const format = base.driver.growable ? "raw" : base.driverName;
    return { file: this.#backingFile ?? this.#linkTo(base), format };
  }

  /**
   * Base's name as top's header should have it: relative to top's folder where the old link was relative too.
   * An old json: link that leads to base stays as it was.
   */
  #linkTo(base: BlockNode): string {
    if (base.filename === "") {
      throw new BlockError(
        "EINVAL",
        `Node '${base.name}' has no file name to link to: state one with 'backing-file'`,
      );
    }
    const { backingFile: old, backingFormat } = this.#lowestImage.details();
    const name = linkName(base);
    if (old?.startsWith("json:") && leadsTo(old, this.#lowestImage.filename, backingFormat, base)) return old;
    const isRelative = old !== undefined && !old.startsWith("json:") && !path.isAbsolute(old);
    if (!isRelative || name.startsWith("json:")) return name;
    return path.relative(path.dirname(path.resolve(this.#image.filename)), name);
  }
}

/**
 * Whether the host shares the space of what is copied from `layer`'s file to `top`'s. What passes a filter is
 * read and written.
 */
function sharesSpace(top: BlockNode, layer: BlockNode): boolean {
  if (top.filtered !== undefined || layer.filtered !== undefined) return false;
  const from = (layer.file ?? layer).driver;
  return (top.file ?? top).driver.sharesSpaceWith?.(from) === true;
}

function actionFor(policy: OnError, noSpace: boolean): JobErrorAction {
  if (policy === "enospc" || policy === "auto") return noSpace ? "stop" : "report";
  return policy;
}

/** It could be reopened, but whether its image is to stay so afterwards nobody knows. */
function refuseReadOnlyFilter(top: BlockNode): void {
  if (top.filtered === undefined || !top.readOnly) return;
  throw new BlockError(
    "EPERM",
    `Block node is read-only: filter '${top.name}' is not reopened for a merge; ` +
      `stream into '${imageOf(top).name}', which it shows`,
  );
}

function refuseDriver(top: BlockNode): void {
  if (top.driver.copyUp !== undefined) return;
  throw new BlockError(
    "ENOTSUP",
    `cannot stream into node '${top.name}': a ${top.driverName} image has no backing link, ` +
      "so there is nothing that could be merged into it; name a qcow2 overlay as the target",
  );
}
