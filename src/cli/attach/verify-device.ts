// Whether /dev/nbdN shows the export that it was connected to.
//
//   1. The kernel's own words: connected, size, read-only, and the backend where the kernel tells it.
//   2. Bytes: pieces read from the export, then from the device, then from the export again. Others may write
//      meanwhile, so a difference counts only while the export itself stands still, and only when it stays.

import { setTimeout as sleep } from "node:timers/promises";
import { detailsOf, NbdClient } from "../../../nbd/client.ts";
import type { ExportDetails } from "../../../nbd/client-handshake.ts";
import { TransmissionFlags } from "../../../nbd/protocol.ts";
import { BlockError } from "../../base/errors.ts";
import { KiB } from "../../base/units.ts";
import { deviceState, type NbdHost, readDevice } from "../../sys/nbd-device.ts";
import type { DevicePlan } from "./kernel-driver.ts";

const PIECE_BYTES = 64 * KiB;
const SECTOR_BYTES = 512;
const COMPARISONS = 5;
const PAUSE_MS = 100;
/** A device that answers nothing for so long is given up. */
const READ_MS_MAX = 60_000;

export interface VerifiedDevice {
  /** Bytes of the device. */
  readonly size: number;
  readonly readOnly: boolean;
  /** "unknown": others never stopped to write, or the device was in use already. */
  readonly bytes: "equal" | "unknown";
}

/** @throws BlockError EIO that says what is different */
export async function verifyDevice(host: NbdHost, index: number, plan: DevicePlan): Promise<VerifiedDevice> {
  const client = await NbdClient.connect(plan.target);
  try {
    const verified = verifyState(host, index, { ...plan, ...client.details });
    const pieces = piecesOf(verified.size);
    const bytes = await isEqual({
      device: () => inTime(readDevice(host, index, pieces), index),
      exported: () => Promise.all(pieces.map(({ offset, bytes }) => client.read(offset, bytes))),
    });
    if (bytes === "different") throw wrong(index, `its bytes are not those of ${plan.uri}`);
    return { ...verified, bytes };
  } finally {
    client.destroy();
  }
}

/** Without a look at the bytes: a device that is in use may hold newer ones than the server has. */
export async function verifyUsedDevice(
  host: NbdHost,
  index: number,
  plan: DevicePlan,
): Promise<VerifiedDevice> {
  return verifyState(host, index, { ...plan, ...(await detailsOf(plan.target)) });
}

function verifyState(
  host: NbdHost,
  index: number,
  expected: Pick<DevicePlan, "uri" | "readOnly"> & Pick<ExportDetails, "size" | "flags">,
): VerifiedDevice {
  const { uri } = expected;
  const size = Math.floor(expected.size / SECTOR_BYTES) * SECTOR_BYTES;
  const readOnly = expected.readOnly || (expected.flags & TransmissionFlags.READ_ONLY) !== 0;
  const state = deviceState(host, index);
  if (state?.connected !== true) throw wrong(index, "the kernel does not show it as connected");
  if (state.size !== size) throw wrong(index, `it has ${state.size} bytes, and ${uri} has ${size}`);
  if (readOnly && !state.readOnly) throw wrong(index, "it can be written to, though it must not");
  if (state.backend !== undefined && state.backend !== uri) {
    throw wrong(index, `the kernel says that it shows ${state.backend}`);
  }
  return { size, readOnly: state.readOnly, bytes: "unknown" };
}

function wrong(index: number, what: string): BlockError {
  return new BlockError("EIO", `/dev/nbd${index} is not the disk that was asked for: ${what}`);
}

/** The beginning and the end, in whole sectors. */
export function piecesOf(size: number): { offset: number; bytes: number }[] {
  const bytes = Math.min(PIECE_BYTES, size);
  return size <= bytes
    ? [{ offset: 0, bytes }]
    : [
        { offset: 0, bytes },
        { offset: size - bytes, bytes },
      ];
}

/** "unknown" when the export never stood still. */
export async function isEqual(read: {
  device: () => Promise<Buffer[]>;
  exported: () => Promise<Buffer[]>;
}): Promise<"equal" | "different" | "unknown"> {
  let stoodStill = false;
  for (let tries = 0; tries < COMPARISONS; tries++) {
    if (tries > 0) await sleep(PAUSE_MS);
    const before = await read.exported();
    const device = await read.device();
    const after = await read.exported();
    if (same(device, before) || same(device, after)) return "equal";
    if (same(before, after)) stoodStill = true;
  }
  return stoodStill ? "different" : "unknown";
}

function same(ones: readonly Buffer[], others: readonly Buffer[]): boolean {
  return ones.every((one, at) => one.equals(others[at]!));
}

async function inTime<T>(reading: Promise<T>, index: number): Promise<T> {
  const timer = new AbortController();
  const late = sleep(READ_MS_MAX, undefined, { signal: timer.signal }).then(() => {
    throw new BlockError("EIO", `/dev/nbd${index} does not answer within ${READ_MS_MAX / 1000} seconds`);
  });
  try {
    return await Promise.race([reading, late]);
  } finally {
    timer.abort();
    late.catch(() => undefined);
    reading.catch(() => undefined);
  }
}
