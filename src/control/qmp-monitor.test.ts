import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Daemon } from "./daemon.ts";
import { runStep } from "./daemon-steps.ts";
import { QmpMonitor } from "./qmp-monitor.ts";
import { MonitorClient } from "./testing/conversation.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image, makeRawImage } from "./testing/image-fixtures.ts";

let directory: string;
let daemon: Daemon;
let clients: MonitorClient[];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "qmp-"));
  clients = [];
  daemon = await startDaemon([
    ...["--chardev", `socket,id=a,path=${directory}/a,server=on,wait=off`, "--monitor", "a"],
    ...["--chardev", `socket,id=b,path=${directory}/b,server=on,wait=off`, "--monitor", "b,pretty=on"],
  ]);
});

afterEach(async () => {
  for (const client of clients) client.close();
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

function connect(name: string): MonitorClient {
  const client = new MonitorClient(`${directory}/${name}`);
  clients.push(client);
  return client;
}

async function negotiated(name: string): Promise<MonitorClient> {
  const client = connect(name);
  await client.nextLine();
  client.send('{"execute":"qmp_capabilities"}');
  await client.nextLine();
  return client;
}

const error = (desc: string, errorClass = "GenericError") => ({ error: { class: errorClass, desc } });

describe("negotiation", () => {
  it("greets, and takes nothing else before qmp_capabilities", async () => {
    const client = connect("a");
    expect(await client.nextLine()).toMatch(
      /^\{"QMP": \{"version": \{"qemu": \{"micro": \d+, "minor": \d+, "major": 10\}, "package": "strata-storage [\d.]+"\}, "capabilities": \[\]\}\}$/,
    );
    const expecting = error("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound");
    client.send('{"execute":"query-version"}{"execute":"nope","id":3}nope ');
    expect(await client.nextMessage()).toEqual(expecting);
    expect(await client.nextMessage()).toEqual({ id: 3, ...expecting });
    expect(await client.nextMessage()).toEqual(error("JSON parse error, invalid keyword 'nope'"));
    client.send('{"execute":"qmp_capabilities","arguments":{"enable":["bogus"]}}');
    expect(await client.nextMessage()).toEqual(error("Parameter 'null' does not accept value 'bogus'"));
    client.send('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}');
    expect(await client.nextMessage()).toEqual(error("Capability 'oob' is not offered by this monitor"));
    client.send('{"execute":"qmp_capabilities","arguments":{"enable":[]}}');
    expect(await client.nextMessage()).toEqual({ return: {} });
  });

  it("starts anew with every client of a socket, one after the other", async () => {
    const first = await negotiated("a");
    const second = connect("a");
    first.send('{"execute":"query-jobs"}');
    expect(await first.nextMessage()).toEqual({ return: [] });
    first.close();
    expect(await second.nextLine()).toContain("QMP");
    second.send('{"execute":"query-jobs"}');
    expect(await second.nextMessage()).toMatchObject({ error: { class: "CommandNotFound" } });
  });
});

describe("commands", () => {
  it("are answered in order, each with its id, whatever pieces they come in", async () => {
    const client = await negotiated("a");
    const ids = Array.from({ length: 40 }, (_, index) => index);
    const text = ids.map((id) => JSON.stringify({ execute: "query-version", id })).join("");
    for (let at = 0; at < text.length; at += 7) client.send(text.slice(at, at + 7));
    for (const id of ids)
      expect(await client.nextMessage()).toMatchObject({ id, return: { qemu: { major: 10 } } });
  });

  it("give back any id as it came", async () => {
    const client = await negotiated("a");
    client.send('{"execute":"query-jobs","id":[18446744073709551615,1.50,{"a":null},"\u00e9"]}');
    expect(await client.nextLine()).toBe(
      String.raw`{"return": [], "id": [18446744073709551615, 1.50, {"a": null}, "\u00E9"]}`,
    );
  });

  it("are answered over several lines where that is wanted", async () => {
    const client = connect("b");
    const greeting: (string | undefined)[] = [];
    while (greeting.at(-1) !== "}") greeting.push(await client.nextLine());
    client.send('{"execute":"qmp_capabilities"}');
    const lines = [
      await client.nextLine(),
      await client.nextLine(),
      await client.nextLine(),
      await client.nextLine(),
    ];
    expect(lines).toEqual(["{", '    "return": {', "    }", "}"]);
  });

  it("go on after any garbage, and another client does not notice", async () => {
    const other = await negotiated("a");
    await runStep(daemon, {
      option: "chardev",
      argument: `socket,id=c,path=${directory}/c,server=on,wait=off`,
    });
    await runStep(daemon, { option: "monitor", argument: "c" });
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 60 }), async (garbage) => {
        const client = await negotiated("c");
        client.send(Buffer.from(garbage));
        client.send(Buffer.from("\xff\n", "latin1"));
        client.send('{"execute":"query-jobs","id":"after"}');
        for (;;) {
          const message = await client.nextMessage();
          expect(message).toBeDefined();
          if (message!["id"] === "after") break;
          expect(message).toHaveProperty("error");
        }
        client.close();
      }),
      { numRuns: 40 },
    );
    other.send('{"execute":"query-jobs"}');
    expect(await other.nextMessage()).toEqual({ return: [] });
  });
});

