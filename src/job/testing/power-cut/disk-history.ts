// What a disk may show after a power cut: for each byte what the guest wrote last before a flush that was
// answered, or anything that it wrote since.
//
//   1. A change is kept from the moment in which a flush is answered that was asked for after the change had
//      been answered.
//   2. What a kept change covers shows none of the changes that had been answered before it began.
//   3. A discard makes zeros, or nothing: it covers nothing.
//   4. A disk that was made longer shows zeros there; its new length is kept when that was answered.
//
// Moments are places in the host's log; what happens between two of them is told apart by `#tick`.

export interface DiskChange {
  readonly offset: number;
  readonly bytes: number;
  /** Undefined: zeros. */
  readonly payload: Buffer | undefined;
  readonly isDiscard: boolean;
  readonly began: number;
  readonly beganTick: number;
  settledTick: number;
  /** From here on it is there after a power cut. */
  kept: number;
}

interface Length {
  readonly bytes: number;
  readonly began: number;
  kept: number;
}

const NEVER = Number.POSITIVE_INFINITY;
/** What is the same is passed over in pieces. */
const PIECE_BYTES = 512;

export class DiskHistory {
  readonly #initial: Buffer;
  readonly #changes: DiskChange[] = [];
  readonly #lengths: Length[];
  #tick = 0;
  /** The disk with all kept changes up to `#expectedAt`: what it shows most of the time. */
  #expected: Buffer;
  readonly #applied = new Set<DiskChange>();

  constructor(initial: Buffer) {
    this.#initial = initial;
    this.#expected = Buffer.from(initial);
    this.#lengths = [{ bytes: initial.length, began: 0, kept: 0 }];
  }

  begin(change: Pick<DiskChange, "offset" | "bytes" | "payload" | "isDiscard">, now: number): DiskChange {
    const begun = { ...change, began: now, beganTick: this.#tick++, settledTick: NEVER, kept: NEVER };
    this.#changes.push(begun);
    return begun;
  }

  settle(change: DiskChange): void {
    change.settledTick = this.#tick++;
  }

  /** What a flush that is asked for now keeps. */
  covered(): DiskChange[] {
    return this.#changes.filter(({ settledTick, kept }) => settledTick !== NEVER && kept === NEVER);
  }

  keep(changes: readonly DiskChange[], now: number): void {
    for (const change of changes) change.kept = Math.min(change.kept, now);
  }

  /** The disk is being made longer. */
  grow(bytes: number, now: number): Length {
    const length = { bytes, began: now, kept: NEVER };
    this.#lengths.push(length);
    return length;
  }

  keepLength(length: Length, now: number): void {
    length.kept = now;
  }

  /** It did not become longer after all. */
  dropLength(length: Length): void {
    this.#lengths.splice(this.#lengths.indexOf(length), 1);
  }

  /**
   * Undefined when the disk may look so after a power cut at `at`; else words. To be asked in order of `at`.
   */
  judge(seen: Buffer, at: number): string | undefined {
    const keptLength = this.#lengths.findLastIndex(({ kept }) => kept <= at);
    const lengths = this.#lengths.slice(keptLength).filter(({ began }) => began <= at);
    if (!lengths.some(({ bytes }) => bytes === seen.length)) {
      return `the disk has ${seen.length} bytes, and should have ${lengths.map(({ bytes }) => bytes).join(" or ")}`;
    }
    const expected = this.#expectedAt(at, seen.length);
    if (seen.equals(expected)) return undefined;
    const possible = this.#changes.filter(({ began }) => began <= at).reverse();
    for (let start = 0; start < seen.length; start += PIECE_BYTES) {
      const end = Math.min(start + PIECE_BYTES, seen.length);
      if (seen.compare(expected, start, end, start, end) === 0) continue;
      const near = possible.filter(({ offset, bytes }) => offset < end && start < offset + bytes);
      for (let i = start; i < end; i++) {
        if (seen[i] === expected[i]) continue;
        if (!this.#mayBe(seen[i]!, i, near, at))
          return `byte ${i} (sector ${i >> 9}) is ${seen[i]}; ${expected[i]} was flushed`;
      }
    }
    return undefined;
  }

  #expectedAt(at: number, length: number): Buffer {
    if (this.#expected.length < length) {
      this.#expected = Buffer.concat([this.#expected], length);
    }
    for (const change of this.#changes) {
      if (change.kept > at || this.#applied.has(change)) continue;
      this.#applied.add(change);
      const { offset, bytes, payload, isDiscard } = change;
      if (isDiscard) continue;
      if (offset + bytes > this.#expected.length)
        this.#expected = Buffer.concat([this.#expected], offset + bytes);
      if (payload === undefined) this.#expected.fill(0, offset, offset + bytes);
      else payload.copy(this.#expected, offset);
    }
    return this.#expected.length === length ? this.#expected : this.#expected.subarray(0, length);
  }

  /** @param changes those that had begun, latest first */
  #mayBe(value: number, index: number, changes: readonly DiskChange[], at: number): boolean {
    let coveredSince = -1;
    for (const { offset, bytes, isDiscard, beganTick, kept } of changes) {
      if (index < offset || index >= offset + bytes || isDiscard || kept > at) continue;
      coveredSince = Math.max(coveredSince, beganTick);
    }
    for (const { offset, bytes, payload, settledTick } of changes) {
      if (index < offset || index >= offset + bytes || settledTick < coveredSince) continue;
      if ((payload === undefined ? 0 : payload[index - offset]) === value) return true;
    }
    return coveredSince < 0 && (this.#initial[index] ?? 0) === value;
  }
}
