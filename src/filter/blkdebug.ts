// The `blkdebug` filter: hands requests on to its image, and lets those fail that its rules name. For people
// who test their own stack; see docs/testing-with-faults.md.
//
//   qcow2 ── events ("l2_update") ──> rules ── which requests fail?
//     └──── requests ───────────────> blkdebug ──> image
//
//   1. Requests that no rule names and no limit touches reach the image as they came.
//   2. A request that fails has not reached the image.
//   3. Events of writing (pwritev ...) are the node's own; all others come from the driver above.
//   4. A merge into the image below passes here as one request for each stretch that it copies: a rule for
//      reads or for writes fails it before the image hears of it.
//   5. As in the reference a flush fails only when something was written since the last one that did not.

import type { Completion } from "../base/completion.ts";
import { BlockError } from "../base/errors.ts";
import { type DebugEvent, type DebugHook, debugHookOf } from "../block/debug-event.ts";
import type { Driver, DriverHost, ImageDetails } from "../block/driver.ts";
import { ExtentKind, type ExtentSink } from "../block/extent.ts";
import type { BlockNode } from "../block/node.ts";
import type { DriverFactory } from "../block/open.ts";
import { Errno, hostError } from "../sys/host-error.ts";
import { limitsOf, permissionsOf, rulesOf } from "./blkdebug-options.ts";
import type { BlkdebugRules, IoType } from "./blkdebug-rules.ts";
import { hasLimits, LimitedRequests, type RequestLimits } from "./request-limits.ts";

export class BlkdebugDriver implements Driver {
  readonly driverName = "blkdebug";
  readonly supportsBacking = false;
  readonly isFilter = true;
  readonly clusterSize = 512;
  readonly #host: DriverHost;
  readonly #rules: BlkdebugRules;
  readonly #limited: LimitedRequests | undefined;
  /** Changes so far, and those that the last good flush covers. */
  #changes = 0;
  #flushed = 0;

  constructor(host: DriverHost, rules: BlkdebugRules, limits: RequestLimits) {
    if (host.file === undefined)
      throw new BlockError("EINVAL", `A block device must be specified for "image"`);
    this.#host = host;
    this.#rules = rules;
    this.#limited = hasLimits(limits) ? new LimitedRequests(limits, this.#target()) : undefined;
    rules.event("none");
  }

