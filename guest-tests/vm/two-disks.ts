// The two disks of a guest whose images are merged: the root disk that it boots from, and one that it
// attaches to /dev/nbd0 over the network. Both are chains of five images, served by one daemon.
//
//   DIRECTORY/file-A.img ... file-E.img             nodes root-A ... root-E, export root
//   DIRECTORY/data/file-A.img ... file-E.img        nodes data-A ... data-E, export data
//   DIRECTORY/elsewhere/                            where live copies go

import { copyFileSync, mkdirSync } from "node:fs";
import path from "node:path";
import { MiB } from "../../src/base/units.ts";
import { Chain } from "../harness/chain.ts";
import { type Daemon, hmpArguments, nbdServerArguments, startDaemon } from "../harness/daemon.ts";
import { exportArguments } from "../harness/serve.ts";
import { run } from "../harness/tool.ts";
import { bootDebian } from "./debian-guest.ts";
import { diskArguments, layerArguments, layerFile, makeLayers, ROOT_DEVICE } from "./layered-root.ts";
import type { Machine } from "./machine.ts";
import { type TcpServer, tcpServer } from "./tcp-server.ts";

export const DATA_DEVICE = "data";
export const DATA_BYTES = 64 * MiB;

export function dataNode(letter: string): string {
  return `${DATA_DEVICE}-${letter}`;
}

export class TwoDisks {
  readonly directory: string;
  readonly elsewhere: string;
  readonly data: Chain;
  readonly tcp: TcpServer;

  private constructor(directory: string, data: Chain, tcp: TcpServer) {
    this.directory = directory;
    this.elsewhere = path.join(directory, "elsewhere");
    this.data = data;
    this.tcp = tcp;
    mkdirSync(this.elsewhere);
  }

  /** Makes both chains; the guest writes the layers of its root disk itself. */
  static async make(
    directory: string,
    from: { image: string; initramfs: string; seed: number },
  ): Promise<TwoDisks> {
    await makeLayers({ directory, ...from }, nbdServerArguments(directory));
    const dataDirectory = path.join(directory, DATA_DEVICE);
    mkdirSync(dataDirectory);
    const data = await Chain.build(dataDirectory, {
      bytes: DATA_BYTES,
      bytesPerLayer: 8 * MiB,
      base: from.seed % 2 === 0 ? "raw" : "qcow2",
      seed: from.seed,
    });
    return new TwoDisks(directory, data, await tcpServer());
  }

  /** Copies of all images in another directory. */
  async cloneTo(directory: string): Promise<TwoDisks> {
    let below: string | undefined;
    for (const letter of this.data.letters) {
      const copy = layerFile(directory, letter);
      copyFileSync(layerFile(this.directory, letter), copy);
      // Links that a snapshot command writes are absolute, and would lead back to the images that were
      // copied.
      if (below !== undefined)
        await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", copy);
      below = path.basename(copy);
    }
    const dataDirectory = path.join(directory, DATA_DEVICE);
    mkdirSync(dataDirectory);
    return new TwoDisks(directory, await this.data.cloneTo(dataDirectory), await tcpServer());
  }

  /** Serves both, each image as a node of its own. */
  serve(): Promise<Daemon> {
    return startDaemon(this.directory, [
      ...hmpArguments(this.directory),
      ...this.tcp.arguments,
      ...layerArguments(this.directory),
      ...this.data.nodeArguments(dataNode),
      ...exportArguments(dataNode("E"), DATA_DEVICE),
    ]);
  }

  /** Serves them again by the names of their top images; the rest follows from the links on disk. */
  serveTops(tops: { root: string; data: string }): Promise<Daemon> {
    return startDaemon(this.directory, [
      ...this.tcp.arguments,
      ...diskArguments(ROOT_DEVICE, tops.root),
      ...diskArguments(DATA_DEVICE, tops.data),
    ]);
  }

  /** Boots from the root disk and attaches the other one. */
  async boot(initramfs: string): Promise<Machine> {
    const machine = await bootDebian({ initramfs, root: this.tcp.uri(ROOT_DEVICE) });
    await machine.must(`nbd-client ${this.tcp.clientWords(DATA_DEVICE, "/dev/nbd0")}`);
    await machine.must(`test $(cat /sys/block/nbd0/size) = ${DATA_BYTES / 512}`);
    return machine;
  }
}
