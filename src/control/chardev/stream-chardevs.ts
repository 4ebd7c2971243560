// Chardevs that are always open: standard input and output, a file that is written, and nothing.

import fs from "node:fs";
import { fsError } from "../../sys/host-error.ts";
import type { Chardev, Frontend, Peer } from "./chardev.ts";

abstract class StreamChardev implements Chardev {
  readonly id: string;
  abstract readonly filename: string;
  #attached = false;

  constructor(id: string) {
    this.id = id;
  }

  get isOpen(): boolean {
    return this.#attached;
  }

  attach(frontend: Frontend): void {
    this.#attached = true;
    frontend.opened(this.peer());
  }

  protected abstract peer(): Peer;
  abstract close(): Promise<void>;
}

export class StdioChardev extends StreamChardev {
  override readonly filename = "stdio";

  constructor(id: string) {
    super(id);
    // Whoever read our output may go; that ends a conversation, not the daemon.
    process.stdout.on("error", () => {});
    process.stdin.on("error", () => {});
  }

  protected override peer(): Peer {
    return { input: process.stdin, output: process.stdout, close: () => process.stdin.destroy() };
  }

  override async close(): Promise<void> {
    process.stdin.destroy();
  }
}

export class FileChardev extends StreamChardev {
  override readonly filename = "file";
  readonly #stream: fs.WriteStream;

  /** @throws BlockError with the host's errno */
  constructor(id: string, path: string, append: boolean) {
    super(id);
    try {
      const fd = fs.openSync(path, append ? "a" : "w", 0o666);
      this.#stream = fs.createWriteStream("", { fd });
      // A full disk under a log is no reason to stop serving.
      this.#stream.on("error", () => {});
    } catch (error) {
      throw fsError(error, `Failed to open '${path}'`);
    }
  }

  protected override peer(): Peer {
    return { input: undefined, output: this.#stream, close: () => this.#stream.end() };
  }

  override close(): Promise<void> {
    return new Promise((resolve) => this.#stream.end(resolve));
  }
}

export class NullChardev extends StreamChardev {
  override readonly filename = "null";

  protected override peer(): Peer {
    return { input: undefined, output: undefined, close() {} };
  }

  override async close(): Promise<void> {}
}
