// How far the writes under way in other threads reach. The kernel makes the file longer when it does such a
// write, we learn of it later: who makes the file longer by ftruncate in between would cut the write off.

export class EndsInFlight {
  #count = 0;
  #end = 0;
  #idle: (() => void)[] = [];

  /** Past the last byte of any of them; 0 while there is none. */
  get end(): number {
    return this.#end;
  }

  /** A write up to `end` has begun. */
  began(end: number): void {
    this.#count++;
    if (end > this.#end) this.#end = end;
  }

  /** One has ended, with or without success. */
  ended(): void {
    if (--this.#count > 0) return;
    this.#end = 0;
    for (const wake of this.#idle.splice(0)) wake();
  }

  /** Settles when there is none. */
  async idle(): Promise<void> {
    while (this.#count > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }
}
