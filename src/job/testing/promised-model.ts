// What a disk must show after a crash: for each byte what a flush acknowledged, or what was written since.

/** A change of the disk by a guest; `at` are counts of host changes. */
export interface GuestWrite {
  readonly offset: number;
  readonly bytes: number;
  /** Undefined: zeros. */
  readonly payload: Buffer | undefined;
  readonly beganAt: number;
  settled: boolean;
}

interface Promise {
  readonly acknowledgedAt: number;
  /** Writes that the flush covers. */
  readonly writes: readonly GuestWrite[];
}

export class PromisedModel {
  readonly #initial: Buffer;
  readonly #writes: GuestWrite[] = [];
  readonly #promises: Promise[] = [];

  constructor(initial: Buffer) {
    this.#initial = Buffer.from(initial);
  }

  /** Of one client: its writes do not overlap others that are under way. */
  begin(offset: number, bytes: number, payload: Buffer | undefined, at: number): GuestWrite {
    const write = { offset, bytes, payload, beganAt: at, settled: false };
    this.#writes.push(write);
    return write;
  }

  /** What a flush that is asked for now will cover; to be given to `acknowledge`. */
  covered(): readonly GuestWrite[] {
    return this.#writes.filter((write) => write.settled);
  }

  acknowledge(writes: readonly GuestWrite[], at: number): void {
    this.#promises.push({ acknowledgedAt: at, writes });
  }

  /** Undefined when the disk may look so after a crash at `at`; else words. */
  judge(seen: Buffer, at: number): string | undefined {
    const kept = new Set<GuestWrite>();
    for (const promise of this.#promises) {
      if (promise.acknowledgedAt <= at) for (const write of promise.writes) kept.add(write);
    }
    const expected = Buffer.from(this.#initial);
    for (const write of this.#writes) if (kept.has(write)) put(expected, write);
    if (seen.equals(expected)) return undefined;
    const possible = this.#writes.filter((write) => !kept.has(write) && write.beganAt <= at);
    for (let i = 0; i < seen.length; i++) {
      if (seen[i] === expected[i] || possible.some((write) => valueAt(write, i) === seen[i])) continue;
      return `byte ${i} is ${seen[i]}; ${expected[i]} was flushed`;
    }
    return undefined;
  }

  /** The disk when everything has settled. */
  content(): Buffer {
    const content = Buffer.from(this.#initial);
    for (const write of this.#writes) put(content, write);
    return content;
  }
}

function put(content: Buffer, { offset, bytes, payload }: GuestWrite): void {
  if (payload === undefined) content.fill(0, offset, offset + bytes);
  else payload.copy(content, offset);
}

function valueAt({ offset, bytes, payload }: GuestWrite, index: number): number | undefined {
  if (index < offset || index >= offset + bytes) return undefined;
  return payload === undefined ? 0 : payload[index - offset];
}
