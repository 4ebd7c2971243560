// One open file descriptor and the operations of the thread pool that still use it.
//
//   1. A descriptor is closed only when nothing is in flight on it: a number that the kernel gave to another
//      file meanwhile would take our data.
//   2. After `close` each operation answers -EBADF without asking the kernel, for the same reason.
//   3. Results are as in system-calls.ts: a number, below zero -errno; short ones are handed up, EINTR too.

import * as fs from "node:fs";
import { Errno, errnoOf, hostError } from "./host-error.ts";

type Done = (error: NodeJS.ErrnoException | null, count?: number) => void;

/** libuv hands the length to the kernel as it is, and Node refuses 2**31 and more. */
const TRANSFER_MAX = 0x4000_0000;

export class Descriptor {
  #fd: number;
  #inFlight = 0;
  #idle: (() => void)[] = [];

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** The number for calls that finish at once; -1 once it is closed. */
  get fd(): number {
    return this.#fd;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    return this.pooled((done) => fs.read(this.#fd, buffer, at, Math.min(bytes, TRANSFER_MAX), offset, done));
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    return this.pooled((done) => fs.write(this.#fd, buffer, at, Math.min(bytes, TRANSFER_MAX), offset, done));
  }

  writev(offset: number, parts: readonly Buffer[]): Promise<number> {
    return this.pooled((done) => fs.writev(this.#fd, parts, offset, done));
  }

  datasync(): Promise<number> {
    return this.pooled((done) => fs.fdatasync(this.#fd, done));
  }

  truncate(size: number): Promise<number> {
    return this.pooled((done) => fs.ftruncate(this.#fd, size, done));
  }

  /** Runs an operation of the pool that ends in a callback, and counts it as in flight. */
  pooled(start: (done: Done) => void): Promise<number> {
    if (this.#fd < 0) return Promise.resolve(-Errno.EBADF);
    return new Promise((resolve) => {
      this.enter();
      start((error, count) => {
        this.leave();
        resolve(error === null || error === undefined ? (count ?? 0) : -errnoOf(error));
      });
    });
  }

  /** Keeps the descriptor open until `leave`: for work of several steps, which must all go to one file. */
  enter(): void {
    this.#inFlight++;
  }

  leave(): void {
    this.#inFlight--;
    if (this.#inFlight > 0 || this.#idle.length === 0) return;
    const idle = this.#idle;
    this.#idle = [];
    for (const wake of idle) wake();
  }

  /** Waits for what is in flight, then closes. Nothing may be started any more. @throws BlockError */
  async close(path: string): Promise<void> {
    while (this.#inFlight > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
    const fd = this.#fd;
    if (fd < 0) return;
    this.#fd = -1;
    await new Promise<void>((resolve, reject) => {
      fs.close(fd, (error) => {
        if (error) reject(hostError(errnoOf(error), `Could not close '${path}'`, error));
        else resolve();
      });
    });
  }
}
