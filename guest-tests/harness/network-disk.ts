// A disk that the daemon serves over TCP on one port for the whole test, also after the daemon was restarted.

import { statSync } from "node:fs";
import path from "node:path";
import { type Daemon, startDaemon } from "./daemon.ts";
import { freePort } from "./free-port.ts";
import { within } from "./patience.ts";
import { run } from "./tool.ts";

export class NetworkDisk {
  /** The image that guests write to; it lies over a base image. */
  readonly file: string;
  readonly port: number;
  readonly exportName: string;
  daemon!: Daemon;
  readonly #directory: string;

  private constructor(directory: string, port: number, exportName: string) {
    this.#directory = directory;
    this.file = path.join(directory, "disk.qcow2");
    this.port = port;
    this.exportName = exportName;
  }

  /** Makes an empty disk, and serves it. `size` is in words of qemu-img. */
  static async serve(directory: string, size: string, exportName = "virtio0"): Promise<NetworkDisk> {
    const disk = new NetworkDisk(directory, await freePort(), exportName);
    const base = path.join(directory, "base.qcow2");
    await run("qemu-img", "create", "-q", "-f", "qcow2", base, size);
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", disk.file);
    await disk.start();
    return disk;
  }

  /** Starts a daemon on the disk and its port. */
  async start(): Promise<void> {
    const file = `file.driver=file,file.filename=${this.file},file.discard=unmap`;
    this.daemon = await startDaemon(this.#directory, [
      ...["--blockdev", `driver=qcow2,node-name=disk,discard=unmap,${file}`],
      ...["--nbd-server", `addr.type=inet,addr.host=127.0.0.1,addr.port=${this.port}`],
      ...["--export", `type=nbd,id=export,node-name=disk,name=${this.exportName},writable=on`],
    ]);
  }

  /** Ends the daemon: by its monitor, as a service manager does, or as a crash does. Then starts it again. */
  async restart(how: "quit" | "terminate" | "kill"): Promise<void> {
    if (how === "terminate") {
      process.kill(this.daemon.pid, "SIGTERM");
      await within(this.daemon.ended, () => `the daemon does not end\n${this.daemon.output}`);
    } else {
      await this.daemon[how]();
    }
    await this.start();
  }

  /** What the image takes of the host's file system. */
  allocatedBytes(): number {
    return statSync(this.file).blocks * 512;
  }
}
