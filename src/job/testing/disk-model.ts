// What a guest may see of its disk: an array of bytes, and for each byte how sure that is.
//
//   1. A write that succeeded is what reads show; one that failed leaves the old bytes or the new ones.
//   2. Where two requests overlap in time and place, and one of them writes, either order is right.
//   3. A discard leaves the old bytes or zeros.
//   4. What was seen once stays so until somebody writes: snapshots and merges change nothing.

import { isZero } from "../../base/bytes.ts";

const Doubt = { NONE: 0, ANYTHING: 1, OLD_OR_ZERO: 2 } as const;

/** A request that is under way. */
export class ModelRequest {
  readonly offset: number;
  readonly bytes: number;
  readonly writes: boolean;
  /** Bytes that somebody else writes at the same time. */
  contested: Uint8Array | undefined;

  constructor(offset: number, bytes: number, writes: boolean) {
    this.offset = offset;
    this.bytes = bytes;
    this.writes = writes;
  }

  contest(offset: number, end: number): void {
    this.contested ??= new Uint8Array(this.bytes);
    this.contested.fill(1, Math.max(0, offset - this.offset), Math.max(0, end - this.offset));
  }
}

export class DiskModel {
  readonly content: Buffer;
  readonly #doubt: Buffer;
  readonly #underWay = new Set<ModelRequest>();

  constructor(content: Buffer) {
    this.content = Buffer.from(content);
    this.#doubt = Buffer.alloc(content.length);
  }

  begin(offset: number, bytes: number, writes: boolean): ModelRequest {
    const request = new ModelRequest(offset, bytes, writes);
    for (const other of this.#underWay) {
      const from = Math.max(offset, other.offset);
      const end = Math.min(offset + bytes, other.offset + other.bytes);
      if (from >= end) continue;
      if (other.writes) request.contest(from, end);
      if (writes) other.contest(from, end);
    }
    this.#underWay.add(request);
    return request;
  }

  /** The range holds `written` now; zeros where that is undefined. */
  wrote(request: ModelRequest, written: Buffer | undefined): void {
    this.#underWay.delete(request);
    const { offset, bytes, contested } = request;
    if (written === undefined) this.content.fill(0, offset, offset + bytes);
    else written.copy(this.content, offset);
    this.#doubt.fill(Doubt.NONE, offset, offset + bytes);
    for (let i = 0; contested !== undefined && i < bytes; i++) {
      if (contested[i] === 1) this.#doubt[offset + i] = Doubt.ANYTHING;
    }
  }

  discarded(request: ModelRequest): void {
    this.#underWay.delete(request);
    for (let i = 0; i < request.bytes; i++) {
      const at = request.offset + i;
      const known = this.#doubt[at] !== Doubt.ANYTHING && request.contested?.[i] !== 1;
      this.#doubt[at] = known ? Doubt.OLD_OR_ZERO : Doubt.ANYTHING;
    }
  }

  /** A change that failed: the range is as before, or changed in part. */
  failed(request: ModelRequest): void {
    this.#underWay.delete(request);
    if (request.writes) this.#doubt.fill(Doubt.ANYTHING, request.offset, request.offset + request.bytes);
  }

  /** Compares what a read brought, and learns from it. Undefined when it is right, else words. */
  read(request: ModelRequest, seen: Buffer): string | undefined {
    this.#underWay.delete(request);
    if (this.#isExpected(request, seen)) return undefined;
    for (let i = 0; i < request.bytes; i++) {
      if (request.contested?.[i] === 1) continue;
      const at = request.offset + i;
      const right = this.#isRight(at, seen[i]!);
      if (!right) return `byte ${at} is ${seen[i]}, and should be ${this.content[at]}`;
      this.content[at] = seen[i]!;
      this.#doubt[at] = Doubt.NONE;
    }
    return undefined;
  }

  /** The same for the whole disk while nothing is under way. */
  readAll(seen: Buffer): string | undefined {
    return this.read(this.begin(0, this.content.length, false), seen);
  }

  /** The quick way: all bytes are as they should be, and none of them is in doubt. */
  #isExpected({ offset, bytes, contested }: ModelRequest, seen: Buffer): boolean {
    if (contested !== undefined || !isZero(this.#doubt, offset, bytes)) return false;
    return seen.equals(this.content.subarray(offset, offset + bytes));
  }

  #isRight(at: number, seen: number): boolean {
    const doubt = this.#doubt[at];
    if (doubt === Doubt.ANYTHING || seen === this.content[at]) return true;
    return doubt === Doubt.OLD_OR_ZERO && seen === 0;
  }
}
