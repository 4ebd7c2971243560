// The guests in a process of their own: they share no memory and no event loop with whoever drives the run.

import { errorMessage } from "../../src/base/errors.ts";
import { Prng } from "../../src/base/prng.ts";
import { MiB } from "../../src/base/units.ts";
import { Guest } from "./guest.ts";
import type { GuestAnswer, GuestCall } from "./guest-process.ts";
import { SECTOR } from "./sector-content.ts";

/** By the name of their disk. */
const guests = new Map<string, Guest>();

function tell(answer: GuestAnswer): void {
  process.send!(answer);
}

function guestOf(disk: string): Guest {
  const guest = guests.get(disk);
  if (guest === undefined) throw new Error(`no guest has the disk ${disk}`);
  return guest;
}

async function run(call: GuestCall): Promise<unknown> {
  switch (call.do) {
    case "make":
      guests.set(
        call.disk,
        new Guest({
          name: `the guest of ${call.disk}`,
          sectorsMax: (call.mebibytesMax * MiB) / SECTOR,
          prng: new Prng(call.seed),
          wrong: (what) => tell({ wrong: what }),
        }),
      );
      return undefined;
    case "connect":
      return guestOf(call.disk).connect(call.uri);
    case "fill":
      return guestOf(call.disk).fill();
    case "work":
      return guestOf(call.disk).work();
    case "rest":
      return guestOf(call.disk).rest();
    case "disconnect":
      return guestOf(call.disk).disconnect();
    case "allowErrors":
      return guestOf(call.disk).allowErrors(call.count);
    case "afterWrites":
      return guestOf(call.disk).afterWrites(call.count);
    case "expectLoss":
      return guestOf(call.disk).expectLoss();
    case "lost":
      return guestOf(call.disk).lost(call.how);
    case "takeFigures":
      return guestOf(call.disk).takeFigures();
    case "checkDisk":
      return guestOf(call.disk).checkDisk();
    case "checkFile":
      return guestOf(call.disk).checkFile(call.filename);
  }
}

process.on("message", ({ id, call }: { id: number; call: GuestCall }) => {
  const done = Promise.resolve().then(() => run(call));
  done.then(
    (result) => tell({ id, result }),
    (error: unknown) => tell({ id, error: errorMessage(error) }),
  );
});
process.on("disconnect", () => process.exit(0));
