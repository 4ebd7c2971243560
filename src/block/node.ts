// A node of the graph: the one door to a driver.
//
//   1. Every request passes here: range, rights, drain and count are dealt with once; drivers trust what they
//      get.
//   2. A quiesced node starts nothing: requests wait at the door, in order, until it is resumed. `quiesce` is
//      done when everything that had been started has settled. Calls nest.
//   3. What finishes synchronously costs no promise and no closure.
//   4. `backing` changes only while the node is quiesced, and so does what a filter shows (graph.ts does it).
//   5. What others may have found out about layers (owner-index.ts) is void after each of these: a node is
//      quiesced or resumed, gets another backing, shows another image, or gets other rights.

import { assert } from "../base/assert.ts";
import type { Completion } from "../base/completion.ts";
import { BlockError } from "../base/errors.ts";
import { beginChainAge } from "./chain-age.ts";
import type { Counters, Driver, DriverHost, ImageDetails } from "./driver.ts";
import { WriteFlags } from "./driver.ts";
import type { ExtentSink } from "./extent.ts";
import type { Loan } from "./loan.ts";
import type { Claim } from "./permissions.ts";

/** How a node came to be and how it is told to people. */
export interface NodeIdentity {
  readonly name: string;
  /** Path or other name of the image, as it was given; resolved for backing images. */
  readonly filename: string;
}

/** What a node has served, in operations and bytes. */
export interface NodeCounters {
  reads: number;
  readBytes: number;
  writes: number;
  writeBytes: number;
  zeroes: number;
  discards: number;
  flushes: number;
}

export class BlockNode implements DriverHost {
  readonly name: string;
  readonly counters: NodeCounters = {
    reads: 0,
    readBytes: 0,
    writes: 0,
    writeBytes: 0,
    zeroes: 0,
    discards: 0,
    flushes: 0,
  };
  /** Kept by graph.ts: everybody who holds this node. */
  readonly claims = new Set<Claim>();
  /** Who forbids other operations on this node, in words; a running job. */
  readonly blockers = new Map<object, string>();

  readonly #filename: string;
  #driver: Driver | undefined;
  #file: BlockNode | undefined;
  #backing: BlockNode | undefined;
  #readOnly: boolean;
  #inFlight = 0;
  #quiesced = 0;
  /** Requests at the door; each goes on at the node that it is handed, which a snapshot may have changed. */
  #waiting: ((node: BlockNode) => void)[] = [];
  #idle: (() => void)[] = [];

  constructor(identity: NodeIdentity, file: BlockNode | undefined, readOnly: boolean) {
    this.name = identity.name;
    this.#filename = identity.filename;
    this.#file = file;
    this.#readOnly = readOnly;
  }

