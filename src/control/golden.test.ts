// The daemon says what the reference says, conversation by conversation. To record anew from an installed
// reference:
//   STRATA_RECORD=1 npx vitest run src/control/golden.test.ts       then read the diff before committing it

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Daemon } from "./daemon.ts";
import { converse, makeImages, sections, startArguments } from "./testing/conversation.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";

const TESTDATA = new URL("./testdata/", import.meta.url).pathname;
const conversations = readdirSync(TESTDATA).filter((name) => name.endsWith(".golden"));
const recording = process.env["STRATA_RECORD"] === "1";

let directory: string;
let daemon: Daemon | undefined;
let reference: ChildProcess | undefined;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "golden-"));
});

afterEach(async () => {
  reference?.kill();
  if (daemon !== undefined) await endDaemon(daemon);
  daemon = undefined;
  reference = undefined;
  rmSync(directory, { recursive: true, force: true });
});

function monitorArguments(conversation: string): string[] {
  const socket = `socket,id=m,path=${directory}/qmp.sock,server=on,wait=off`;
  return [...startArguments(conversation, directory), "--chardev", socket, "--monitor", "m"];
}

async function compare(name: string): Promise<void> {
  const golden = readFileSync(join(TESTDATA, name), "utf8");
  makeImages(golden, directory);
  daemon = await startDaemon(monitorArguments(golden));
  const held = await converse(golden, `${directory}/qmp.sock`, directory);
  expect(sections(held, false)).toEqual(sections(golden, true));
}

async function record(name: string): Promise<void> {
  const golden = readFileSync(join(TESTDATA, name), "utf8");
  makeImages(golden, directory);
  reference = spawn("qemu-storage-daemon", monitorArguments(golden), { cwd: directory, stdio: "inherit" });
  await expect.poll(() => existsSync(`${directory}/qmp.sock`)).toBe(true);
  writeFileSync(join(TESTDATA, name), await converse(golden, `${directory}/qmp.sock`, directory));
}

it.each(conversations)("%s", recording ? record : compare);