  /** It is another one when that got an overlay. */
  get #image(): BlockNode {
    return this.#host.file!;
  }

  /** Of a second filter below. */
  get #debugBelow(): DebugHook | undefined {
    return debugHookOf(this.#host.file);
  }

  get size(): number {
    return this.#image.size;
  }

  get growable(): boolean {
    return this.#image.driver.growable;
  }

  debugEvent(event: DebugEvent): void {
    // Whoever has nothing to flush does not come so far in the reference.
    if (event === "flush_to_disk" && this.#changes === this.#flushed) return;
    this.#rules.event(event);
  }

  // --- requests ----------------------------------------------------------------------------------

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    if (this.#limited !== undefined) return this.#limited.read(offset, bytes, buffer, at);
    return this.#read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    if (this.#limited !== undefined) return this.#limited.write(offset, bytes, buffer, at);
    return this.#told("pwritev", () => this.#write(offset, bytes, buffer, at));
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    if (this.#limited !== undefined) {
      const joined = Buffer.concat(parts);
      return this.#limited.write(offset, joined.length, joined, 0);
    }
    const bytes = parts.reduce((sum, part) => sum + part.length, 0);
    return this.#told("pwritev", () => {
      const failed = this.#failing("write", offset, bytes);
      return failed ?? this.#changed(() => this.#image.writeVector(offset, parts));
    });
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    if (this.#limited !== undefined) return this.#limited.writeZeroes(offset, bytes, flags);
    return this.#told("pwritev_zero", () => this.#writeZeroes(offset, bytes, flags));
  }

  discard(offset: number, bytes: number): Completion {
    if (this.#limited !== undefined) return this.#limited.discard(offset, bytes);
    return this.#discard(offset, bytes);
  }

  flush(): Completion {
    this.#debugBelow?.("flush_to_os");
    const changes = this.#changes;
    if (changes !== this.#flushed) {
      const failed = this.#failing("flush", 0, 0);
      if (failed !== undefined) return failed;
      this.#debugBelow?.("flush_to_disk");
    }
    const flushed = this.#image.flush();
    if (flushed === undefined) this.#flushed = changes;
    else {
      return flushed.then(() => {
        this.#flushed = Math.max(this.#flushed, changes);
      });
    }
  }

  extents(offset: number, bytes: number, out: ExtentSink): Completion {
    const failed = this.#failing("block-status", offset, bytes);
    if (failed !== undefined) return failed;
    // An image with layers of its own shows what is behind it: here that is data of this one layer.
    const missing = this.#image.backing === undefined ? ExtentKind.ZERO : ExtentKind.DATA;
    let at = offset;
    return this.#image.extents(offset, bytes, {
      push: (count, kind) => {
        const told = kind === ExtentKind.UNALLOCATED ? missing : kind;
        const wanted = out.push(count, told, at, false);
        at += count;
        return wanted;
      },
    });
  }

  async copyUp(offset: number, bytes: number, base: BlockNode | undefined, idle: boolean): Promise<number> {
    await this.#failing("block-status", offset, bytes);
    await this.#failing("read", offset, bytes);
    this.#rules.event("cor_write");
    await this.#failing("write", offset, bytes);
    let copied = 0;
    await this.#changed(async () => {
      copied = await this.#image.copyUp(offset, bytes, base, idle);
    });
    return copied;
  }

  truncate(size: number): Completion {
    return this.#changed(() => this.#image.truncate(size));
  }

  // --- state -------------------------------------------------------------------------------------

  async setWritable(): Promise<void> {}

  details(): ImageDetails {
    return {};
  }

  allocatedBytes(): number {
    return this.#image.driver.allocatedBytes();
  }

  async close(): Promise<void> {}

  // --- inside ------------------------------------------------------------------------------------

  /** Where requests go that were cut to fit the limits. */
  #target() {
    const image = () => this.#image;
    return {
      get size() {
        return image().size;
      },
      get growable() {
        return image().driver.growable;
      },
      read: (offset: number, bytes: number, buffer: Buffer, at: number) =>
        this.#read(offset, bytes, buffer, at),
      write: (offset: number, bytes: number, buffer: Buffer, at: number) =>
        this.#write(offset, bytes, buffer, at),
      writeZeroes: (offset: number, bytes: number, flags: number) => this.#writeZeroes(offset, bytes, flags),
      discard: (offset: number, bytes: number) => this.#discard(offset, bytes),
      event: (event: DebugEvent) => this.#rules.event(event),
    };
  }

  #read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#failing("read", offset, bytes) ?? this.#image.read(offset, bytes, buffer, at);
  }

  #write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const failed = this.#failing("write", offset, bytes);
    return failed ?? this.#changed(() => this.#image.write(offset, bytes, buffer, at));
  }

  #writeZeroes(offset: number, bytes: number, flags: number): Completion {
    const failed = this.#failing("write-zeroes", offset, bytes);
    return failed ?? this.#changed(() => this.#image.writeZeroes(offset, bytes, flags));
  }

  #discard(offset: number, bytes: number): Completion {
    const failed = this.#failing("discard", offset, bytes);
    return failed ?? this.#changed(() => this.#image.discard(offset, bytes));
  }

  /** Between the event and `pwritev_done`, which comes however the write ends. */
  #told(event: DebugEvent, write: () => Completion): Completion {
    this.#rules.event(event);
    let done: Completion;
    try {
      done = write();
    } catch (error) {
      this.#rules.event("pwritev_done");
      throw error;
    }
    if (done === undefined) this.#rules.event("pwritev_done");
    else return done.finally(() => this.#rules.event("pwritev_done"));
  }

  /** Counts when it has ended, well or not: what a flush that is under way may have missed is not covered. */
  #changed(change: () => Completion): Completion {
    const done = change();
    if (done === undefined) this.#changes++;
    else {
      return done.finally(() => {
        this.#changes++;
      });
    }
  }

  /** Undefined, and the request goes on; or a promise that fails. */
  #failing(type: IoType, offset: number, bytes: number): Promise<void> | undefined {
    const rule = this.#rules.failing(type, offset, bytes);
    if (rule === undefined) return undefined;
    const where = bytes === 0 ? "" : ` of ${bytes} bytes at offset ${offset}`;
    const errno = rule.errno ?? Errno.EIO;
    const error = hostError(
      errno,
      `blkdebug: ${type}${where} on node '${this.#host.name}' (rule for '${rule.event}')`,
    );
    if (rule.immediately === true) throw error;
    return later(error);
  }
}

async function later(error: BlockError): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
  throw error;
}

/** `--blockdev driver=blkdebug,image=...` */
export const blkdebugFactory: DriverFactory = {
  driverName: "blkdebug",
  leaf: false,
  fileOption: "image",
  filePermissions: (options) => ({
    takes: permissionsOf(options, "take-child-perms"),
    denies: permissionsOf(options, "unshare-child-perms"),
  }),
  open: async (host, options) => new BlkdebugDriver(host, rulesOf(options), limitsOf(options)),
};
