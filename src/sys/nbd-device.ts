// What the host says of /dev/nbdN: sysfs, the table of mounts, and the device itself.
//
//   1. A device is connected while the kernel shows a pid for it; then its size is that of the export.
//   2. An exclusive open says whether anybody uses the device: a mount in any namespace, swap, a mapping, on
//      it or on one of its partitions. While we have it open that way nobody can begin to.

import { closeSync, constants, existsSync, fsyncSync, openSync, readdirSync, readFileSync } from "node:fs";
import { open } from "node:fs/promises";
import path from "node:path";
import { BlockError } from "../base/errors.ts";
import { Errno, errnoOf, fsError } from "./host-error.ts";

/** Places of the host, so that tests have their own. */
export interface NbdHost {
  /** /sys/block */
  readonly sysBlock: string;
  /** /proc */
  readonly proc: string;
  /** /dev */
  readonly dev: string;
}

export const realNbdHost: NbdHost = { sysBlock: "/sys/block", proc: "/proc", dev: "/dev" };

const SECTOR_BYTES = 512;
/** linux/capability.h */
const CAP_SYS_ADMIN = 21;
/** Minor numbers are 20 bits wide, and a device has some for partitions. */
const INDEX_MAX = 65535;

/** N of `/dev/nbdN` or `nbdN`. @throws BlockError USAGE for anything else */
export function nbdIndex(name: string): number {
  const match = /^(?:\/dev\/)?nbd(\d{1,5})(p\d+)?$/.exec(name);
  if (match !== null && match[2] === undefined && Number(match[1]) <= INDEX_MAX) return Number(match[1]);
  const hint = match?.[2] === undefined ? "name one as /dev/nbd0" : `the whole device is /dev/nbd${match[1]}`;
  throw new BlockError("USAGE", `'${name}' is no nbd device: ${hint}`);
}

/** Whether this process may connect devices: CAP_SYS_ADMIN, which root has. */
export function mayConnectDevices(host: NbdHost): boolean {
  const match = /^CapEff:\s*([0-9a-f]+)$/m.exec(textOf(path.join(host.proc, "self/status")) ?? "");
  // Where the kernel does not tell it will refuse by itself.
  return match === null || ((BigInt(`0x${match[1]}`) >> BigInt(CAP_SYS_ADMIN)) & 1n) === 1n;
}

/** What the kernel tells of a device. */
export interface NbdDeviceState {
  readonly connected: boolean;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** What was named at CONNECT; undefined with older kernels and other ways to connect. */
  readonly backend: string | undefined;
}

/** undefined where the kernel has no such device. */
export function deviceState(host: NbdHost, index: number): NbdDeviceState | undefined {
  const directory = path.join(host.sysBlock, `nbd${index}`);
  const sectors = textOf(path.join(directory, "size"));
  if (sectors === undefined) return undefined;
  return {
    connected: textOf(path.join(directory, "pid")) !== undefined,
    size: Number(sectors) * SECTOR_BYTES,
    readOnly: textOf(path.join(directory, "ro")) === "1",
    backend: textOf(path.join(directory, "backend")),
  };
}

/** Indexes of all devices, lowest first. */
export function deviceIndexes(host: NbdHost): number[] {
  return namesIn(host.sysBlock)
    .flatMap((name) => /^nbd(\d+)$/.exec(name)?.[1] ?? [])
    .map(Number)
    .sort((a, b) => a - b);
}

/**
 * Who uses the device or a partition of it, in words: "/dev/nbd0p1 is mounted on /mnt". Empty when nobody is
 * known.
 */
export function usersOf(host: NbdHost, index: number): string[] {
  const name = `nbd${index}`;
  const directory = path.join(host.sysBlock, name);
  const partitions = namesIn(directory).filter((one) => one.startsWith(`${name}p`));
  const users: string[] = [];
  for (const part of [name, ...partitions]) {
    const place = part === name ? directory : path.join(directory, part);
    const number = textOf(path.join(place, "dev"));
    for (const where of mountsOf(host, number)) users.push(`/dev/${part} is mounted on ${where}`);
    for (const holder of namesIn(path.join(place, "holders")))
      users.push(`/dev/${part} is part of /dev/${holder}`);
    if (isSwap(host, part)) users.push(`/dev/${part} is swap space`);
  }
  return users;
}

/** Mount points of the device with this `major:minor`. */
function mountsOf(host: NbdHost, number: string | undefined): string[] {
  if (number === undefined) return [];
  const lines = (textOf(path.join(host.proc, "self/mountinfo")) ?? "").split("\n");
  // 36 35 98:0 /root /mount/point options ...
  return lines
    .map((line) => line.split(" "))
    .filter((words) => words[2] === number && words[4] !== undefined)
    .map((words) =>
      words[4]!.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8))),
    );
}

function isSwap(host: NbdHost, part: string): boolean {
  const lines = (textOf(path.join(host.proc, "swaps")) ?? "").split("\n");
  return lines.some((line) => line.split(/\s/)[0] === `/dev/${part}`);
}

/** A device that nobody but us uses. */
export interface ExclusiveDevice {
  /** Brings what the page cache holds of it to the server. @throws BlockError EIO when that fails */
  sync(): void;
  close(): void;
}

/** undefined when somebody uses it. @throws BlockError when it cannot be opened for another reason */
export function openExclusively(host: NbdHost, index: number): ExclusiveDevice | undefined {
  const file = path.join(host.dev, `nbd${index}`);
  let fd: number;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_EXCL);
  } catch (error) {
    if (errnoOf(error) === Errno.EBUSY) return undefined;
    throw fsError(error, `cannot open ${file}`);
  }
  return {
    sync: () => {
      try {
        fsyncSync(fd);
      } catch (error) {
        throw fsError(error, `cannot write what is left to write to ${file}`);
      }
    },
    close: () => closeSync(fd),
  };
}

/** Reads pieces of the device, through a page cache that is empty when nobody else has it open. */
export async function readDevice(
  host: NbdHost,
  index: number,
  pieces: readonly { readonly offset: number; readonly bytes: number }[],
): Promise<Buffer[]> {
  const file = path.join(host.dev, `nbd${index}`);
  try {
    const device = await open(file, "r");
    try {
      const read: Buffer[] = [];
      for (const { offset, bytes } of pieces) {
        const buffer = Buffer.alloc(bytes);
        const { bytesRead } = await device.read(buffer, 0, bytes, offset);
        read.push(buffer.subarray(0, bytesRead));
      }
      return read;
    } finally {
      await device.close();
    }
  } catch (error) {
    throw fsError(error, `cannot read ${file}`);
  }
}

/** Whether the kernel has the driver, loaded or built in. */
export function hasDriver(host: NbdHost): boolean {
  return deviceIndexes(host).length > 0 || existsSync(path.join(host.sysBlock, "../module/nbd"));
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch {
    return [];
  }
}

/** A small file of the kernel without the line end; undefined where it is not there. */
function textOf(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8").trimEnd();
  } catch {
    return undefined;
  }
}