describe("events", () => {
  it("go to every negotiated client, in the same order", async () => {
    makeRawImage(`${directory}/A.img`, 65536, true);
    makeQcow2Image(`${directory}/B.qcow2`, 65536, { backing: { file: "A.img", format: "raw" } });
    await runStep(daemon, {
      option: "blockdev",
      argument: `qcow2,node-name=B,file.driver=file,file.filename=${directory}/B.qcow2`,
    });
    await runStep(daemon, {
      option: "chardev",
      argument: `socket,id=c,path=${directory}/c,server=on,wait=off`,
    });
    await runStep(daemon, { option: "monitor", argument: "c" });
    const first = await negotiated("a");
    const second = await negotiated("c");
    first.send('{"execute":"block-stream","arguments":{"device":"B","job-id":"j"}}');
    const heard = async (client: MonitorClient) => {
      const names: unknown[] = [];
      for (;;) {
        const message = (await client.nextMessage())!;
        if (!("event" in message)) continue;
        names.push([message["event"], (message["data"] as { status?: string }).status]);
        if ((message["data"] as { status?: string }).status === "null") return names;
      }
    };
    const expected = [
      ["JOB_STATUS_CHANGE", "created"],
      ["JOB_STATUS_CHANGE", "running"],
      ["JOB_STATUS_CHANGE", "waiting"],
      ["JOB_STATUS_CHANGE", "pending"],
      ["BLOCK_JOB_COMPLETED", undefined],
      ["JOB_STATUS_CHANGE", "concluded"],
      ["JOB_STATUS_CHANGE", "null"],
    ];
    expect(await heard(first)).toEqual(expected);
    expect(await heard(second)).toEqual(expected);
  });
});

describe("a monitor that connects by itself", () => {
  it("greets the server that it was told of", async () => {
    const arrived = new Promise<Socket>((resolve) => {
      const server = createServer((socket) => {
        server.close();
        resolve(socket);
      });
      server.listen(`${directory}/server`);
    });
    await runStep(daemon, { option: "chardev", argument: `socket,id=d,path=${directory}/server` });
    await runStep(daemon, { option: "monitor", argument: "d" });
    const socket = await arrived;
    const greeting = await new Promise<string>((resolve) =>
      socket.once("data", (bytes) => resolve(String(bytes))),
    );
    expect(greeting).toContain('"QMP"');
    socket.destroy();
  });
});

describe("a flood", () => {
  it("lets everybody else have a turn between two commands", async () => {
    const client = await negotiated("a");
    const COMMANDS = 200;
    let turns = 0;
    let counting = true;
    const count = () => {
      turns++;
      if (counting) setImmediate(count);
    };
    client.send('{"execute":"query-jobs"}'.repeat(COMMANDS));
    count();
    for (let answered = 0; answered < COMMANDS; answered++) await client.nextMessage();
    counting = false;
    expect(turns).toBeGreaterThan(COMMANDS / 2);
  });
});

describe("the end", () => {
  it("answers quit when everything is closed, and asks the program to end", async () => {
    const client = await negotiated("a");
    client.send('{"execute":"quit","id":1}');
    expect(await client.nextMessage()).toEqual({ return: {}, id: 1 });
    await daemon.quitRequested;
    expect([...daemon.graph.nodes]).toEqual([]);
  });

  it("carries out what stood in a pipe before its end", async () => {
    const [input, output] = [new PassThrough(), new PassThrough()];
    new QmpMonitor(daemon, { pretty: false }).opened({ input, output, close: () => undefined });
    const commands = ["qmp_capabilities", ...Array<string>(20).fill("query-jobs"), "quit"];
    input.end(commands.map((execute) => JSON.stringify({ execute })).join("\n"));
    await daemon.quitRequested;
    const lines = String(output.read()).trim().split("\r\n");
    expect(lines.slice(1).map((line) => JSON.parse(line))).toEqual([
      { return: {} },
      ...Array.from({ length: 20 }, () => ({ return: [] })),
      { return: {} },
    ]);
  });

  it("waits for commands that are under way, and refuses later ones", async () => {
    const client = await negotiated("a");
    let finish = () => {};
    const running = daemon.during(() => new Promise<void>((resolve) => (finish = resolve)));
    let ended = false;
    const ending = daemon.shutDown().then(() => {
      ended = true;
    });
    client.send('{"execute":"query-jobs"}');
    expect(await client.nextMessage()).toEqual(error("the daemon is shutting down"));
    expect(ended).toBe(false);
    finish();
    await running;
    await ending;
  });
});
