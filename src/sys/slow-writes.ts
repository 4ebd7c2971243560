// Whether small writes of a file go beside the event loop, to the ring. On the loop a copy into the page
// cache costs least, as long as it is one: 4 to 9 us for 4 KiB. But ext4 takes 30 to 60 us where the cache
// has the file in large folios, and a write waits while another thread writes the same file. Then, if the
// client has more than one request at a time, the loop serves the others meanwhile.
//
//             most of 32 were slow, and there is a ring
//   ON THE LOOP ---------------------------------------> BESIDE IT
//      ^  ^                                                |   |
//      |  \---- too little company: rest a while ----------/   |
//      \------- after 2048: are they still slow? --------------/
//
// Company: how many reads and writes of the file begin while a write is under way. The way to the kernel's
// thread and back (60 us and more) is lost on a client that has few requests at a time.

import { MiB } from "../base/units.ts";

/** Over NBD at depth 32 the loop is 1.2 times as fast where a write takes 7 us, the ring 1.4 times at 17. */
const SLOW_MS = 0.012;
const SLOW_MS_PER_BYTE = 0.1 / MiB;
const WINDOW = 32;
const WINDOWS_BESIDE = 64;
/**
 * Company of a write, on the average. On two cores over NBD, ext4, large folios: with 3.6 (70/30 mix, depth
 * 4) the ring gave 1.0 of the loop's throughput for 1.2 of its CPU, with 6 (writes, depth 8) 1.4, with 10
 * (mix, depth 8) 1.6, with 24 (writes, depth 32) 1.3, with 22 (mix, depth 16) 1.9.
 */
const COMPANY_MIN = 4;
/** Writes on the loop before it is tried again; doubled while that is in vain, up to the maximum. */
const REST = 1024;
const REST_MAX = 16_384;

export class SlowWrites {
  readonly #mayGoBeside: () => boolean;
  #beside = false;
  #rest = 0;
  #nextRest = REST;
  // Of the window at hand.
  #seen = 0;
  #slow = 0;
  #company = 0;
  #windows = 0;

  /** @param mayGoBeside whether there is a ring now */
  constructor(mayGoBeside: () => boolean) {
    this.#mayGoBeside = mayGoBeside;
  }

  /** Whether the next write goes beside the loop. */
  get beside(): boolean {
    return this.#beside;
  }

  /** A write on the loop took so long. */
  wroteOnLoop(bytes: number, tookMs: number): void {
    // The ring had no room for it: that tells nothing of the others.
    if (this.#beside) return;
    if (this.#rest > 0) {
      this.#rest--;
      return;
    }
    if (tookMs > SLOW_MS + bytes * SLOW_MS_PER_BYTE) this.#slow++;
    if (++this.#seen < WINDOW) return;
    if (this.#slow > WINDOW / 2 && this.#mayGoBeside()) this.#beside = true;
    this.#seen = 0;
    this.#slow = 0;
  }

  /** A write beside the loop has ended; so many reads and writes of the file have begun meanwhile. */
  wroteBeside(company: number): void {
    // It began before the last verdict.
    if (!this.#beside) return;
    this.#company += company;
    if (++this.#seen < WINDOW) return;
    if (this.#company < COMPANY_MIN * WINDOW) {
      this.#beside = false;
      this.#rest = this.#nextRest;
      this.#nextRest = Math.min(this.#nextRest * 2, REST_MAX);
    } else {
      this.#nextRest = REST;
      if (++this.#windows === WINDOWS_BESIDE) this.#beside = false;
    }
    if (!this.#beside) this.#windows = 0;
    this.#seen = 0;
    this.#company = 0;
  }
}
