// Free host clusters that are known, as runs in order of their place, neighbours joined. A hint: the
// refcounts decide.

/** Runs that are remembered; what is beyond is found again by scanning the refcounts. */
const RUNS_MAX = 16384;

export class FreeRuns {
  readonly #first: number[] = [];
  readonly #count: number[] = [];
  /** A run was not remembered because there were too many. */
  forgotten = false;

  get length(): number {
    return this.#first.length;
  }

  /** First cluster, and length, of the run that would be used next: the one furthest back. */
  get topFirst(): number {
    return this.#first[this.#first.length - 1]!;
  }

  get topCount(): number {
    return this.#count[this.#count.length - 1]!;
  }

  /** Takes `count` clusters from the front of the top run. */
  shrinkTop(count: number): void {
    const top = this.#first.length - 1;
    if (count >= this.#count[top]!) {
      this.#first.length = top;
      this.#count.length = top;
      return;
    }
    this.#first[top] = this.#first[top]! + count;
    this.#count[top] = this.#count[top]! - count;
  }

  add(first: number, count: number): void {
    const at = this.#lowerBound(first);
    const joinsBefore = at > 0 && this.#first[at - 1]! + this.#count[at - 1]! === first;
    const joinsAfter = at < this.#first.length && first + count === this.#first[at];
    if (joinsBefore) {
      this.#count[at - 1] = this.#count[at - 1]! + count + (joinsAfter ? this.#count[at]! : 0);
      if (joinsAfter) this.#remove(at);
    } else if (joinsAfter) {
      this.#first[at] = first;
      this.#count[at] = this.#count[at]! + count;
    } else if (this.#first.length >= RUNS_MAX) {
      this.forgotten = true;
    } else {
      this.#first.splice(at, 0, first);
      this.#count.splice(at, 0, count);
    }
  }

  clear(): void {
    this.#first.length = 0;
    this.#count.length = 0;
    this.forgotten = false;
  }

  #remove(at: number): void {
    this.#first.splice(at, 1);
    this.#count.splice(at, 1);
  }

  /** Index of the first run that begins at `first` or behind it. */
  #lowerBound(first: number): number {
    let low = 0;
    let high = this.#first.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#first[middle]! < first) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
