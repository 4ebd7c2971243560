// What a power cut or a kill may leave of the files of a host.
//
//   1. Every change of every file is recorded, in one order for all of them.
//   2. A sync makes durable what reached its own file before it; other files it does not touch.
//   3. Of what is not durable, each sector of 512 bytes of each change is there or not, in any combination;
//      so changes are torn, and later ones are there while earlier ones are not. A kill loses nothing: then
//      all of it is there.

import type { Completion } from "../../base/completion.ts";
import type { Prng } from "../../base/prng.ts";
import type { HostExtent, HostFile, LockRequest } from "../../sys/host-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { MemoryHost } from "./memory-host.ts";

const SECTOR = 512;

interface Change {
  readonly path: string;
  readonly kind: "write" | "zeroes" | "truncate" | "sync";
  readonly offset: number;
  readonly bytes: number;
  readonly content?: Buffer;
}

export class RecordedHost {
  readonly changes: Change[] = [];
  readonly #before = new Map<string, Buffer>();

  /** Records from now on what happens to the files of `host`. */
  constructor(host: MemoryHost) {
    for (const [path, file] of host.files) this.#before.set(path, file.content());
    host.wrap = (file) => new RecordingFile(file, this.changes);
  }

  /** Whether change `index` is one of the content, not only a sync. */
  isWrite(index: number): boolean {
    return this.changes[index]?.kind !== "sync";
  }

  /**
   * The files when the first `count` changes had happened, with a `share` of what was not durable by then.
   */
  stateAt(count: number, share: number, prng: Prng): MemoryHost {
    const host = new MemoryHost();
    for (const [path, content] of this.#before) host.files.set(path, MemoryFile.of(content, { path }));
    const durable = new Map<string, number>();
    for (let i = 0; i < count; i++) {
      if (this.changes[i]!.kind === "sync") durable.set(this.changes[i]!.path, i);
    }
    for (let i = 0; i < count; i++) {
      const change = this.changes[i]!;
      const kept = i < (durable.get(change.path) ?? -1) ? 1 : share;
      apply(host.file(change.path), change, () => kept === 1 || prng.chance(kept));
    }
    return host;
  }
}

function apply(file: MemoryFile, change: Change, isThere: () => boolean): void {
  const { kind, offset, bytes, content } = change;
  if (kind === "truncate" && isThere()) file.truncate(offset);
  if (kind !== "write" && kind !== "zeroes") return;
  for (let from = offset; from < offset + bytes; ) {
    const to = Math.min(offset + bytes, from - (from % SECTOR) + SECTOR);
    if (isThere()) {
      if (content !== undefined) file.write(from, to - from, content, from - offset);
      else file.writeZeroes(from, to - from, { unmap: true, cheapOnly: false });
    }
    from = to;
  }
}

class RecordingFile implements HostFile {
  readonly #file: HostFile;
  readonly #changes: Change[];

  constructor(file: HostFile, changes: Change[]) {
    this.#file = file;
    this.#changes = changes;
  }

  get path(): string {
    return this.#file.path;
  }

  get writable(): boolean {
    return this.#file.writable;
  }

  get size(): number {
    return this.#file.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    this.#note("write", offset, bytes, Buffer.from(buffer.subarray(at, at + bytes)));
    return this.#file.write(offset, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    const content = Buffer.concat(parts);
    this.#note("write", offset, content.length, content);
    return this.#file.writeVector(offset, parts);
  }

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): Completion {
    this.#note("zeroes", offset, bytes);
    return this.#file.writeZeroes(offset, bytes, options);
  }

  discard(offset: number, bytes: number): Completion {
    this.#note("zeroes", offset, Math.max(0, Math.min(bytes, this.size - offset)));
    return this.#file.discard(offset, bytes);
  }

  sync(): Completion {
    this.#note("sync", 0, 0);
    return this.#file.sync();
  }

  truncate(size: number): Completion {
    this.#note("truncate", size, 0);
    return this.#file.truncate(size);
  }

  extentAt(offset: number): HostExtent {
    return this.#file.extentAt(offset);
  }

  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }

  lock(request: LockRequest): void {
    this.#file.lock(request);
  }

  setWritable(writable: boolean): Promise<void> {
    return this.#file.setWritable(writable);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #note(kind: Change["kind"], offset: number, bytes: number, content?: Buffer): void {
    this.#changes.push({
      path: this.path,
      kind,
      offset,
      bytes,
      ...(content === undefined ? {} : { content }),
    });
  }
}
