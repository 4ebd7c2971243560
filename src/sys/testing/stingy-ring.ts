// A ring for files that does some of the work only, fails when it is told to, and holds operations back.

import { portableCalls } from "../portable-calls.ts";
import type { Ring } from "../ring-share.ts";

export class StingyRing implements Ring {
  ready = true;
  readonly asked: [offset: number, bytes: number][] = [];
  readonly #most: number;
  readonly #errors: number[];
  #held: Promise<void> = Promise.resolve();

  /** Answers with `errors` first, then does `most` bytes at the most. */
  constructor(most: number, errors: number[] = []) {
    this.#most = most;
    this.#errors = errors;
  }

  /** Operations wait until the result is called. */
  hold(): () => void {
    let go = () => {};
    this.#held = new Promise((resolve) => {
      go = resolve;
    });
    return go;
  }

  read(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    const most = Math.min(bytes, this.#most);
    return this.#do(offset, bytes, () => portableCalls.pread(fd, offset, most, buffer, at));
  }

  write(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    const most = Math.min(bytes, this.#most);
    return this.#do(offset, bytes, () => portableCalls.pwrite(fd, offset, most, buffer, at));
  }

  async #do(offset: number, bytes: number, call: () => number): Promise<number> {
    this.asked.push([offset, bytes]);
    await this.#held;
    return this.#errors.shift() ?? call();
  }
}
