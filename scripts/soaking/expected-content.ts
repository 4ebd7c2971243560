// What a disk must hold, sector by sector, through failed requests, restarts and kills.
//
//   1. A write that was answered is what its sectors hold. Writes in flight never overlap, so the writes of a
//      sector have an order.
//   2. A trim, a failed request and one without an answer leave each of their sectors as it was or as asked
//      for.
//   3. A flush promises what was answered before it was sent. After a kill a sector holds what was promised
//      last or anything that was sent later. A write with FUA promises its own sectors.
//   4. What was read decides: from then on the sector holds that.

/** A change of a piece of the disk; in sectors. `stamp` says what it leaves: 0 is zeros. */
export interface Change {
  readonly first: number;
  readonly count: number;
  readonly stamp: number;
}

interface Sent extends Change {
  /** It is what its sectors hold; otherwise they may hold it. */
  readonly certain: boolean;
}

export class ExpectedContent {
  readonly #current: Uint32Array;
  readonly #promised: Uint32Array;
  /** Sectors that may hold one of these as well as what is current. */
  readonly #maybe = new Map<number, Set<number>>();
  #sinceFlush: Sent[] = [];
  /** What the flush in flight will promise. */
  #covered: Sent[] = [];

  /** A disk of zeros that may grow to so many sectors. */
  constructor(sectorsMax: number) {
    this.#current = new Uint32Array(sectorsMax);
    this.#promised = new Uint32Array(sectorsMax);
  }

  /** Sectors of which more than one content is allowed. */
  get undecided(): number {
    return this.#maybe.size;
  }

  /** The change was answered with success, and leaves nothing to choose. */
  changed(change: Change): void {
    for (let sector = change.first; sector < change.first + change.count; sector++) {
      const maybe = this.#maybe.get(sector);
      if (maybe !== undefined) {
        // A kill may bring back any of them.
        for (const stamp of [this.#current[sector]!, ...maybe]) this.#note({ sector, stamp, certain: false });
        this.#maybe.delete(sector);
      }
      this.#current[sector] = change.stamp;
    }
    this.#sinceFlush.push({ ...change, certain: true });
  }

  /** The same for a change that is durable: a kill brings back nothing older. */
  changedDurably(change: Change): void {
    const { first, count, stamp } = change;
    for (let sector = first; sector < first + count; sector++) this.#maybe.delete(sector);
    this.#current.fill(stamp, first, first + count);
    this.#promised.fill(stamp, first, first + count);
    this.#sinceFlush = this.#sinceFlush.flatMap((sent) => outside(sent, change));
    this.#covered = this.#covered.flatMap((sent) => outside(sent, change));
  }

  /** Each sector of the change is as it was, or as the change leaves it. */
  mayHaveChanged(change: Change): void {
    for (let sector = change.first; sector < change.first + change.count; sector++) {
      this.#allow(sector, change.stamp);
    }
    this.#sinceFlush.push({ ...change, certain: false });
  }

  /** A flush is being sent: it will promise what was answered so far. One flush at a time. */
  flushing(): void {
    this.#covered = this.#sinceFlush;
    this.#sinceFlush = [];
  }

  flushed(): void {
    for (const { first, count, stamp, certain } of this.#covered) {
      if (certain) this.#promised.fill(stamp, first, first + count);
    }
    this.#covered = [];
  }

  flushFailed(): void {
    this.#sinceFlush = [...this.#covered, ...this.#sinceFlush];
    this.#covered = [];
  }

  /** The daemon ended in peace: everything that was answered is on disk. */
  ended(): void {
    this.flushing();
    this.flushed();
  }

  /** The daemon was killed: what no flush has promised may be there or not. */
  killed(): void {
    for (const { first, count, stamp } of this.#sinceFlush) {
      for (let sector = first; sector < first + count; sector++) {
        this.#allow(sector, stamp);
        this.#allow(sector, this.#promised[sector]!);
      }
    }
    this.#sinceFlush = [];
  }

  /** Takes note of what a sector holds. False when it must not hold that. */
  seen(sector: number, stamp: number): boolean {
    const maybe = this.#maybe.get(sector);
    if (maybe === undefined) return this.#current[sector] === stamp;
    if (this.#current[sector] !== stamp && !maybe.has(stamp)) return false;
    this.#maybe.delete(sector);
    this.#current[sector] = stamp;
    // No flush has covered it since it was in doubt.
    this.#note({ sector, stamp, certain: true });
    return true;
  }

  /** What a sector may hold, in words. */
  describe(sector: number): string {
    const stamps = new Set([this.#current[sector]!, ...(this.#maybe.get(sector) ?? [])]);
    return [...stamps].map((stamp) => (stamp === 0 ? "zeros" : `write ${stamp}`)).join(" or ");
  }

  /** Neighbours of one kind become one entry. */
  #note({ sector, stamp, certain }: { sector: number; stamp: number; certain: boolean }): void {
    const last = this.#sinceFlush.at(-1);
    const joins = last?.certain === certain && last.stamp === stamp && last.first + last.count === sector;
    if (joins) this.#sinceFlush[this.#sinceFlush.length - 1] = { ...last, count: last.count + 1 };
    else this.#sinceFlush.push({ first: sector, count: 1, stamp, certain });
  }

  #allow(sector: number, stamp: number): void {
    const maybe = this.#maybe.get(sector);
    if (maybe !== undefined) maybe.add(stamp);
    else if (this.#current[sector] !== stamp) this.#maybe.set(sector, new Set([stamp]));
  }
}

/** What of `sent` lies outside of the change. */
function outside(sent: Sent, { first, count }: Change): Sent[] {
  const end = sent.first + sent.count;
  const before = { ...sent, count: Math.min(end, first) - sent.first };
  const from = Math.max(sent.first, first + count);
  return [before, { ...sent, first: from, count: end - from }].filter((part) => part.count > 0);
}
