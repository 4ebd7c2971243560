// A file of the host that fails, or keeps its callers waiting, when a test says so: nbdkit with a script for
// a disk (faulty-disk.sh), shown as a file by nbdfuse. It is a real file system to the daemon: every write
// reaches the disk within the call, and the file's length is fixed, as a device's is.
//
//   IMAGE              what the disk holds, looked at past all faults
//   IMAGE.faulty/      orders for the script
//   IMAGE.faulty/mnt/  where the file is mounted, under the image's name

import { existsSync, mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { expect, onTestFinished } from "vitest";
import { PATIENCE_MS } from "./patience.ts";
import { RunningTool, run, runAnyhow } from "./tool.ts";

const SCRIPT = path.join(import.meta.dirname, "faulty-disk.sh");

/** A kind of call that the disk gets. */
export type DiskCall = "pread" | "pwrite" | "zero" | "trim" | "flush";

export interface FaultySettings {
  /** Every read, and every write, takes so long. */
  readonly delayMs?: number;
}

export class FaultyFile {
  /** What the daemon opens. */
  readonly file: string;
  /** The same bytes in a plain file. */
  readonly disk: string;
  readonly #folder: string;

  private constructor(image: string) {
    this.disk = image;
    this.#folder = `${image}.faulty`;
    this.file = path.join(this.#folder, "mnt", path.basename(image));
  }

  /** Mounts `image` with a length of `bytes`, for the time of a test; a new one holds zeros. */
  static async of(image: string, bytes: number, settings: FaultySettings = {}): Promise<FaultyFile> {
    const faulty = new FaultyFile(image);
    mkdirSync(path.dirname(faulty.file), { recursive: true });
    symlinkSync(image, path.join(faulty.#folder, "disk"));
    writeFileSync(image, "", { flag: "a" });
    truncateSync(image, bytes);
    await faulty.#mount(settings);
    return faulty;
  }

  async #mount({ delayMs = 0 }: FaultySettings): Promise<void> {
    const delays = delayMs === 0 ? [] : [`rdelay=${delayMs}ms`, `wdelay=${delayMs}ms`];
    const filter = delayMs === 0 ? [] : ["--filter=delay"];
    const server = [
      "nbdkit",
      "--exit-with-parent",
      ...filter,
      "sh",
      SCRIPT,
      `folder=${this.#folder}`,
      ...delays,
    ];
    const mounted = new RunningTool("setpriv", [
      "--pdeathsig",
      "KILL",
      "nbdfuse",
      this.file,
      "[",
      ...server,
      "]",
    ]);
    onTestFinished(async () => {
      for (const call of ["pread", "pwrite", "zero", "trim", "flush"] as const) this.release(call);
      await runAnyhow("umount", "--lazy", path.dirname(this.file));
    });
    const isThere = () => (mounted.isRunning ? existsSync(this.file) : undefined);
    await expect.poll(isThere, { timeout: PATIENCE_MS, interval: 20 }).not.toBe(false);
    if (!mounted.isRunning) throw new Error(`nbdfuse has ended: ${(await mounted.done).stderr}`);
  }

  /** From now on such calls fail. A write that fails has written its first half. */
  fail(call: DiskCall, errno: "EIO" | "ENOSPC"): void {
    writeFileSync(this.#flag("fail", call), errno);
  }

  /** Such calls work again. */
  mend(call: DiskCall): void {
    rmSync(this.#flag("fail", call), { force: true });
  }

  /** From now on such calls wait. */
  hold(call: DiskCall): void {
    writeFileSync(this.#flag("hold", call), "");
  }

  /** Until one has come that waits. */
  async held(call: DiskCall): Promise<void> {
    await expect
      .poll(() => existsSync(this.#flag("held", call)), { timeout: PATIENCE_MS, interval: 10 })
      .toBe(true);
  }

  /** Those that wait go on. */
  release(call: DiskCall): void {
    rmSync(this.#flag("held", call), { force: true });
    rmSync(this.#flag("hold", call), { force: true });
  }

  /** What the host has of the file in memory is forgotten: reads ask the disk again. */
  async forget(): Promise<void> {
    await run("dd", `if=${this.file}`, "iflag=nocache", "count=0", "status=none");
  }

  #flag(what: "fail" | "hold" | "held", call: DiskCall): string {
    return path.join(this.#folder, `${what}-${call}`);
  }
}
