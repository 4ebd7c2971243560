import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Frontend } from "../control/chardev/chardev.ts";
import { MonitorListener } from "./monitor-listener.ts";

/** Says what it hears. */
const echo: Frontend = {
  opened({ input, output }) {
    input!.on("data", (bytes: Buffer) => output!.write(bytes));
    input!.resume();
  },
};

let directory: string;
let listener: MonitorListener | undefined;

beforeEach(() => {
  directory = mkdtempSync(path.join(tmpdir(), "strata-listener-"));
});

afterEach(async () => {
  await listener?.close();
  rmSync(directory, { recursive: true });
});

it("hears several at a time, and hangs up on all at its end", async () => {
  const socket = path.join(directory, "m.sock");
  listener = await MonitorListener.open(socket, echo);
  const clients = ["one", "two", "three"].map((word) => {
    const client = createConnection(socket);
    client.write(word);
    const answered = new Promise<string>((resolve) => client.once("data", (bytes) => resolve(String(bytes))));
    const ended = new Promise<void>((resolve) => client.once("close", () => resolve()));
    return { answered, ended };
  });
  expect(await Promise.all(clients.map(({ answered }) => answered))).toEqual(["one", "two", "three"]);
  await listener.close();
  await Promise.all(clients.map(({ ended }) => ended));
  expect(existsSync(socket)).toBe(false);
  listener = undefined;
});

it("does not take a socket from somebody who listens there", async () => {
  const socket = path.join(directory, "m.sock");
  listener = await MonitorListener.open(socket, echo);
  await expect(MonitorListener.open(socket, echo)).rejects.toThrow("m.sock");
});
