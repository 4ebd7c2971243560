import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import {
  deviceIndexes,
  deviceState,
  mayConnectDevices,
  type NbdHost,
  nbdIndex,
  openExclusively,
  readDevice,
  usersOf,
} from "./nbd-device.ts";
import { temporaryDirectory } from "./testing/places.ts";

let place: ReturnType<typeof temporaryDirectory>;
let host: NbdHost;

beforeEach(() => {
  place = temporaryDirectory();
  host = {
    sysBlock: path.join(place.path, "sys"),
    proc: path.join(place.path, "proc"),
    dev: path.join(place.path, "dev"),
  };
});
afterEach(() => place.remove());

/** Files below the temporary directory: name -> text. */
function files(texts: Readonly<Record<string, string>>): void {
  for (const [name, text] of Object.entries(texts)) {
    const file = path.join(place.path, name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
}

it("takes names of whole devices", () => {
  expect(nbdIndex("/dev/nbd0")).toBe(0);
  expect(nbdIndex("nbd12")).toBe(12);
  expect(() => nbdIndex("/dev/nbd0p1")).toThrow(
    "'/dev/nbd0p1' is no nbd device: the whole device is /dev/nbd0",
  );
  for (const name of ["/dev/sda", "nbd", "nbd-1", "/dev/nbd99999", "/dev/nbd0/../sda"]) {
    expect(() => nbdIndex(name)).toThrow("is no nbd device: name one as /dev/nbd0");
  }
});

it("reads what sysfs says", () => {
  files({
    "sys/nbd0/size": "2048\n",
    "sys/nbd0/ro": "1\n",
    "sys/nbd0/pid": "71\n",
    "sys/nbd0/backend": "nbd://host/disk\n",
    "sys/nbd10/size": "0\n",
    "sys/nbd2/size": "0\n",
    "sys/sda/size": "1\n",
  });
  expect(deviceIndexes(host)).toEqual([0, 2, 10]);
  expect(deviceState(host, 0)).toEqual({
    connected: true,
    size: 1 << 20,
    readOnly: true,
    backend: "nbd://host/disk",
  });
  expect(deviceState(host, 2)).toEqual({ connected: false, size: 0, readOnly: false, backend: undefined });
  expect(deviceState(host, 3)).toBe(undefined);
});

it("names everybody who uses a device or a partition of it", () => {
  files({
    "sys/nbd0/size": "2048\n",
    "sys/nbd0/dev": "43:0\n",
    "sys/nbd0/nbd0p1/dev": "43:1\n",
    "sys/nbd0/nbd0p1/holders/dm-3/x": "",
    "sys/nbd0/nbd0p2/dev": "43:2\n",
    "sys/nbd1/dev": "43:32\n",
    "proc/swaps": "Filename\tType\n/dev/nbd0p2 partition 1 0 -2\n",
    "proc/self/mountinfo":
      "22 1 43:0 / /mnt/with\\040space rw - ext4 /dev/nbd0 rw\n" +
      "23 1 43:1 / /srv rw,relatime shared:1 - ext4 /dev/nbd0p1 rw\n" +
      "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
  });
  expect(usersOf(host, 0)).toEqual([
    "/dev/nbd0 is mounted on /mnt/with space",
    "/dev/nbd0p1 is mounted on /srv",
    "/dev/nbd0p1 is part of /dev/dm-3",
    "/dev/nbd0p2 is swap space",
  ]);
  expect(usersOf(host, 1)).toEqual([]);
});

it("knows by its rights whether it may connect", () => {
  expect(mayConnectDevices(host)).toBe(true);
  files({ "proc/self/status": "Name:\tnode\nCapEff:\t000001ffffffffff\n" });
  expect(mayConnectDevices(host)).toBe(true);
  files({ "proc/self/status": "Name:\tnode\nCapEff:\t000001ffffdfffff\n" });
  expect(mayConnectDevices(host)).toBe(false);
});

it("reads and syncs the device, and says which one it cannot open", async () => {
  files({ "dev/nbd0": "0123456789" });
  const read = await readDevice(host, 0, [
    { offset: 2, bytes: 3 },
    { offset: 8, bytes: 4 },
  ]);
  expect(read.map(String)).toEqual(["234", "89"]);
  const device = openExclusively(host, 0)!;
  device.sync();
  device.close();
  await expect(readDevice(host, 1, [{ offset: 0, bytes: 1 }])).rejects.toThrow(
    `cannot read ${host.dev}/nbd1: No such file or directory`,
  );
  expect(() => openExclusively(host, 1)).toThrow(/cannot open .*nbd1: No such file or directory/);
});
