import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { QmpClient, type QmpEvent } from "./qmp-client.ts";

let directory: string;
let server: Server;
let socketPath: string;
/** Answers one line of a client. */
let answer: (line: string, socket: Socket) => void;

beforeEach(async () => {
  directory = mkdtempSync(path.join(tmpdir(), "strata-qmp-"));
  socketPath = path.join(directory, "q.sock");
  server = createServer((socket) => {
    socket.write('{"QMP": {"version": {}, "capabilities": []}}\r\n');
    let partial = "";
    socket.setEncoding("utf8").on("data", (text) => {
      const lines = (partial + text).split("\n");
      partial = lines.pop()!;
      for (const line of lines) {
        if (line.includes("qmp_capabilities")) socket.write('{"return": {}}\r\n');
        else answer(line, socket);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
});

afterEach(() => {
  server.close();
  rmSync(directory, { recursive: true });
});

it("gives each command its answer, and events to whoever listens", async () => {
  answer = (line, socket) => {
    const { execute, arguments: args } = JSON.parse(line) as { execute: string; arguments?: unknown };
    socket.write('{"timestamp": {"seconds": 2, "microseconds": 5000}, "event": "X", "data": {"a": 1}}\n');
    // In two pieces, as a socket may deliver it.
    const text = JSON.stringify({ return: [execute, args ?? null] }) + "\n";
    socket.write(text.slice(0, 5));
    setImmediate(() => socket.write(text.slice(5)));
  };
  const client = await QmpClient.connect(socketPath);
  const events: QmpEvent[] = [];
  client.onEvent((event) => events.push(event));
  expect(await client.execute("query-jobs")).toEqual(["query-jobs", null]);
  expect(await client.execute("job-pause", { id: "j" })).toEqual(["job-pause", { id: "j" }]);
  expect(events[0]).toEqual({ name: "X", data: { a: 1 }, atMs: 2005 });
  client.close();
});

it("turns an error into a BlockError with the daemon's words", async () => {
  answer = (_, socket) => void socket.write('{"error": {"class": "DeviceNotActive", "desc": "no job"}}\n');
  const client = await QmpClient.connect(socketPath);
  await expect(client.execute("x")).rejects.toMatchObject({ code: "JOB_NOT_ACTIVE", message: "no job" });
  client.close();
});

it("tells everybody who waits when the daemon hangs up", async () => {
  answer = (_, socket) => void socket.destroy();
  const client = await QmpClient.connect(socketPath);
  const both = [client.execute("a"), client.execute("b")];
  for (const each of both) await expect(each).rejects.toMatchObject({ code: "ESHUTDOWN" });
  await expect(client.execute("c")).rejects.toMatchObject({ code: "ESHUTDOWN" });
});

it("says so when what answers is no daemon", async () => {
  answer = (_, socket) => void socket.write("HTTP/1.1 400 Bad Request\n");
  const client = await QmpClient.connect(socketPath);
  await expect(client.execute("a")).rejects.toThrow("does not speak QMP");
});

it("says what to do when nobody listens", async () => {
  await expect(QmpClient.connect(path.join(directory, "none"))).rejects.toThrow("strata serve DISK");
});

it("does not wait for ever for a daemon that has another client", async () => {
  const busy = createServer(() => undefined);
  const place = path.join(directory, "busy.sock");
  await new Promise<void>((resolve) => busy.listen(place, resolve));
  const clock = new ManualClock();
  const refused = expect(QmpClient.connect(place, clock)).rejects.toMatchObject({ code: "EBUSY" });
  await new Promise<void>((resolve) => busy.once("connection", () => setImmediate(resolve)));
  clock.advance(10_000);
  await refused;
  busy.close();
});