  /** Puts the driver behind the door; once, before the first request. */
  install(driver: Driver): void {
    assert(this.#driver === undefined, "a node gets its driver once");
    this.#driver = driver;
  }

  /** The code behind this node; for the graph, jobs and displays. Requests go through the door. */
  get driver(): Driver {
    const driver = this.#driver;
    if (driver === undefined) throw new BlockError("EINVAL", `node '${this.name}' is not open`);
    return driver;
  }

  /** A filter has the one of its image. */
  get filename(): string {
    return this.filtered?.filename ?? this.#filename;
  }

  get driverName(): string {
    return this.driver.driverName;
  }

  get size(): number {
    return this.driver.size;
  }

  /** The node that holds this one's bytes; undefined for a leaf. */
  get file(): BlockNode | undefined {
    return this.#file;
  }

  get backing(): BlockNode | undefined {
    return this.#backing;
  }

  /** The node that this one shows, if it is a filter. */
  get filtered(): BlockNode | undefined {
    return this.#driver?.isFilter === true ? this.#file : undefined;
  }

  get readOnly(): boolean {
    return this.#readOnly;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get isQuiesced(): boolean {
    return this.#quiesced > 0;
  }

  // --- requests ----------------------------------------------------------------------------------

  /** Fills `buffer[at .. at+bytes)` with what the guest sees at `offset`. */
  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    if (this.#quiesced > 0) return this.#later((node) => node.read(offset, bytes, buffer, at));
    const driver = this.#driver!;
    if (offset + bytes > driver.size && !driver.growable) throw this.#outside(offset, bytes);
    this.counters.reads++;
    this.counters.readBytes += bytes;
    this.#inFlight++;
    let done: Completion;
    try {
      done = driver.read(offset, bytes, buffer, at);
    } catch (error) {
      this.#left();
      throw error;
    }
    if (done === undefined) this.#left();
    else return this.#tracked(done);
  }

  /**
   * The same for a range that stands at `place` of the file, as the driver said (`placeOf`) when this node
   * was neither writable nor held back; nothing of that has changed.
   */
  readPlaced(place: number, bytes: number, buffer: Buffer, at: number): Completion {
    this.counters.reads++;
    this.counters.readBytes += bytes;
    const done = this.file!.read(place, bytes, buffer, at);
    if (done === undefined) return;
    this.#inFlight++;
    return this.#tracked(done);
  }

  /** Plans to lend the range instead of reading it; false: it has to be read. See loan.ts. */
  lend(offset: number, bytes: number, loan: Loan): boolean {
    const driver = this.#driver!;
    if (this.#quiesced > 0 || driver.lend === undefined || offset + bytes > driver.size) return false;
    if (!driver.lend(offset, bytes, loan)) return false;
    loan.pass(this, bytes);
    return true;
  }

  /** For loan.ts alone: the range of a loan is taken up; then it was, or 0 bytes of it were. */
  loanBegan(): void {
    this.#inFlight++;
  }

  loanCollected(bytes: number): void {
    if (bytes > 0) this.#countRead(bytes);
    this.#left();
  }

  /**
   * Copies such a range to `offset` of `target`, the node of a host file, at once. False: not with these two,
   * or not now; part of the range may have been written.
   */
  copyPlaced(place: number, bytes: number, target: BlockNode, offset: number): boolean {
    const source = this.file!;
    if (source.#quiesced > 0 || target.#quiesced > 0 || target.#readOnly) return false;
    if (target.driver.copyAtOnce?.(source.driver, place, offset, bytes) !== true) return false;
    this.#countRead(bytes);
    source.#countRead(bytes);
    target.counters.writes++;
    target.counters.writeBytes += bytes;
    return true;
  }

  #countRead(bytes: number): void {
    this.counters.reads++;
    this.counters.readBytes += bytes;
  }

  /** Writes `buffer[at .. at+bytes)`; with FUA it is durable when it is done. */
  write(offset: number, bytes: number, buffer: Buffer, at: number, flags = 0): Completion {
    if (this.#quiesced > 0) return this.#later((node) => node.write(offset, bytes, buffer, at, flags));
    const driver = this.#driver!;
    if (this.#readOnly) throw this.#forbidden();
    if (offset + bytes > driver.size && !driver.growable) throw this.#outside(offset, bytes);
    this.counters.writes++;
    this.counters.writeBytes += bytes;
    this.#inFlight++;
    let done: Completion;
    try {
      done = driver.write(offset, bytes, buffer, at);
      if ((flags & WriteFlags.FUA) !== 0) done = this.#thenFlush(done);
    } catch (error) {
      this.#left();
      throw error;
    }
    if (done === undefined) this.#left();
    else return this.#tracked(done);
  }

  /** Writes several buffers one after the other from `offset`, as one write where the driver can. */
  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    let bytes = 0;
    for (const part of parts) bytes += part.length;
    return this.#enter(true, offset, bytes, (driver, { counters }) => {
      counters.writes++;
      counters.writeBytes += bytes;
      if (driver.writeVector !== undefined) return driver.writeVector(offset, parts);
      const joined = Buffer.concat(parts, bytes);
      return driver.write(offset, bytes, joined, 0);
    });
  }

  /** See Driver.copyFrom; false also where the driver has no such thing. */
  async copyFrom(
    source: BlockNode,
    sourceOffset: number,
    offset: number,
    bytes: number,
    idle = false,
  ): Promise<boolean> {
    let copied = false;
    await source.hold((from) =>
      this.#enter(true, offset, bytes, async (driver, { counters }) => {
        if (driver.copyFrom === undefined) return;
        copied = await driver.copyFrom(from, sourceOffset, offset, bytes, idle);
        if (!copied) return;
        counters.writes++;
        counters.writeBytes += bytes;
      }),
    );
    return copied;
  }

  /**
   * Makes the range read as zeros. Flags: FUA, MAY_UNMAP, NO_FALLBACK (then ENOTSUP where it would be slow).
   */
  writeZeroes(offset: number, bytes: number, flags = 0): Completion {
    return this.#enter(true, offset, bytes, (driver, node) => {
      node.counters.zeroes++;
      const done = driver.writeZeroes(offset, bytes, flags & ~WriteFlags.FUA);
      return (flags & WriteFlags.FUA) === 0 ? done : node.#thenFlush(done);
    });
  }

  /**
   * The guest no longer needs the range. What it reads there afterwards is up to the driver; never another's
   * data.
   */
  discard(offset: number, bytes: number, flags = 0): Completion {
    return this.#enter(true, offset, bytes, (driver, node) => {
      node.counters.discards++;
      const done = driver.discard(offset, bytes);
      return (flags & WriteFlags.FUA) === 0 ? done : node.#thenFlush(done);
    });
  }

  /** Every write that settled before this call is durable when it is done. */
  flush(): Completion {
    return this.#enter(false, 0, 0, (driver, { counters }) => {
      counters.flushes++;
      return driver.flush();
    });
  }

  /** What this layer alone holds of the range; see Driver.extents. Composed over a chain: chain.ts. */
  extents(offset: number, bytes: number, out: ExtentSink): Completion {
    return this.#enter(false, offset, bytes, (driver) => driver.extents(offset, bytes, out));
  }

  /** Runs what looks at this node and behind it: `backing` does not change before that has settled. */
  hold(run: (driver: Driver, node: BlockNode) => Completion): Completion {
    return this.#enter(false, 0, 0, run);
  }

  /** See Driver.copyUp. Settles to the bytes copied as data. */
  async copyUp(offset: number, bytes: number, base: BlockNode | undefined, idle = false): Promise<number> {
    let copied = 0;
    await this.#enter(true, offset, bytes, async (driver) => {
      if (driver.copyUp === undefined) throw new BlockError("ENOTSUP", `${driver.driverName} has no backing`);
      copied = await driver.copyUp(offset, bytes, base, idle);
    });
    return copied;
  }

  /** Sets the length of the disk. */
  truncate(size: number): Completion {
    return this.#enter(true, 0, 0, (driver) => driver.truncate(size));
  }

  // --- state -------------------------------------------------------------------------------------

  /**
   * Stops new requests at the door and waits until those inside have settled. Each call needs one `resume`.
   */
  quiesce(): Completion {
    this.#quiesced++;
    beginChainAge();
    if (this.#inFlight === 0) return;
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  /** Ends one `quiesce`; after the last one, what waited goes on in order of arrival. */
  resume(): void {
    assert(this.#quiesced > 0, "resume without quiesce");
    this.#quiesced--;
    if (this.#quiesced > 0) return;
    beginChainAge();
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const go of waiting) go(this);
  }

  /** For graph.ts alone: what waits at the door of `below` goes on here. Both are drained. */
  adoptWaiting(below: BlockNode): void {
    assert(this.#quiesced > 0, "requests are handed over while both nodes are drained");
    for (const waiting of below.#waiting.splice(0)) this.#waiting.push(waiting);
  }

  /** For graph.ts alone: changes the backing link while nothing is in flight. */
  setBacking(backing: BlockNode | undefined): void {
    assert(this.#inFlight === 0, "the backing link changes only while the node is drained");
    this.#backing = backing;
    beginChainAge();
  }

  /** For graph.ts alone: lets a filter show another node. */
  setFiltered(image: BlockNode): void {
    assert(this.filtered !== undefined, "only a filter gets another image");
    assert(this.#inFlight === 0, "what a filter shows changes only while it is drained");
    this.#file = image;
    beginChainAge();
  }

  /**
   * From reading only to writing or back; the file below goes along, unless it is `stays`. Errors leave the
   * node as it was.
   */
  async setWritable(writable: boolean, stays?: BlockNode): Promise<void> {
    if (writable !== this.#readOnly) return;
    await this.quiesce();
    try {
      await this.#reopen(writable, stays);
      this.#readOnly = !writable;
      beginChainAge();
    } finally {
      this.resume();
    }
  }

  /**
   * The file is writable whenever the driver is: it goes first on the way there, and last on the way back.
   */
  async #reopen(writable: boolean, stays: BlockNode | undefined): Promise<void> {
    const file = this.file?.readOnly === writable && this.file !== stays ? this.file : undefined;
    const steps = [
      async (to: boolean) => file?.setWritable(to, stays),
      async (to: boolean) => this.driver.setWritable(to),
    ];
    const [first, second] = writable ? steps : steps.reverse();
    await first!(writable);
    try {
      await second!(writable);
    } catch (error) {
      await first!(!writable).catch(() => {});
      throw error;
    }
  }

  /**
   * @throws BlockError EBUSY in QEMU's words, with the holder, while something forbids other operations here
   */
  refuseBlocked(): void {
    for (const reason of this.blockers.values()) {
      throw new BlockError("EBUSY", `Node '${this.name}' is busy: ${reason}`);
    }
  }

  details(): ImageDetails {
    return this.driver.details();
  }

  driverCounters(): Counters {
    return this.driver.counters?.() ?? {};
  }

  // --- inside ------------------------------------------------------------------------------------

  #enter(
    writes: boolean,
    offset: number,
    bytes: number,
    run: (driver: Driver, node: BlockNode) => Completion,
  ): Completion {
    if (this.#quiesced > 0) return this.#later((node) => node.#enter(writes, offset, bytes, run));
    const driver = this.driver;
    if (writes && this.#readOnly) throw this.#forbidden();
    if (offset + bytes > driver.size && !driver.growable) throw this.#outside(offset, bytes);
    this.#inFlight++;
    let done: Completion;
    try {
      done = run(driver, this);
    } catch (error) {
      this.#left();
      throw error;
    }
    if (done === undefined) this.#left();
    else return this.#tracked(done);
  }

  /** Waits at the door. It goes on inside `resume` itself, so that nothing that comes later overtakes it. */
  #later(run: (node: BlockNode) => Completion): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push((node) => {
        try {
          resolve(run(node));
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  async #tracked(done: Promise<void>): Promise<void> {
    try {
      await done;
    } finally {
      this.#left();
    }
  }

  #thenFlush(done: Completion): Completion {
    if (done === undefined) return this.driver.flush();
    return done.then(() => this.driver.flush());
  }

  #left(): void {
    this.#inFlight--;
    if (this.#inFlight > 0 || this.#idle.length === 0) return;
    const idle = this.#idle;
    this.#idle = [];
    for (const wake of idle) wake();
  }

  #outside(offset: number, bytes: number): BlockError {
    return new BlockError(
      "EINVAL",
      `request of ${bytes} bytes at ${offset} is outside of node '${this.name}' (${this.size} bytes)`,
    );
  }

  #forbidden(): BlockError {
    return new BlockError("EPERM", "Block node is read-only");
  }
}
