// `strata check` as a command: what goes where, the exit codes, the backup of a repair and its undoing.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, it } from "vitest";
import { systemClock } from "../base/clock.ts";
import { createQcow2 } from "../format/qcow2/create.ts";
import { hostImageFile } from "../format/qcow2/image-file.ts";
import { createHostFile } from "../sys/create-host-file.ts";
import { runCommandLine } from "./program.ts";

const directory = mkdtempSync(join(tmpdir(), "check-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const disk = join(directory, "disk.qcow2");
const backup = `${disk}.before-repair`;

async function run(...args: string[]) {
  const out: string[] = [];
  const err: string[] = [];
  const context = {
    terminal: {
      out: (text: string) => void out.push(text),
      err: (text: string) => void err.push(text),
      interactive: false,
      columns: 80,
    },
    environment: { runtimeDirectory: "/nonexistent", uid: 1 },
    clock: systemClock,
    onInterrupt: () => () => {},
  };
  const code = await runCommandLine(["check", ...args], "0", context);
  return { code, out: out.join(""), err: err.join("") };
}

const REFCOUNTS = 2 * 4096;
const FIRST_L2 = 4 * 4096;

beforeEach(async () => {
  for (const name of [disk, backup, `${backup}-2`]) rmSync(name, { force: true });
  const file = await createHostFile(disk, { size: 0 });
  await createQcow2(hostImageFile(file), { size: 1024 * 1024, clusterSize: 4096, preallocation: "metadata" });
  await file.close();
});

function change(at: number, ...values: number[]): Buffer {
  const bytes = readFileSync(disk);
  Buffer.from(values).copy(bytes, at);
  writeFileSync(disk, bytes);
  return bytes;
}

it("tells findings on stderr, the result on stdout, and makes no backup of what it does not change", async () => {
  expect(await run(disk)).toMatchObject({ code: 0, err: "" });
  expect(await run("-r", "all", disk)).toMatchObject({ code: 0, err: "" });
  expect(existsSync(backup)).toBe(false);
  change(REFCOUNTS + 2 * 20, 0, 2);
  expect(await run("--output", "json", disk)).toMatchObject({
    code: 2,
    err: "Leaked cluster 20 refcount=2 reference=1\nERROR OFLAG_COPIED data cluster: cluster=20 refcount=2\n",
  });
});

it("keeps what a repair overwrites, under a name that is free, and puts it back", async () => {
  for (const name of [backup, `${backup}-2`]) {
    const before = change(FIRST_L2 + 8, 0x80, 0, 0, 0, 0, 0, 0x10, 0);
    const repaired = await run("-r", "all", disk);
    expect(repaired.code).toBe(0);
    expect(repaired.err).toContain(`is kept in '${name}'`);
    expect(readFileSync(disk).equals(before)).toBe(false);
    const undone = await run("--undo", name, disk);
    expect(undone).toMatchObject({ code: 0, err: "" });
    expect(undone.out).toMatch(/^\d+ bytes of '.*' are as they were before the repair\.\n$/);
    expect(readFileSync(disk).equals(before)).toBe(true);
  }
});

it("keeps it where it is told, or nowhere; where it cannot, nothing is changed", async () => {
  const before = change(REFCOUNTS + 2 * 20, 0, 9);
  const refused = await run("-r", "all", "--backup", "/nonexistent/backup", disk);
  expect(refused).toMatchObject({ code: 1 });
  expect(refused.err).toContain("so nothing was changed");
  const other = join(directory, "other");
  writeFileSync(other, "mine");
  expect((await run("-r", "all", "--backup", other, disk)).code).toBe(1);
  expect(readFileSync(other, "utf8")).toBe("mine");
  expect(readFileSync(disk).equals(before)).toBe(true);
  rmSync(other);
  expect((await run("-r", "leaks", "--backup", other, disk)).code).toBe(0);
  expect(existsSync(other)).toBe(true);
  change(REFCOUNTS + 2 * 20, 0, 9);
  expect(await run("-q", "-r", "all", "--no-backup", disk)).toEqual({ code: 0, out: "", err: "" });
  expect(existsSync(backup)).toBe(false);
});

it("does not undo what somebody has written since, unless it is forced; and goes on where undoing was cut", async () => {
  const changes: (() => void)[] = [
    () => change(FIRST_L2 + 8, 0x80, 0, 0, 0, 0, 0, 0x20, 0),
    () => writeFileSync(disk, Buffer.concat([readFileSync(disk), Buffer.alloc(4096, "w")])),
  ];
  for (const write of changes) {
    rmSync(backup, { force: true });
    const before = change(FIRST_L2 + 8, 0x80, 0, 0, 0, 0, 0, 0x10, 0);
    await run("-r", "all", disk);
    write();
    const written = readFileSync(disk);
    const refused = await run("--undo", backup, disk);
    expect(refused.code).not.toBe(0);
    expect(refused.err).toContain("was written to since the repair, so nothing was undone: --force undoes");
    expect(readFileSync(disk).equals(written)).toBe(true);
    expect((await run("--undo", backup, "--force", disk)).code).toBe(0);
    expect(readFileSync(disk).equals(before)).toBe(true);
    // Begun once, it may be cut anywhere: now nothing is refused.
    expect((await run("--undo", backup, disk)).code).toBe(0);
  }
  expect((await run("--force", disk)).err).toContain("--force goes with --undo");
});

it("a backup that is cut is undone as far as it goes; what is none is refused", async () => {
  const before = change(FIRST_L2 + 8, 0x80, 0, 0, 0, 0, 0, 0x10, 0);
  await run("-r", "all", disk);
  const kept = readFileSync(backup);
  // The last record is torn: what it keeps was not overwritten, as far as its writer knew. The repair was
  // killed then, and has left no seal.
  const records = kept.subarray(0, kept.length - 28);
  writeFileSync(backup, records.subarray(0, records.length - 1));
  expect((await run("--undo", backup, disk)).code).toBe(0);
  writeFileSync(backup, records);
  expect((await run("--undo", backup, disk)).code).toBe(0);
  expect(readFileSync(disk).equals(before)).toBe(true);
  const none = await run("--undo", disk, disk);
  expect(none.code).not.toBe(0);
  const image = join(directory, "image");
  writeFileSync(image, before);
  expect((await run("--undo", image, disk)).err).toContain("is no backup of a repair");
});

it("refuses words that mean nothing", async () => {
  expect((await run("--output", "xml", disk)).err).toContain("there are human and json");
  expect((await run("--backup", "x", disk)).err).toContain("--backup is for a repair");
  expect((await run("--undo", "x", "-r", "all", disk)).err).toContain("exclude each other");
  expect((await run("--undo", join(directory, "none"), disk)).err).toContain("No such file");
});
