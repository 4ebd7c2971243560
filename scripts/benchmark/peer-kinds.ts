// The programs that are compared, and how each of them is started at its best.

import path from "node:path";

/** What a daemon serves under one name. */
export interface DiskImage {
  readonly name: string;
  readonly format: "qcow2" | "raw";
  /** Files, the active one first. */
  readonly chain: readonly string[];
  /** Then several disks may share their files. */
  readonly readOnly: boolean;
}

/** Where a daemon listens. */
export interface Sockets {
  readonly nbd: string;
  readonly qmp: string;
  /** Without QMP: a file that is there as soon as it listens. */
  readonly pid: string;
}

export interface PeerKind {
  readonly name: string;
  readonly hasQmp: boolean;
  readonly environment?: Readonly<Record<string, string>>;
  /** The file that takes what it prints; else that is dropped. */
  readonly output?: string;
  /** The program and its arguments. */
  command(sockets: Sockets, disks: readonly DiskImage[]): readonly string[];
}

/** @param command program, and options in front of the daemon's own */
export function strata(command: readonly string[]): PeerKind {
  return {
    name: "strata",
    hasQmp: true,
    command: (sockets, disks) => [...command, ...daemonOptions(sockets, disks, {}, {})],
  };
}

/** QSD at its best. With an iothread it aborts when a job ends, so jobs go without. */
export function qemuStorageDaemon({ iothread }: { iothread: boolean }): PeerKind {
  return {
    name: "qsd",
    hasQmp: true,
    command: (sockets, disks) => [
      "qemu-storage-daemon",
      ...(iothread ? ["--object", "iothread,id=io0"] : []),
      ...daemonOptions(sockets, disks, { aio: "io_uring" }, iothread ? { iothread: "io0" } : {}),
    ],
  };
}

/** The floor that has no format to interpret: raw files of one folder, with its threads as they come. */
export function nbdkit(): PeerKind {
  return {
    name: "nbdkit",
    hasQmp: false,
    command({ nbd, pid }, disks) {
      const folder = path.dirname(disks[0]!.chain[0]!);
      for (const { format, chain, name } of disks) {
        if (format !== "raw" || chain[0] !== path.join(folder, name)) {
          throw new Error(`nbdkit serves raw files of one folder by their names, not ${chain[0]}`);
        }
      }
      const options = ["--foreground", "--exit-with-parent", "--unix", nbd, "--pidfile", pid];
      return ["nbdkit", ...options, "file", `dir=${folder}`];
    },
  };
}

/** The command line that Strata and QSD share. */
function daemonOptions(
  { nbd, qmp }: Sockets,
  disks: readonly DiskImage[],
  fileOptions: Readonly<Record<string, unknown>>,
  exportOptions: Readonly<Record<string, unknown>>,
): string[] {
  const nodes = disks.flatMap((disk) => ["--blockdev", JSON.stringify(blockdev(disk, fileOptions))]);
  const exports = disks.flatMap(({ name, readOnly }) => {
    const own = { type: "nbd", id: name, "node-name": name, name, writable: !readOnly };
    return ["--export", JSON.stringify({ ...own, ...exportOptions })];
  });
  return [
    ...nodes,
    ...["--nbd-server", `addr.type=unix,addr.path=${nbd},max-connections=0`],
    ...exports,
    ...["--chardev", `socket,id=qmp,path=${qmp},server=on,wait=off`, "--monitor", "chardev=qmp"],
  ];
}

/** The whole chain is spelt out, so that `fileOptions` hold for every file of it. */
export function blockdev(disk: DiskImage, fileOptions: Readonly<Record<string, unknown>>): object {
  let node: object | undefined;
  for (let index = disk.chain.length - 1; index >= 0; index--) {
    const isTop = index === 0;
    const isReadOnly = disk.readOnly || !isTop;
    const access = isReadOnly ? { "read-only": true } : { discard: "unmap" };
    node = {
      driver: disk.format,
      ...(isTop ? { "node-name": disk.name } : {}),
      ...access,
      file: { driver: "file", filename: disk.chain[index], ...access, ...fileOptions },
      ...(node === undefined ? {} : { backing: node }),
    };
  }
  return node!;
}
