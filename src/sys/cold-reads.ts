// Reads that the page cache could not answer. A way through the thread pool costs 40 to 60 us of CPU, ten
// times what the read itself does; with many of them in flight most need not go there:
//
//   1. Looking into the page cache without waiting (RWF_NOWAIT) has already told the kernel to fetch what is
//      missing. So a few reads wait in the pool, the others are parked.
//   2. Whenever one of the pool comes back, the parked ones are looked at again, in order of arrival; as many
//      as are there by now are done. Then the oldest of the rest take the free places in the pool: everyone
//      gets there, nobody is parked while a place is free, and nothing polls.
//   3. Where looking again hardly ever helps (a kernel or file system that fetches nothing for such a look),
//      reads go to the pool at once for a while.

/** A read under way: `done` of its `bytes` are in `buffer` from `at` on. */
export interface ColdRead {
  readonly offset: number;
  readonly bytes: number;
  readonly buffer: Buffer;
  readonly at: number;
  done: number;
}

interface Parked extends ColdRead {
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export interface ColdReadCalls {
  /** Reads on as far as the page cache goes, and says whether that was all. @throws BlockError */
  look(read: ColdRead): boolean;
  /** Reads the rest in the pool. */
  wait(read: ColdRead): Promise<void>;
}

/** Reads in the pool while others are parked. */
const WAITERS = 4;
/** After so many in a row that are not there yet, the younger ones are not looked at. */
const MISSES_MAX = 3;
/** Of so many parked reads, so few found by looking again mean that it does not pay. */
const WINDOW = 256;
const FOUND_MIN = 32;
/** Then so many go to the pool before it is tried again. */
const DIRECT = 4096;

export class ColdReads {
  readonly #calls: ColdReadCalls;
  readonly #parked: Parked[] = [];
  #waiting = 0;
  #direct = 0;
  // Of the window at hand.
  #found = 0;
  #promoted = 0;

  constructor(calls: ColdReadCalls) {
    this.#calls = calls;
  }

  /** Reads that are neither done nor in the pool. */
  get parked(): number {
    return this.#parked.length;
  }

  /** Finishes a read of which the page cache held `done` bytes. */
  read(offset: number, done: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    if (this.#direct > 0) {
      this.#direct--;
      return this.#calls.wait({ offset, bytes, buffer, at, done });
    }
    if (this.#waiting < WAITERS) return this.#wait({ offset, bytes, buffer, at, done });
    return new Promise((resolve, reject) => {
      this.#parked.push({ offset, bytes, buffer, at, done, resolve, reject });
    });
  }

  async #wait(read: ColdRead): Promise<void> {
    this.#waiting++;
    try {
      await this.#calls.wait(read);
    } finally {
      this.#waiting--;
      if (this.#parked.length > 0) this.#lookAgain();
    }
  }

  #lookAgain(): void {
    const parked = this.#parked;
    let kept = 0;
    let misses = 0;
    for (let i = 0; i < parked.length; i++) {
      const read = parked[i]!;
      if (misses < MISSES_MAX && this.#finish(read)) continue;
      misses++;
      parked[kept++] = read;
    }
    this.#found += parked.length - kept;
    parked.length = kept;
    while (parked.length > 0 && this.#waiting < WAITERS) this.#promote(parked.shift()!);
    this.#judge();
  }

  #finish(read: Parked): boolean {
    try {
      if (!this.#calls.look(read)) return false;
      read.resolve();
    } catch (error) {
      read.reject(error);
    }
    return true;
  }

  #promote(read: Parked): void {
    this.#promoted++;
    this.#wait(read).then(read.resolve, read.reject);
  }

  #judge(): void {
    if (this.#found + this.#promoted < WINDOW) return;
    if (this.#found < FOUND_MIN) this.#direct = DIRECT;
    this.#found = 0;
    this.#promoted = 0;
  }
}
